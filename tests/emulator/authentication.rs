//! Signatures, clocks, nonces, keys and tokens.

use tollgate::emulator::{EmulatorOptions, KeyPair};

use crate::client::{Call, Client, Version, time};
use crate::{four_ways, options, start};

async fn code_of(client: &mut Client, call: &Call) -> String {
    let answer = client.call(call).await;
    if answer.status == 200 {
        assert_eq!(answer.json()["MsgId"].as_str().map(str::len), Some(32));
    }
    answer.code()
}

#[tokio::test]
async fn takes_both_signatures_in_query_and_form() {
    let (emulator, mut client) = start(options()).await;
    let payload = "blank +/=&?%*~ é \u{1f980}";
    for method in ["POST", "GET"] {
        let call = Call { method, ..Call::new("TopicA/p2p/GID_test@@@DEVICE_001", payload) };
        for call in four_ways(&call) {
            assert_eq!(code_of(&mut client, &call).await, "", "{call:?}");
        }
    }
    let messages = emulator.messages();
    assert_eq!(messages.len(), 8);
    assert!(messages.iter().all(|message| message.payload == payload));
}

#[tokio::test]
async fn refuses_a_wrong_secret_and_shows_its_string_to_sign() {
    let (emulator, mut client) = start(options()).await;
    let key = KeyPair::new("demo-key-id", "wrong");
    for call in four_ways(&Call { key, ..Call::new("TopicA", "x") }) {
        let answer = client.call(&call).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (400, "SignatureDoesNotMatch")
        );
        let answer = answer.json();
        let message = answer["Message"].as_str().unwrap();
        let (_, shown) = message.split_once("server string to sign is:").unwrap();
        let starts = match call.version {
            Version::V1 => "POST&%2F&AccessKeyId%3Ddemo-key-id%26Action%3DSendMessage%26",
            Version::V3 => "ACS3-HMAC-SHA256\n",
        };
        assert!(shown.starts_with(starts), "{shown}");
    }
    assert_eq!(emulator.report().refused["SignatureDoesNotMatch"], 4);
    assert!(emulator.report().keys.is_empty());
}

#[tokio::test]
async fn refuses_times_outside_the_window_of_its_own_clock() {
    let hour = 3600;
    let (_emulator, mut client) = start(EmulatorOptions { clock_offset: hour, ..options() }).await;
    // the few seconds short of the edge are for a slow machine
    for (offset, code) in [
        (hour, ""),
        (hour - 14 * 60, ""),
        (hour + 14 * 60, ""),
        (hour - 15 * 60 - 1, "InvalidTimeStamp.Expired"),
        (hour + 15 * 60 + 30, "InvalidTimeStamp.Expired"),
        (0, "InvalidTimeStamp.Expired"),
    ] {
        for call in four_ways(&Call { time: time(offset), ..Call::new("TopicA", "x") }) {
            assert_eq!(code_of(&mut client, &call).await, code, "{offset} {call:?}");
        }
    }
    let odd = Call { time: "2024-01-02 03:04:05".to_owned(), ..Call::new("TopicA", "x") };
    for call in four_ways(&odd) {
        assert_eq!(code_of(&mut client, &call).await, "InvalidTimeStamp.Format");
    }
    let now = || jiff::Timestamp::now().as_second();
    let before = now();
    let answer = client.call(&Call::new("TopicA", "x")).await;
    let date = jiff::fmt::rfc2822::parse(answer.header("date")).unwrap();
    let date = date.timestamp().as_second();
    assert!((before + hour..=now() + hour).contains(&date), "{date} at {before}");
}

#[tokio::test]
async fn refuses_a_nonce_that_was_used() {
    let (emulator, mut client) = start(options()).await;
    for call in four_ways(&Call::new("TopicA", "x")) {
        assert_eq!(code_of(&mut client, &call).await, "");
        let answer = client.call(&call).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "SignatureNonceUsed"));
    }
    // one that was refused before its signature was seen to be right is not used up
    let nonce = "n".to_owned();
    let key = KeyPair::new("demo-key-id", "wrong");
    let forged = Call { key, nonce: nonce.clone(), ..Call::new("TopicA", "x") };
    assert_eq!(code_of(&mut client, &forged).await, "SignatureDoesNotMatch");
    let honest = Call { nonce, ..Call::new("TopicA", "x") };
    assert_eq!(code_of(&mut client, &honest).await, "");
    emulator.reset();
    assert_eq!(code_of(&mut client, &honest).await, "");
}

