//! What tollgate sends verifies under the official Python SDK's own signing functions.

use std::path::Path;
use std::process::Stdio;

use crate::support::http::{get, post, series};
use crate::support::{INSTANCE, config, sidecar_with};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tollgate::keys::{Key, Keys};

/// The provider's SDK as an upstream; ends with its handle.
async fn sdk_upstream() -> (Child, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/test-venv/bin/python");
    assert!(python.exists(), "the official SDK is not installed: run tests/setup.sh");
    let mut child = Command::new(python)
        .arg(root.join("tests/python/verify.py"))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let port = lines.next_line().await.unwrap().expect("a port");
    (child, format!("http://127.0.0.1:{port}"))
}

fn expected(topic: &str, body: &[u8]) -> String {
    let hash =
        Sha256::new().chain_update(format!("{INSTANCE}\n{topic}\n")).chain_update(body).finalize();
    hash.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

#[tokio::test]
async fn every_body_and_topic_in_both_versions_with_and_without_a_token() {
    let (_upstream, url) = sdk_upstream().await;
    let mut random = fastrand::Rng::with_seed(20_201_121);
    let keys =
        [("testid", "testsecret", None), ("stsid", "stssecret", Some("CAISsecuritytoken+/=="))];
    for signature in ["hmac-sha1", "acs3-hmac-sha256"] {
        for (id, secret, token) in keys {
            let config = config(&url, &[("upstream.signature", signature)]);
            let key = Key::new(id, secret.into(), token.map(Into::into), None).unwrap();
            let (_sidecar, publish, telemetry) = sidecar_with(&config, Keys::fixed(key)).await;
            let mut sent = 0.0;
            for topic in ["TopicA", "TopicA/sub1/sub-2_x", "TopicA/p2p/GID_test@@@DEVICE_001"] {
                for size in [0, 1, 255, 4_096, 49_152] {
                    let body: Vec<u8> = (0..size).map(|_| random.u8(..)).collect();
                    let path = format!("/publish/{}", topic.replace('@', "%40"));
                    let answer = post(&publish, &path, &[], &body).await;
                    let what = format!("{signature} {topic} {size} bytes");
                    assert_eq!(answer.status, 200, "{what}: {}", answer.json());
                    assert_eq!(answer.json()["MsgId"], expected(topic, &body), "{what}");
                    sent += 1.0;
                }
            }
            let metrics = get(&telemetry, "/metrics").await.text();
            let ok = "tollgate_upstream_calls_total{kind=\"first\",code=\"OK\"}";
            assert!((series(&metrics, ok) - sent).abs() < 0.5, "each at the first try");
        }
    }
}

/// The verification can fail.
#[tokio::test]
async fn a_wrong_secret_is_found_out() {
    let (_upstream, url) = sdk_upstream().await;
    for signature in ["hmac-sha1", "acs3-hmac-sha256"] {
        let config = config(&url, &[("upstream.signature", signature)]);
        let wrong = Key::new("testid", "wrongsecret".into(), None, None).unwrap();
        let (_sidecar, publish, _) = sidecar_with(&config, Keys::fixed(wrong)).await;
        let answer = post(&publish, "/publish/TopicA", &[], b"x").await;
        assert_eq!(
            (answer.status, &answer.json()["upstream"]["Code"]),
            (502, &"SignatureDoesNotMatch".into())
        );
    }
}
