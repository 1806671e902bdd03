//! Temporary keys: of the Security Token Service and of the metadata service, with their policies and ends.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tollgate::emulator::{EmulatorOptions, KeyPair, MetadataAccess};

use crate::client::{Answer, Call, Client, INSTANCE};
use crate::{four_ways, options, start};

const ROLE: &str = "acs:ram::1000000000000001:role/tollgate";

fn assume_role() -> Call {
    let call = Call {
        action: "AssumeRole".to_owned(),
        api_version: "2015-04-01".to_owned(),
        ..Call::new("", "")
    };
    let call = call.without("InstanceId").without("MqttTopic").without("Payload");
    call.with("RoleArn", ROLE).with("RoleSessionName", "tollgate")
}

/// Its key, from an answer of either service.
fn key_of(answer: &Answer) -> KeyPair {
    assert_eq!(answer.status, 200, "{answer:?}");
    let json = answer.json();
    let key = if json["Credentials"].is_object() { &json["Credentials"] } else { &json };
    let text = |name: &str| key[name].as_str().unwrap();
    let end = text("Expiration");
    assert!(end.len() == 20 && end.ends_with('Z'), "as the provider's SDKs parse it: {end}");
    KeyPair::with_token(text("AccessKeyId"), text("AccessKeySecret"), text("SecurityToken"))
}

async fn code_with(client: &mut Client, key: &KeyPair, topic: &str) -> String {
    let call = Call { key: key.clone(), ..Call::new(topic, "x") };
    client.call(&call).await.code()
}

#[tokio::test]
async fn a_role_is_assumed_with_either_signature() {
    let (emulator, mut client) = start(options()).await;
    for method in ["POST", "GET"] {
        for call in four_ways(&Call { method, ..assume_role() }) {
            let answer = client.call(&call).await;
            assert_eq!(answer.json()["AssumedRoleUser"]["Arn"], format!("{ROLE}/tollgate"));
            assert_eq!(code_with(&mut client, &key_of(&answer), "TopicA").await, "");
        }
    }
    let report = emulator.report();
    assert_eq!((report.issued, report.accepted, report.calls), (8, 8, 10), "{report:?}");
}

#[tokio::test]
async fn calls_of_the_token_service_count_towards_no_ceiling() {
    let (emulator, mut client) =
        start(EmulatorOptions { egress_ip_qps: 1, account_qps: 1, ..options() }).await;
    for _ in 0..5 {
        key_of(&client.call(&assume_role()).await);
    }
    assert_eq!(emulator.report().calls, 0);
}

#[tokio::test]
async fn a_session_policy_holds_for_messages() {
    let (_emulator, mut client) = start(options()).await;
    let resource = format!("acs:mq:*:*:topic/{INSTANCE}/Alarm");
    let policy = format!(
        r#"{{"Version":"1","Statement":[{{"Effect":"Allow","Action":"mq:SendMessage","Resource":"{resource}"}}]}}"#
    );
    let key = key_of(&client.call(&assume_role().with("Policy", &policy)).await);
    assert_eq!(code_with(&mut client, &key, "Alarm/fire").await, "");
    assert_eq!(code_with(&mut client, &key, "Other").await, "Forbidden.RAM");
    let again = Call { key, ..assume_role() };
    assert_eq!(client.call(&again).await.code(), "NoPermission", "it may only publish");
}

#[tokio::test]
async fn keys_end_and_are_revoked() {
    let life = Some(Duration::from_secs(1));
    let (emulator, mut client) = start(EmulatorOptions { key_life: life, ..options() }).await;
    let key = key_of(&client.call(&assume_role()).await);
    crate::support::until("it has ended", async || {
        emulator.report().refused.contains_key("InvalidSecurityToken.Expired") || {
            code_with(&mut client, &key, "TopicA").await == "InvalidSecurityToken.Expired"
        }
    })
    .await;
    let answer = client.plain("DELETE", "/_emulator/keys/demo-key-id", "").await;
    assert_eq!(answer.status, 200);
    assert_eq!(client.plain("DELETE", "/_emulator/keys/demo-key-id", "").await.status, 404);
    assert_eq!(client.call(&Call::new("TopicA", "x")).await.code(), "InvalidAccessKeyId.NotFound");

    let new = r#"{"id":"added","secret":"hush","life":"1h"}"#;
    assert_eq!(client.plain("POST", "/_emulator/keys", new).await.status, 200);
    assert_eq!(code_with(&mut client, &KeyPair::new("added", "hush"), "TopicA").await, "");
    let list = client.plain("GET", "/_emulator/keys", "").await;
    let text = String::from_utf8(list.body.to_vec()).unwrap();
    assert!(text.contains("\"added\"") && !text.contains("hush"), "{text}");
    for wrong in [
        "",
        "{}",
        r#"{"id":"","secret":"s"}"#,
        r#"{"id":"a","secret":"s","life":"soon"}"#,
        r#"{"id":"a","secret":"s","policy":{}}"#,
        r#"{"id":"a","secret":"s","other":1}"#,
    ] {
        assert_eq!(client.plain("POST", "/_emulator/keys", wrong).await.status, 400, "{wrong}");
    }
    assert_eq!(client.plain("PUT", "/_emulator/keys", "").await.status, 405);
}

