//! Calls of the provider's SDKs, more than the ceiling lets through: never over it, none lost, each answered as the
//! provider would.
#![allow(clippy::print_stdout, reason = "figures to quote")]

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;
use tollgate::config::SignatureVersion;
use tollgate::signing::{Call, Credentials, Stamp, sign};

use crate::support::callers::arrive_with;
use crate::support::process::{Emulator, Serve};
use crate::support::{INSTANCE, alone};

const ID: &str = "orders-1";
const SECRET: &str = "hushsecret-of-the-orders";
const CEILING: u64 = 300;
/// For ten seconds.
const PER_SECOND: f64 = 1_000.0;

fn signed(address: &str, number: u64) -> Request<Full<Bytes>> {
    let payload = format!("cGF5bG9hZA=={number}");
    let params = [("InstanceId", INSTANCE), ("MqttTopic", "TopicA"), ("Payload", &payload)];
    let call =
        Call { authority: address, action: "SendMessage", version: "2020-04-20", params: &params };
    let key = Credentials { id: ID, secret: SECRET, token: None };
    let stamp = Stamp::new(Timestamp::now(), u128::from(number) + 1);
    let version = match number % 2 {
        0 => SignatureVersion::HmacSha1,
        _ => SignatureVersion::Acs3,
    };
    let call = sign(version, &call, &key, &stamp);
    let mut request = Request::post(format!("/?{}", call.query)).header("host", address);
    for (name, value) in &call.headers {
        request = request.header(*name, value);
    }
    request.body(Full::new(Bytes::from(call.body))).unwrap()
}

#[tokio::test]
async fn ten_thousand_sdk_calls_at_three_times_the_ceiling() {
    let _one = alone().await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("secret"), SECRET).unwrap();
    let callers = format!(
        r#"[{{ name = "orders", access_key_id = "{ID}", secret_file = "{}" }}]"#,
        path("secret")
    );
    let emulator = Emulator::start(&[]).await;
    let (url, spool, ceiling) = (emulator.url(), path("spool"), CEILING.to_string());
    let settings = [
        ("upstream.endpoint", url.as_str()),
        ("ceilings.egress_ip", &ceiling),
        ("spool.store", "disk"),
        ("spool.path", &spool),
        ("callers", &callers),
        ("sdk.enabled", "true"),
    ];
    let serve = Serve::start(&settings, &[]).await;
    serve.has_secret(SECRET);
    let address = serve.publish.clone();
    let until = Instant::now() + Duration::from_secs(10);
    let answers =
        arrive_with(&address, PER_SECOND, until, 1, |number| signed(&address, number)).await;
    let (mut delivered, mut throttled, mut others) = (HashSet::new(), 0, Vec::new());
    for (_, _, answer) in &answers {
        let answer = answer.as_ref().expect("each is answered");
        let body: Value = serde_json::from_slice(answer.body()).unwrap();
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        match (answer.status().as_u16(), &*text("Code")) {
            (200, "") => assert!(delivered.insert(text("MsgId")), "an id twice: {body}"),
            (400, "Throttling.User") => {
                let wait = answer.headers()["x-acs-retry-after"].to_str().unwrap();
                assert!(wait.parse::<u64>().unwrap() >= 1, "{wait}");
                throttled += 1;
            }
            other => others.push(format!("{other:?}")),
        }
    }
    let report = emulator.report().await;
    println!(
        "{} SDK calls: {} delivered, {throttled} throttled; worst sliding second {}",
        answers.len(),
        delivered.len(),
        report["worst_second"]
    );
    assert!(others.is_empty(), "{:?}", &others[..others.len().min(5)]);
    assert!((9_000..11_000).contains(&answers.len()), "{}", answers.len());
    // What was answered 200 was delivered, and what was not, was not.
    assert_eq!(report["accepted"].as_u64().unwrap(), delivered.len() as u64);
    assert_eq!(report["duplicates"].as_u64().unwrap(), 0, "{report}");
    assert!(report["worst_second"].as_u64().unwrap() <= CEILING, "{report}");
    assert_eq!(report["blocked"], serde_json::json!([]));
    let ids = report["key_ids"].to_string();
    assert!(!ids.contains(ID), "only the central key signs: {ids}");
    assert!(delivered.len() > 1_000 && throttled > 1_000);
}
