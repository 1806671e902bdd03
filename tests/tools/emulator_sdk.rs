//! The provider's own Python SDK against the emulator. Needs `tests/setup.sh`.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;
use tollgate::emulator::{Emulator, Fault};

use crate::client::INSTANCE;
use crate::support::secrets::{Searched as _, Secrets};
use crate::{options, support};

/// Runs `tests/python/sdk_publish.py` on a list of calls; one result a call.
async fn publish(emulator: &Emulator, calls: &Value) -> Vec<Value> {
    publish_to(&emulator.address().to_string(), calls).await
}

async fn publish_to(address: &str, calls: &Value) -> Vec<Value> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/test-venv/bin/python");
    assert!(python.exists(), "the provider's SDK is missing: run tests/setup.sh");
    let output = Command::new(python)
        .arg(root.join("tests/python/sdk_publish.py"))
        .arg(address)
        .arg(calls.to_string())
        .kill_on_drop(true)
        .searched();
    let output = timeout(Duration::from_mins(1), output).await.unwrap().unwrap();
    let mut secrets = Secrets::default();
    for call in calls.as_array().unwrap() {
        secrets.add(call["secret"].as_str().unwrap());
    }
    secrets.search(&output);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "run tests/setup.sh? {errors}");
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn call(key: [&str; 3], signature: &str, payload: &str) -> Value {
    let [id, secret, token] = key;
    json!({
        "id": id, "secret": secret, "token": token, "signature": signature,
        "instance": INSTANCE, "topic": "TopicA/p2p/GID_test@@@DEVICE_001", "payload": payload,
    })
}

const LASTING: [&str; 3] = ["demo-key-id", "demo-key-secret", ""];
const TEMPORARY: [&str; 3] = ["sts-1", "sts-secret", "CAIS-token-1+/=="];

#[tokio::test]
async fn the_sdk_publishes_with_every_signature_and_kind_of_key() {
    let emulator = Emulator::start(options()).unwrap();
    let mut calls = Vec::new();
    let mut payloads = Vec::new();
    for key in [LASTING, TEMPORARY] {
        for signature in ["", "v2"] {
            for payload in ["aGVsbG8+d29ybGQ/", "blank +/=&?%*~ é \u{1f980}"] {
                calls.push(call(key, signature, payload));
                payloads.push(payload);
            }
        }
    }
    calls.push(call(LASTING, "", &"A".repeat(60_000)));
    let long = "A".repeat(60_000);
    payloads.push(&long);

    let results = publish(&emulator, &calls.into()).await;
    let messages = emulator.messages();
    assert_eq!((results.len(), messages.len()), (9, 9), "{results:?}");
    for ((result, message), payload) in results.iter().zip(&messages).zip(payloads) {
        assert_eq!(result["MsgId"], message.msg_id, "{result}");
        assert_eq!(message.payload, payload);
        assert_eq!(message.topic, "TopicA/p2p/GID_test@@@DEVICE_001");
        assert_eq!(message.instance, INSTANCE);
    }
}

/// The same through the command, as a user would start it.
#[tokio::test]
async fn the_sdk_publishes_through_the_command() {
    let keys = ["--keys", "stsid=stssecret:CAIS-token-1+/=="];
    let emulator = support::process::Emulator::start(&keys).await;
    let keys = [["testid", "testsecret", ""], ["stsid", "stssecret", "CAIS-token-1+/=="]];
    let calls: Vec<_> = keys
        .into_iter()
        .flat_map(|key| ["", "v2"].map(|signature| call(key, signature, "aGVsbG8+d29ybGQ/")))
        .collect();
    let results = publish_to(&emulator.address, &calls.into()).await;
    let messages = support::http::get(&emulator.address, "/_emulator/messages").await.text();
    let messages: Vec<Value> =
        messages.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((results.len(), messages.len()), (4, 4), "{results:?}");
    for (result, message) in results.iter().zip(&messages) {
        assert_eq!(result["MsgId"], message["MsgId"]);
        assert_eq!(message["payload"], "aGVsbG8+d29ybGQ/");
    }
}

