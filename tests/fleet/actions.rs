//! `sdk.actions` in a fleet: the ceiling of an operation is the account's.

use jiff::Timestamp;
use tokio::task::JoinSet;
use tollgate::config::SignatureVersion;
use tollgate::emulator::{Emulator, EmulatorOptions, KeyPair};
use tollgate::signing::{Call, Credentials, Stamp, sign};

use crate::support::http::post;
use crate::support::redis::Redis;
use crate::support::{INSTANCE, config, sidecar};

const SIDECARS: usize = 3;
const CALLS: usize = 12;

/// Three sidecars with more than the operation may have: together they keep its ceiling, and its keys are among those
/// of the account.
#[tokio::test]
async fn an_operation_has_one_ceiling_for_all() {
    let redis = Redis::start();
    redis.begin(&[("account", 1_000)]);
    redis.begin(&[("action:RevokeToken:account", 5)]);
    let key = KeyPair { id: "testid".to_owned(), secret: "testsecret".to_owned(), token: None };
    let listen = "127.0.0.1:0".parse().unwrap();
    let options = EmulatorOptions { listen, keys: vec![key], ..EmulatorOptions::default() };
    let emulator = Emulator::start(options).unwrap();
    let (url, at) = (emulator.url(), redis.url());
    let flags = [
        ("sdk.enabled", "true"),
        ("sdk.accept", "any"),
        ("sdk.actions", r#"["RevokeToken"]"#),
        ("sdk.wait", "9s"),
        ("fleet.url", &*at),
        ("fleet.expected_sidecars", "3"),
    ];
    let mut fleet = Vec::new();
    for _ in 0..SIDECARS {
        fleet.push(sidecar(&config(&url, &flags)).await);
    }
    let mut calls = JoinSet::new();
    for (n, (_, to, _)) in fleet.iter().enumerate() {
        for nonce in 0..CALLS {
            let (to, nonce) = (to.clone(), (n * CALLS + nonce) as u128);
            calls.spawn(async move {
                let caller = Credentials { id: "any", secret: "any", token: None };
                let call = Call {
                    authority: "localhost",
                    action: "RevokeToken",
                    version: "2020-04-20",
                    params: &[("InstanceId", INSTANCE)],
                };
                let stamp = Stamp::new(Timestamp::now(), nonce);
                let signed = sign(SignatureVersion::HmacSha1, &call, &caller, &stamp);
                let headers: Vec<_> =
                    signed.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
                let path = format!("/?{}", signed.query);
                let answer = post(&to, &path, &headers, signed.body.as_bytes()).await;
                assert!([200, 400].contains(&answer.status), "{}", answer.text());
                answer.status
            });
        }
    }
    let done = calls.join_all().await.into_iter().filter(|status| *status == 200).count();
    let report = emulator.report();
    let worst = report.worst_second_by_operation["RevokeToken"];
    assert!((1..=5).contains(&worst), "{report:?}");
    assert!(report.refused.is_empty() && done >= 10, "{done} {report:?}");
    let keys: Vec<String> = redis.tell("KEYS tollgate:*");
    assert!(keys.iter().any(|key| key.contains(":action:RevokeToken:")), "{keys:?}");
    assert!(keys.iter().all(|key| key.starts_with("tollgate:{default}:")), "{keys:?}");
    for (sidecar, ..) in fleet {
        sidecar.drain(std::future::ready(())).await;
    }
}
