//! The provider's published signature vectors and those made with its official SDKs, with every
//! intermediate string. Source: `help.aliyun.com/en/sdk/product-overview/rpc-mechanism`,
//! `…/v3-request-structure-and-signature`; the generated ones say so in the file.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::Value;
use tollgate::config::SignatureVersion;
use tollgate::signing::{Call, Credentials, Stamp, acs3, encode, rpc, sign};
use tollgate::upstream::SendMessage;

fn vectors(version: &str) -> Vec<Value> {
    let all: Value =
        serde_json::from_str(include_str!("../fixtures/signature-vectors.json")).unwrap();
    all[version].as_array().unwrap().clone()
}

fn map(value: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(value.clone()).unwrap()
}

fn pairs(map: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
    map.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[test]
fn rpc_vectors() {
    let vectors = vectors("v1");
    assert_eq!(vectors.len(), 3);
    for vector in vectors {
        let canonical = encode::pairs(&pairs(&map(&vector["params"])));
        assert_eq!(canonical, vector["canonical_query"], "{}", vector["name"]);
        let to_sign = rpc::string_to_sign(vector["method"].as_str().unwrap(), &canonical);
        assert_eq!(to_sign, vector["string_to_sign"], "{}", vector["name"]);
        let signature = rpc::signature(vector["access_key_secret"].as_str().unwrap(), &to_sign);
        assert_eq!(signature, vector["signature"], "{}", vector["name"]);
        let mut encoded = String::new();
        encode::append(&mut encoded, &signature);
        assert_eq!(encoded, vector["signature_urlencoded"], "{}", vector["name"]);
    }
}

#[test]
fn acs3_vectors() {
    let vectors = vectors("v3");
    assert_eq!(vectors.len(), 3);
    for vector in vectors {
        let name = &vector["name"];
        let query = encode::pairs(&pairs(&map(&vector["query"])));
        assert_eq!(query, vector["canonical_query"], "{name}");
        let headers = map(&vector["headers"]);
        let headers = pairs(&headers);
        assert_eq!(acs3::canonical_headers(&headers), vector["canonical_headers"], "{name}");
        let names = acs3::signed_headers(&headers);
        assert_eq!(names, vector["signed_headers"], "{name}");
        let request = acs3::canonical_request("POST", &query, &headers);
        assert_eq!(request, vector["canonical_request"], "{name}");
        let to_sign = acs3::string_to_sign(&request);
        assert_eq!(to_sign, vector["string_to_sign"], "{name}");
        let signature = acs3::signature(vector["access_key_secret"].as_str().unwrap(), &to_sign);
        assert_eq!(signature, vector["signature"], "{name}");
        let id = vector["access_key_id"].as_str().unwrap();
        assert_eq!(acs3::authorization(id, &names, &signature), vector["authorization"], "{name}");
    }
}

const KEY: Credentials<'_> = Credentials { id: "testid", secret: "testsecret", token: None };

fn stamp() -> Stamp {
    let at = "2024-01-02T03:04:05Z".parse().unwrap();
    Stamp::new(at, 0x3ee8_c1b8_83d3_44af_a94f_4e0a_d82f_d6cf)
}

/// The whole calls, held against the vectors of `SendMessage`.
#[test]
fn whole_calls() {
    const AUTHORITY: &str = "onsmqtt.cn-hangzhou.aliyuncs.com";
    const INSTANCE: &str = "post-cn-0pp12gl0000";
    let message = SendMessage::new(INSTANCE, "TopicA", "test");
    let call = message.call(AUTHORITY);
    let v1 = &vectors("v1")[1];
    let signed = sign(SignatureVersion::HmacSha1, &call, &KEY, &stamp());
    let expected = format!(
        "{}&Signature={}",
        v1["canonical_query"].as_str().unwrap(),
        v1["signature_urlencoded"].as_str().unwrap()
    );
    assert_eq!((signed.query.as_str(), signed.body.as_str()), ("", expected.as_str()));

    let v1 = &vectors("v1")[2];
    let token = "CAISsecuritytoken+/==";
    let p2p = SendMessage::new(INSTANCE, "TopicA/p2p/GID_test@@@DEVICE_001", "aGVsbG8+d29ybGQ/");
    let signed =
        rpc::sign(&p2p.call(AUTHORITY), &Credentials { token: Some(token), ..KEY }, &stamp());
    assert!(signed.body.ends_with(v1["signature_urlencoded"].as_str().unwrap()));

    let v3 = &vectors("v3")[1];
    let signed = sign(SignatureVersion::Acs3, &call, &KEY, &stamp());
    assert_eq!(signed.query, v3["canonical_query"]);
    let authorization = signed.headers.iter().find(|h| h.0 == "authorization").unwrap();
    assert_eq!(authorization.1, v3["authorization"]);
    assert!(signed.headers.iter().all(|h| h.0 != "host"), "the client sends it");
}

#[test]
fn a_query_too_long_for_http_becomes_a_form() {
    let payload = "A".repeat(65_536);
    let message = SendMessage::new("i", "abc", &payload);
    let signed =
        acs3::sign(&message.call("localhost"), &Credentials { token: Some("t"), ..KEY }, &stamp());
    assert!(signed.query.is_empty());
    assert!(signed.body.len() > 65_536);
    let (_, authorization) = signed.headers.iter().find(|h| h.0 == "authorization").unwrap();
    assert!(authorization.contains(
        "SignedHeaders=content-type;host;x-acs-action;x-acs-content-sha256;x-acs-date;\
         x-acs-security-token;x-acs-signature-nonce;x-acs-version,"
    ));
}

#[test]
fn prints_no_secret() {
    let message = SendMessage::new("i", "t", "p-secret");
    let call = message.call("h");
    let signed = rpc::sign(&call, &KEY, &stamp());
    let printed = format!("{KEY:?} {call:?} {signed:?}");
    assert!(!printed.contains("secret") && !printed.contains("testid"), "{printed}");
}

/// Neither version depends on the operation, or on where its parameters sort among the others.
#[test]
fn any_operation() {
    let params = [("Aa", "1"), ("Region", "cn"), ("Zone", "z")];
    let call =
        Call { authority: "h", action: "ListTopics", version: "2020-01-01", params: &params };
    let signed = rpc::sign(&call, &Credentials { token: Some("t"), ..KEY }, &stamp());
    let names: Vec<_> =
        signed.body.split('&').map(|pair| pair.split('=').next().unwrap()).collect();
    let (signature, signed_names) = names.split_last().unwrap();
    assert_eq!((*signature, signed_names.len()), ("Signature", 12));
    assert!(signed_names.is_sorted(), "{names:?}");
    assert!(signed.body.contains("&Action=ListTopics&"));
    let signed = acs3::sign(&call, &KEY, &stamp());
    assert_eq!(signed.query, "Aa=1&Region=cn&Zone=z");
    assert!(signed.headers.contains(&("x-acs-action", "ListTopics".to_owned())));
    assert!(signed.headers.contains(&("x-acs-version", "2020-01-01".to_owned())));
}

proptest! {
    /// Decoding gives back what was encoded, and nothing needs encoding that is in the result.
    #[test]
    fn encoding_is_reversible(text in "\\PC{0,60}") {
        let mut encoded = String::new();
        encode::append(&mut encoded, &text);
        let decoded = percent_encoding::percent_decode_str(&encoded).decode_utf8().unwrap();
        prop_assert_eq!(decoded, text);
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~%".contains(&b);
        prop_assert!(encoded.bytes().all(plain));
    }

    /// Any difference in what is sent is a difference in the signature.
    #[test]
    fn every_parameter_is_signed(a in "[a-z/+=]{1,20}", b in "[a-z/+=]{1,20}") {
        prop_assume!(a != b);
        let (a, b) = (SendMessage::new("i", "t", &a), SendMessage::new("i", "t", &b));
        let last = |body: &str| body.rsplit_once("Signature=").unwrap().1.to_owned();
        let one = rpc::sign(&a.call("h"), &KEY, &stamp());
        let other = rpc::sign(&b.call("h"), &KEY, &stamp());
        prop_assert_ne!(last(&one.body), last(&other.body));
        prop_assert_ne!(
            &acs3::sign(&a.call("h"), &KEY, &stamp()).headers,
            &acs3::sign(&b.call("h"), &KEY, &stamp()).headers
        );
    }
}
