//! Failures on demand.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tollgate::emulator::{EmulatorOptions, Fault, Then};

use crate::client::{Call, Client};
use crate::support::http::BOUND;
use crate::support::until;
use crate::{options, start};

/// From the provider's documents, not from the emulator's table.
const CODES: &[(u16, &[&str])] = &[
    (
        400,
        &[
            "CheckAccountInfoFailed",
            "InstancePermissionCheckFailed",
            "ParameterCheckFailed",
            "PermissionCheckFailed",
            "InvalidParameter.Anything",
            "SignatureDoesNotMatch",
            "IncompleteSignature",
            "SignatureNonceUsed",
            "InvalidTimeStamp.Format",
            "InvalidTimeStamp.Expired",
            "IllegalTimestamp",
            "InvalidAccessKeyId.Inactive",
            "InvalidSecurityToken.Expired",
            "InvalidSecurityToken.Malformed",
            "InvalidSecurityToken.MismatchWithAccessKey",
            "MissingSecurityToken",
            "MissingParameter",
            "InvalidParameter.Format",
            "InvalidSignatureMethod",
            "UnsupportedHTTPMethod",
            "Throttling",
            "Throttling.User",
            "Throttling.Api",
            "Rejected.Throttling",
        ],
    ),
    (403, &["Forbidden.RAM"]),
    (
        404,
        &[
            "ApiNotSupport",
            "InvalidAccessKeyId.NotFound",
            "InvalidApi.NotFound",
            "InvalidProtocol.NeedSsl",
        ],
    ),
    (500, &["InternalError", "SendMessageFailed", "SystemOverFlow", "UnknownError"]),
    (503, &["ServiceUnavailable"]),
];

#[tokio::test]
async fn every_code_has_its_status_and_the_providers_body() {
    let (emulator, mut client) = start(options()).await;
    for (status, codes) in CODES {
        for code in *codes {
            emulator.set_faults(vec![Fault::answer(*code)]).unwrap();
            let answer = client.call(&Call::new("TopicA", "x")).await;
            assert_eq!(answer.status.as_u16(), *status, "{code}");
            assert_eq!(answer.header("content-type"), "application/json;charset=utf-8");
            assert!(!answer.header("date").is_empty());
            let body = answer.json();
            assert_eq!(body["Code"], *code);
            assert_eq!(body["HostId"], emulator.address().to_string());
            assert!(body["Message"].as_str().is_some_and(|message| !message.is_empty()));
            assert!(body["Recommend"].as_str().is_some_and(|url| url.contains(code)));
            let id = body["RequestId"].as_str().unwrap();
            assert_eq!(id, answer.header("x-acs-request-id"));
            assert_eq!(id, uuid::Uuid::parse_str(id).unwrap().to_string().to_uppercase());
            assert_eq!(emulator.report().refused[*code], 1);
        }
    }
    assert_eq!(emulator.report().accepted, 0);
}

#[tokio::test]
async fn an_answer_can_have_another_status_and_a_retry_after() {
    let json = r#"[{"code":"ServiceUnavailable","status":400,"retry_after_ms":700,"times":1}]"#;
    let faults = Fault::parse_list(json.as_bytes()).unwrap();
    let (_emulator, mut client) = start(EmulatorOptions { faults, ..options() }).await;
    let answer = client.call(&Call::new("TopicA", "x")).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.header("x-acs-retry-after"), "700");
    client.publish("TopicA", "x").await;
}

#[tokio::test]
async fn closes_before_and_after_delivery() {
    let (emulator, _client) = start(options()).await;
    for (then, accepted) in [(Then::Close, 0), (Then::DeliverThenClose, 1)] {
        emulator.set_faults(vec![Fault::new(then)]).unwrap();
        let mut client = Client::connect(emulator.address()).await;
        let error = client.try_call(&Call::new("TopicA", "x")).await.unwrap_err();
        assert!(error.is_incomplete_message(), "{error:?}");
        assert_eq!(emulator.report().accepted, accepted);
    }
    assert_eq!(emulator.messages().len(), 1);
    assert_eq!(emulator.report().refused, [("close".to_owned(), 1)].into());
}

