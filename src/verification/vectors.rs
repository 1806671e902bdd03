//! The verifier against published signatures and signatures made by the provider's own SDKs.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::digest::KeyInit as _;
use hmac::{Hmac, Mac as _};
use http::Request;
use http::request::Parts;
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use sha2::Sha256;

use super::canonical::{
    canonical_query, encode_into, hex, is_hmac_sha1, is_hmac_sha256, sha256_hex, unhex,
};
use super::*;

#[derive(Deserialize)]
struct Vectors {
    v1: Vec<V1>,
    v3: Vec<V3>,
}

#[derive(Deserialize)]
struct V1 {
    name: String,
    method: String,
    access_key_secret: String,
    params: BTreeMap<String, String>,
    canonical_query: String,
    string_to_sign: String,
    hmac_key: String,
    hmac_sha1_hex: String,
    signature: String,
    signature_urlencoded: String,
}

#[derive(Deserialize)]
struct V3 {
    name: String,
    method: String,
    access_key_id: String,
    access_key_secret: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: String,
    hashed_payload: String,
    canonical_query: String,
    canonical_headers: String,
    signed_headers: String,
    canonical_request: String,
    hashed_canonical_request: String,
    string_to_sign: String,
    signature: String,
    authorization: String,
}

fn vectors() -> Vectors {
    let text = include_str!("../../tests/fixtures/signature-vectors.json");
    serde_json::from_str(text).unwrap()
}

/// As a URL or form would carry them, in an order that is not the canonical one.
fn on_the_wire(params: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    for (name, value) in params.iter().rev() {
        out.push('&');
        encode_into(name, &mut out);
        out.push('=');
        encode_into(value, &mut out);
    }
    out.replace("%20", "+")
}

struct Secret(String);

impl SigningKey for Secret {
    fn secret(&self) -> &str {
        &self.0
    }
}

fn received<'a>(parts: &'a Parts, body: &'a [u8]) -> ReceivedCall<'a> {
    ReceivedCall::new(parts, parts.uri.query().unwrap_or_default(), body)
}

/// Where a request has its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Query,
    Form,
}

fn v1_request(vector: &V1, place: Place) -> (Parts, String) {
    let sent = format!("{}&Signature={}", on_the_wire(&vector.params), vector.signature_urlencoded);
    let request = Request::builder().method(vector.method.as_str());
    let (request, body) = if place == Place::Form {
        let form = "application/x-www-form-urlencoded";
        (request.uri("/").header("content-type", form), sent)
    } else {
        (request.uri(format!("/?{sent}")), String::new())
    };
    (request.body(()).unwrap().into_parts().0, body)
}