#[tokio::test]
async fn a_temporary_key_needs_its_token() {
    let (emulator, mut client) = start(options()).await;
    let with = |id: &str, secret: &str, token: Option<&str>| {
        let key = KeyPair { token: token.map(str::to_owned), ..KeyPair::new(id, secret) };
        four_ways(&Call { key, ..Call::new("TopicA", "x") })
    };
    for (id, secret, token, code) in [
        ("sts-1", "sts-secret", Some("CAIS-token-1+/=="), ""),
        ("sts-1", "sts-secret", None, "MissingSecurityToken"),
        ("sts-1", "sts-secret", Some("nonsense"), "InvalidSecurityToken.Malformed"),
        (
            "sts-1",
            "sts-secret",
            Some("CAIS-token-2+/=="),
            "InvalidSecurityToken.MismatchWithAccessKey",
        ),
        (
            "demo-key-id",
            "demo-key-secret",
            Some("CAIS-token-1+/=="),
            "InvalidSecurityToken.MismatchWithAccessKey",
        ),
        ("nobody", "secret", None, "InvalidAccessKeyId.NotFound"),
    ] {
        for call in with(id, secret, token) {
            assert_eq!(code_of(&mut client, &call).await, code, "{call:?}");
        }
    }
    assert_eq!(emulator.report().keys, [("sts-1".to_owned(), 4)].into());
}

#[tokio::test]
async fn demands_every_part_of_a_v1_signature() {
    let (_emulator, mut client) = start(options()).await;
    let v1 = Call { version: Version::V1, ..Call::new("TopicA", "x") };
    for (name, value, code) in [
        ("AccessKeyId", "", "IncompleteSignature"),
        ("SignatureNonce", "", "IncompleteSignature"),
        ("SignatureMethod", "", "IncompleteSignature"),
        ("SignatureVersion", "", "IncompleteSignature"),
        ("Timestamp", "", "IncompleteSignature"),
        ("SignatureVersion", "2.0", "IncompleteSignature"),
        ("SignatureMethod", "HMAC-SHA256", "InvalidSignatureMethod"),
        ("Action", "", "MissingParameter"),
        ("Version", "", "MissingParameter"),
        ("Version", "2019-01-01", "InvalidApi.NotFound"),
        ("Action", "TagResources", "InvalidApi.NotFound"),
        ("Format", "XML", "InvalidParameter.Format"),
        ("Format", "json", ""),
        ("Format", "", ""),
        ("RegionId", "cn-hangzhou", ""),
    ] {
        let nonce = uuid::Uuid::new_v4().to_string();
        let call = Call { nonce, ..v1.clone() }.with(name, value);
        assert_eq!(code_of(&mut client, &call).await, code, "{name}={value}");
    }
    let answer = client.plain("POST", "/?Action=SendMessage&Version=2020-04-20", "").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "IncompleteSignature"));
}

#[tokio::test]
async fn demands_every_part_of_a_v3_signature() {
    let (_emulator, mut client) = start(options()).await;
    let v3 = Call::new("TopicA", "x");
    for (call, code) in [
        (Call { time: String::new(), ..v3.clone() }, "IncompleteSignature"),
        (Call { nonce: String::new(), ..v3.clone() }, "IncompleteSignature"),
        (Call { action: String::new(), ..v3.clone() }, "MissingParameter"),
        (Call { api_version: String::new(), ..v3.clone() }, "MissingParameter"),
        (Call { action: "TagResources".to_owned(), ..v3.clone() }, "InvalidApi.NotFound"),
    ] {
        assert_eq!(code_of(&mut client, &call).await, code, "{call:?}");
    }
    let unknown = client.call(&Call { action: "X".to_owned(), ..v3 }).await;
    assert_eq!(unknown.status, 404);
}

#[tokio::test]
async fn demands_a_right_message() {
    let (emulator, mut client) = start(options()).await;
    for name in ["InstanceId", "MqttTopic", "Payload"] {
        for call in four_ways(&Call::new("TopicA", "x").without(name)) {
            assert_eq!(code_of(&mut client, &call).await, "MissingParameter", "{name}");
        }
    }
    for topic in ["ab", "TopicA/#", "TopicA//x", "TopicA/p2p/nobody"] {
        for call in four_ways(&Call::new(topic, "x")) {
            assert_eq!(code_of(&mut client, &call).await, "ParameterCheckFailed", "{topic}");
        }
    }
    assert_eq!(emulator.report().accepted, 0);
}

#[tokio::test]
async fn a_payload_over_64_kb_gets_an_empty_message_id() {
    let (emulator, mut client) = start(options()).await;
    for (length, taken) in [(65_536, true), (65_537, false)] {
        let mut call = Call::new("TopicA", &"x".repeat(length));
        call.place = crate::client::Place::Form;
        let answer = client.call(&call).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json()["MsgId"] != "", taken);
    }
    let report = emulator.report();
    assert_eq!((report.accepted, report.refused["empty-msgid"]), (1, 1));
}