#[tokio::test]
async fn what_the_token_service_refuses() {
    let (_emulator, mut client) = start(options()).await;
    let wrong_key = Call { key: KeyPair::new("demo-key-id", "wrong"), ..assume_role() };
    for (call, code) in [
        (wrong_key, "SignatureDoesNotMatch"),
        (assume_role().without("RoleArn"), "MissingParameter"),
        (assume_role().with("RoleArn", "admin"), "InvalidParameter.RoleArn"),
        (assume_role().with("RoleSessionName", "a b"), "InvalidParameter.RoleSessionName"),
        (assume_role().with("DurationSeconds", "899"), "InvalidParameter.DurationSeconds"),
        (assume_role().with("DurationSeconds", "soon"), "InvalidParameter.DurationSeconds"),
        (assume_role().with("Policy", "{}"), "InvalidParameter.PolicyGrammar"),
        (Call { api_version: "2020-04-20".to_owned(), ..assume_role() }, "InvalidApi.NotFound"),
    ] {
        assert_eq!(client.call(&call).await.code(), code, "{call:?}");
    }
}

#[tokio::test]
async fn a_token_of_an_oidc_provider_needs_no_signature() {
    let (_emulator, mut client) = start(options()).await;
    let token = |claims: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
    let later = jiff::Timestamp::now().as_second() + 60;
    let good = token(&format!(r#"{{"iss":"i","aud":["sts.aliyuncs.com"],"exp":{later}}}"#));
    for (token, code) in [
        (good, ""),
        (
            token(r#"{"iss":"i","aud":"sts.aliyuncs.com","exp":1}"#),
            "AuthenticationFail.OIDCToken.Expired",
        ),
        (
            token(&format!(r#"{{"iss":"i","aud":"other","exp":{later}}}"#)),
            "AuthenticationFail.OIDCToken.Invalid",
        ),
        (token("[]"), "AuthenticationFail.OIDCToken.Invalid"),
        ("none".to_owned(), "AuthenticationFail.OIDCToken.Invalid"),
        (String::new(), "MissingParameter"),
    ] {
        let query = format!(
            "/?Action=AssumeRoleWithOIDC&Version=2015-04-01&Format=JSON&RoleArn={ROLE}&RoleSessionName=ab\
             &OIDCProviderArn=acs:ram::1:oidc-provider/x&OIDCToken={token}"
        );
        let answer = client.plain("POST", &query, "").await;
        assert_eq!(answer.code(), code, "{token}");
        if code.is_empty() {
            assert_eq!(code_with(&mut client, &key_of(&answer), "TopicA").await, "");
        }
    }
}

#[tokio::test]
async fn the_metadata_service_of_both_versions() {
    const PATH: &str = "/latest/meta-data/ram/security-credentials/";
    for access in [MetadataAccess::AnyVersion, MetadataAccess::TokenOnly] {
        let (_emulator, mut client) =
            start(EmulatorOptions { metadata: access, ..options() }).await;
        let put = http::Request::put("/latest/api/token")
            .header("host", "h")
            .header("X-aliyun-ecs-metadata-token-ttl-seconds", "60");
        let token =
            client.try_send(put.body(http_body_util::Full::default()).unwrap()).await.unwrap();
        let token = String::from_utf8(token.body.to_vec()).unwrap();
        let mut get = async |path: &str, token: Option<&str>| {
            let mut request = http::Request::get(path).header("host", "h");
            if let Some(token) = token {
                request = request.header("X-aliyun-ecs-metadata-token", token);
            }
            client.try_send(request.body(http_body_util::Full::default()).unwrap()).await.unwrap()
        };
        let role = get(PATH, Some(&token)).await;
        assert_eq!(&role.body[..], b"EmulatedRole");
        let path = format!("{PATH}EmulatedRole");
        let key = get(&path, Some(&token)).await;
        assert_eq!(key.json()["Code"], "Success");
        key_of(&key);
        assert_eq!(get(&path, Some("other")).await.status, 403);
        let without = if access == MetadataAccess::AnyVersion { 200 } else { 403 };
        assert_eq!(get(&path, None).await.status, without);
        assert_eq!(get(&format!("{PATH}other"), Some(&token)).await.status, 404);
    }
    let (_emulator, mut client) = start(options()).await;
    assert_eq!(client.plain("PUT", "/latest/api/token", "").await.status, 400);
}