#[tokio::test]
async fn hangs_until_the_caller_gives_up() {
    let (emulator, mut client) = start(options()).await;
    emulator.set_faults(vec![Fault { times: Some(1), ..Fault::new(Then::Hang) }]).unwrap();
    let call = Call::new("TopicA", "x");
    tokio::select! {
        answer = client.try_call(&call) => panic!("{answer:?}"),
        () = until("it hangs", async || emulator.report().refused.get("hang") == Some(&1)) => {}
    }
    let mut other = Client::connect(emulator.address()).await;
    other.publish("TopicA", "x").await;
    // a call that hangs does not hold up the end
    timeout(BOUND, emulator.stop()).await.unwrap();
}

#[tokio::test]
async fn answers_without_a_message_id_or_without_json() {
    let (emulator, mut client) = start(options()).await;
    emulator.set_faults(vec![Fault::new(Then::EmptyMsgid)]).unwrap();
    let answer = client.call(&Call::new("TopicA", "x")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["MsgId"], "");
    assert_eq!(answer.json()["RequestId"].as_str().map(str::len), Some(36));

    emulator.set_faults(vec![Fault::new(Then::Html503)]).unwrap();
    let answer = client.call(&Call::new("TopicA", "x")).await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (503, "text/html"));
    assert!(answer.body.starts_with(b"<html>"));
    assert_eq!(emulator.report().accepted, 0);
}

#[tokio::test]
async fn hits_only_its_topic_and_after_the_signature_was_checked() {
    let (emulator, mut client) = start(options()).await;
    let topic = Some("TopicA".to_owned());
    emulator.set_faults(vec![Fault { topic, ..Fault::answer("SystemOverFlow") }]).unwrap();
    client.publish("TopicB", "x").await;
    assert_eq!(client.call(&Call::new("TopicA/sub", "x")).await.status, 500);
    let key = tollgate::emulator::KeyPair::new("demo-key-id", "wrong");
    let forged = Call { key, ..Call::new("TopicA", "x") };
    assert_eq!(client.call(&forged).await.code(), "SignatureDoesNotMatch");
}

#[tokio::test]
async fn latency_of_all_calls_and_of_a_fault() {
    let latency = Duration::from_millis(60);
    let (emulator, mut client) = start(EmulatorOptions { latency, ..options() }).await;
    let begun = Instant::now();
    client.publish("TopicA", "x").await;
    assert!(begun.elapsed() >= latency);

    let slow = Fault { latency: Some(latency), ..Fault::new(Then::Answer) };
    emulator.set_faults(vec![slow]).unwrap();
    let begun = Instant::now();
    client.publish("TopicA", "x").await;
    assert!(begun.elapsed() >= latency * 2, "both add up");
}

#[tokio::test]
async fn set_and_cleared_over_http() {
    let (_emulator, mut client) = start(options()).await;
    let answer = client.plain("POST", "/_emulator/faults", r#"[{"code":"InternalError"}]"#).await;
    assert_eq!(answer.status, 200);
    assert_eq!(client.call(&Call::new("TopicA", "x")).await.code(), "InternalError");
    assert_eq!(client.plain("POST", "/_emulator/faults", "[]").await.status, 200);
    client.publish("TopicA", "x").await;

    for (body, says) in [
        (r#"[{"code":"InternalError","probabilty":1}]"#, "unknown field `probabilty`"),
        (r#"[{"code":"InternalError"},{"then":"answer"}]"#, "fault 1: an answer needs a code"),
        (r#"[{"code":"InternalError","for":"10 apples"}]"#, "apples"),
        ("nonsense", "not a list of faults"),
    ] {
        let answer = client.plain("POST", "/_emulator/faults", body).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "InvalidFaults"));
        let message = answer.json()["Message"].as_str().unwrap().to_owned();
        assert!(message.contains(says), "{message}");
    }
    client.publish("TopicA", "x").await;
}