fn v3_request(vector: &V3) -> Parts {
    let uri = format!("/?{}", on_the_wire(&vector.query));
    let mut request = Request::builder().method(vector.method.as_str()).uri(uri);
    for (name, value) in &vector.headers {
        request = request.header(name, value);
    }
    let request = request.header("authorization", &vector.authorization);
    request.body(()).unwrap().into_parts().0
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn v1_every_intermediate_string() {
    for vector in vectors().v1 {
        for place in [Place::Query, Place::Form] {
            let (parts, body) = v1_request(&vector, place);
            let call = received(&parts, body.as_bytes());
            let name = &vector.name;

            let canonical = v1::canonical(&call);
            assert_eq!(canonical, vector.canonical_query, "{name}");
            let string_to_sign = v1::string_to_sign(&vector.method, &canonical);
            assert_eq!(string_to_sign, vector.string_to_sign, "{name}");
            let key = v1::hmac_key(&vector.access_key_secret);
            assert_eq!(key.expose_secret(), vector.hmac_key, "{name}");
            let mac = STANDARD.decode(&vector.signature).unwrap();
            assert_eq!(hex(&mac), vector.hmac_sha1_hex, "{name}");
            assert!(is_hmac_sha1(key.expose_secret(), &string_to_sign, &mac), "{name}");

            let id = &vector.params["AccessKeyId"];
            let token = vector.params.get("SecurityToken").map(String::as_str);
            let find = |of: &str, with: Option<&str>| {
                assert_eq!((of, with), (&**id, token));
                Ok(Secret(vector.access_key_secret.clone()))
            };
            let at = time(&vector.params["Timestamp"]);
            let signed = check(&call, find, at).unwrap();
            assert_eq!(signed.time, at);
            assert_eq!(signed.nonce, vector.params["SignatureNonce"]);
        }
    }
}

#[test]
fn v3_every_intermediate_string() {
    for vector in vectors().v3 {
        let parts = v3_request(&vector);
        let call = received(&parts, vector.body.as_bytes());
        let name = &vector.name;

        assert_eq!(canonical_query(call.query.iter()), vector.canonical_query, "{name}");
        assert_eq!(sha256_hex(vector.body.as_bytes()), vector.hashed_payload, "{name}");
        let canonical =
            v3::canonical_request(&call, &vector.signed_headers, &vector.hashed_payload).unwrap();
        assert_eq!(canonical, vector.canonical_request, "{name}");
        assert!(canonical.contains(&vector.canonical_headers), "{name}");
        assert_eq!(sha256_hex(canonical.as_bytes()), vector.hashed_canonical_request, "{name}");
        let string_to_sign = v3::string_to_sign(&canonical);
        assert_eq!(string_to_sign, vector.string_to_sign, "{name}");
        let mac = unhex(&vector.signature).unwrap();
        assert!(is_hmac_sha256(&vector.access_key_secret, &string_to_sign, &mac), "{name}");

        let find = |id: &str, token: Option<&str>| {
            assert_eq!((id, token), (&*vector.access_key_id, None));
            Ok(Secret(vector.access_key_secret.clone()))
        };
        let at = time(&vector.headers["x-acs-date"]);
        let signed = check(&call, find, at).unwrap();
        assert_eq!(signed.time, at);
        assert_eq!(signed.nonce, vector.headers["x-acs-signature-nonce"]);
    }
}

/// The code a vector's call is refused with after `change`.
fn v3_after(change: impl Fn(&mut Parts, &mut String)) -> String {
    let vector = vectors().v3.pop().unwrap();
    assert!(!vector.body.is_empty(), "the form vector is last");
    let (mut parts, mut body) = (v3_request(&vector), vector.body);
    change(&mut parts, &mut body);
    let call = received(&parts, body.as_bytes());
    let find = |id: &str, _: Option<&str>| {
        assert_eq!(id, vector.access_key_id);
        Ok(Secret(vector.access_key_secret))
    };
    let now = time(&vector.headers["x-acs-date"]);
    check(&call, find, now).err().map(|refusal| refusal.code.into_owned()).unwrap_or_default()
}

fn authorization_with(parts: &mut Parts, from: &str, to: &str) {
    let old = parts.headers["authorization"].to_str().unwrap();
    let new = old.replace(from, to);
    assert_ne!(old, new);
    parts.headers.insert("authorization", new.parse().unwrap());
}

#[test]
fn v3_refuses_what_was_changed() {
    assert_eq!(v3_after(|_, _| ()), "");
    let code = v3_after(|_, body| body.push('a'));
    assert_eq!(code, "SignatureDoesNotMatch");
    let code = v3_after(|parts, _| {
        parts.headers.insert("x-acs-content-sha256", "00".parse().unwrap());
    });
    assert_eq!(code, "SignatureDoesNotMatch");
    let code = v3_after(|parts, _| *parts = with_uri(parts, "/?Extra=1"));
    assert_eq!(code, "SignatureDoesNotMatch");
    let code = v3_after(|parts, _| authorization_with(parts, "Signature=1", "Signature=2"));
    assert_eq!(code, "SignatureDoesNotMatch");
    let code = v3_after(|parts, _| {
        authorization_with(parts, "=content-type;host;", "=host;content-type;");
    });
    assert_eq!(code, "SignatureDoesNotMatch");
}

#[test]
fn v3_refuses_a_declared_hash_that_is_not_the_bodys() {
    let code = v3_after(|parts, body| {
        let hash = "0".repeat(64);
        parts.headers.insert("x-acs-content-sha256", hash.parse().unwrap());
        // signed all the same, over the body's true hash
        let vector = vectors().v3.pop().unwrap();
        let call = received(parts, body.as_bytes());
        let canonical =
            v3::canonical_request(&call, &vector.signed_headers, &vector.hashed_payload).unwrap();
        let mut mac = Hmac::<Sha256>::new_from_slice(vector.access_key_secret.as_bytes()).unwrap();
        mac.update(v3::string_to_sign(&canonical).as_bytes());
        authorization_with(parts, &vector.signature, &hex(&mac.finalize().into_bytes()));
    });
    assert_eq!(code, "SignatureDoesNotMatch");
}

fn with_uri(parts: &Parts, uri: &str) -> Parts {
    let mut parts = parts.clone();
    parts.uri = uri.parse().unwrap();
    parts
}

#[test]
fn v3_refuses_what_is_incomplete() {
    for unsigned in ["content-type;", "host;", "x-acs-date;", "x-acs-action;"] {
        let code = v3_after(|parts, _| authorization_with(parts, unsigned, ""));
        assert_eq!(code, "IncompleteSignature", "{unsigned} not signed");
    }
    for absent in ["x-acs-date", "x-acs-signature-nonce", "x-acs-content-sha256", "host"] {
        let code = v3_after(|parts, _| {
            parts.headers.remove(absent);
        });
        assert_eq!(code, "IncompleteSignature", "{absent} absent");
    }
    for (from, to) in [
        (",Sig", ", Sig"),
        ("Credential=testid,", ""),
        ("Signature=", "Sig="),
        ("-SHA256 ", "-SHA256"),
    ] {
        let code = v3_after(|parts, _| authorization_with(parts, from, to));
        assert_eq!(code, "IncompleteSignature", "{from} {to}");
    }
    let code = v3_after(|parts, _| authorization_with(parts, "ACS3-HMAC-SHA256", "ACS3-RSA"));
    assert_eq!(code, "InvalidSignatureMethod");
}

/// The code the plain V1 vector is refused with after a parameter was changed or taken away.
fn v1_after(name: &str, value: Option<&str>) -> String {
    let mut vector = vectors().v1.swap_remove(1);
    let secret = vector.access_key_secret.clone();
    let now = time(&vector.params["Timestamp"]);
    match value {
        Some(value) => vector.params.insert(name.to_owned(), value.to_owned()),
        None => vector.params.remove(name),
    };
    let (parts, body) = v1_request(&vector, Place::Query);
    let call = received(&parts, body.as_bytes());
    let find = |id: &str, _: Option<&str>| {
        if id == "testid" {
            return Ok(Secret(secret));
        }
        Err(Refusal::new("InvalidAccessKeyId.NotFound"))
    };
    check(&call, find, now).err().map(|refusal| refusal.code.into_owned()).unwrap_or_default()
}

#[test]
fn v1_refuses_what_was_changed_or_is_incomplete() {
    assert_eq!(v1_after("MqttTopic", Some("TopicA")), "");
    assert_eq!(v1_after("MqttTopic", Some("TopicB")), "SignatureDoesNotMatch");
    assert_eq!(v1_after("Extra", Some("1")), "SignatureDoesNotMatch");
    assert_eq!(v1_after("Payload", None), "SignatureDoesNotMatch");
    assert_eq!(v1_after("SignatureMethod", Some("HMAC-SHA256")), "InvalidSignatureMethod");
    assert_eq!(v1_after("SignatureVersion", Some("2.0")), "IncompleteSignature");
    assert_eq!(v1_after("AccessKeyId", Some("nobody")), "InvalidAccessKeyId.NotFound");
    for name in
        ["AccessKeyId", "SignatureNonce", "SignatureMethod", "SignatureVersion", "Timestamp"]
    {
        assert_eq!(v1_after(name, None), "IncompleteSignature", "{name}");
    }
}