#[tokio::test]
async fn the_sdk_reads_refusals() {
    let emulator = Emulator::start(options()).unwrap();
    let wrong = ["demo-key-id", "wrong", ""];
    let no_token = ["sts-1", "sts-secret", ""];
    let calls = [call(wrong, "", "x"), call(wrong, "v2", "x"), call(no_token, "", "x")];
    let results = publish(&emulator, &calls.into()).await;
    assert_eq!(results[0]["Code"], "SignatureDoesNotMatch", "{results:?}");
    assert_eq!(results[1]["Code"], "SignatureDoesNotMatch");
    assert_eq!(results[2]["Code"], "MissingSecurityToken");

    let throttled = Fault { retry_after_ms: Some(700), ..Fault::answer("Throttling.User") };
    emulator.set_faults(vec![throttled]).unwrap();
    let results = publish(&emulator, &vec![call(LASTING, "", "x")].into()).await;
    assert_eq!(results[0]["Code"], "Throttling.User");
    assert_eq!(results[0]["RetryAfter"], 700);
    assert_eq!(emulator.report().accepted, 0);
}

/// The provider's own library for keys gets one from `tollgate keyring` by its credentials-URI provider, and from
/// the emulator's services by its own ones; with each, the SDK publishes.
#[tokio::test]
async fn the_credentials_library_gets_keys_that_publish() {
    const SHARED: &str = "a-shared-token-of-this-test";
    let emulator = Emulator::start(options()).unwrap();
    let address = emulator.address().to_string();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("shared"), SHARED).unwrap();
    std::fs::write(path("token"), service_account_token()).unwrap();
    let config = format!(
        r#"
        [keys]
        sts_endpoint = "http://{address}"
        [keyring]
        listen = "127.0.0.1:0"
        role_arn = "acs:ram::1000000000000001:role/tollgate"
        [[keyring.callers]]
        name = "python"
        token_file = "{}"
        instances = ["{INSTANCE}"]
        topics = ["Alarm"]
        "#,
        path("shared")
    );
    std::fs::write(path("keyring.toml"), config).unwrap();
    let keyring = support::process::Keyring::start(&path("keyring.toml"), &LASTING[..2]).await;
    let uri = format!("http://{}/credentials?token={SHARED}", keyring.address);

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(root.join("target/test-venv/bin/python"))
        .arg(root.join("tests/python/sdk_keys.py"))
        .args([&address, &uri, &path("token")])
        .kill_on_drop(true)
        .searched();
    let output = timeout(Duration::from_mins(1), output).await.unwrap().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "run tests/setup.sh? {errors}\n{}", keyring.log());
    let lines = String::from_utf8(output.stdout).unwrap();
    let results: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(results.len(), 4, "{results:?}");
    let messages = emulator.messages();
    for (result, message) in results.iter().zip(&messages) {
        assert!(result["id"].as_str().unwrap().starts_with("STS."), "{result}");
        assert_eq!(result["MsgId"], message.msg_id, "{result}");
    }
    assert_eq!(messages.len(), 4);
    let log = keyring.log();
    assert_eq!(log.matches("key handed out").count(), 1, "{log}");
    // The one that Python had.
    let target = format!("/credentials?token={SHARED}");
    let handed = support::http::get(&keyring.address, &target).await.json();
    for part in ["AccessKeySecret", "SecurityToken"] {
        keyring.has_secret(handed[part].as_str().unwrap());
    }
    for secret in [SHARED, LASTING[1]] {
        assert!(!log.contains(secret), "{log}");
    }
}

fn service_account_token() -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let ends = jiff::Timestamp::now().as_second() + 3_600;
    let claims = format!(r#"{{"iss":"https://issuer","aud":"sts.aliyuncs.com","exp":{ends}}}"#);
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
}
