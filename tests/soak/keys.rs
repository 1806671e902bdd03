//! Keys that live 20 s, renewed under 500 messages a second for two minutes: no refused call reaches a caller, and
//! none is lost, also while the service that gives them out is down for 15 s. `TOLLGATE_KEYS_RUN` is another
//! length in seconds.
#![allow(clippy::print_stdout, reason = "figures to quote")]

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::support::http::{get, post};
use crate::support::process::{Emulator, Serve};
use crate::support::until;

/// Seconds.
const RUN: u64 = 120;
/// Seconds into the run.
const DOWN_AFTER: u64 = 10;
const MESSAGES_A_TICK: usize = 50;

async fn renewed_under_load(down: Option<(Duration, &'static str)>) {
    let args = ["--account-qps", "0", "--egress-ip-qps", "0", "--key-life", "20s"];
    let emulator = Emulator::start(&args).await;
    let url = emulator.url();
    let settings = [
        ("upstream.endpoint", url.as_str()),
        ("ceilings.account", "none"),
        ("keys.source", "role"),
        ("keys.role_arn", "acs:ram::1000000000000001:role/tollgate"),
        ("keys.sts_endpoint", &url),
    ];
    let serve = Serve::start(&settings, &[]).await;
    until("it has a key", async || get(&serve.telemetry, "/startupz").await.status == 200).await;
    let seconds = std::env::var("TOLLGATE_KEYS_RUN").map_or(RUN, |text| text.parse().unwrap());
    let begun = Instant::now();
    let mut ticks = interval(Duration::from_millis(100));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut publishes = JoinSet::new();
    let (mut failed, mut messages, mut down) = (Vec::new(), 0_u64, down);
    while begun.elapsed() < Duration::from_secs(seconds) {
        ticks.tick().await;
        if let Some((at, fault)) = down
            && begun.elapsed() >= at
        {
            post(&emulator.address, "/_emulator/faults", &[], fault.as_bytes()).await;
            down = None;
        }
        for _ in 0..MESSAGES_A_TICK {
            let address = serve.publish.clone();
            publishes.spawn(async move {
                let answer = post(&address, "/publish/TopicA", &[], b"hello").await;
                (answer.status, answer.text())
            });
            messages += 1;
        }
        while let Some(ended) = publishes.try_join_next() {
            failed.extend(Some(ended.unwrap()).filter(|(status, _)| *status != 200));
        }
    }
    failed.extend(publishes.join_all().await.into_iter().filter(|(status, _)| *status != 200));
    assert_eq!(failed, [], "of {messages}:\n{}", serve.log());
    let report = emulator.report().await;
    println!("{messages} messages, {} keys, refused: {}", report["issued"], report["refused"]);
    assert_eq!(report["accepted"], messages);
    // One about every two seconds, and none for 15 s at most.
    let least = seconds.saturating_sub(15) / 4;
    assert!(report["issued"].as_u64().unwrap() > least, "{report}");
}

#[tokio::test]
async fn keys_that_live_twenty_seconds() {
    renewed_under_load(None).await;
}

#[tokio::test]
async fn the_same_while_the_service_refuses_connections_for_fifteen_seconds() {
    let fault = r#"[{"action":"AssumeRole","then":"close","for":"15s"}]"#;
    renewed_under_load(Some((Duration::from_secs(DOWN_AFTER), fault))).await;
}

#[tokio::test]
async fn the_same_while_the_service_hangs_for_fifteen_seconds() {
    let fault = r#"[{"action":"AssumeRole","then":"hang","for":"15s"}]"#;
    renewed_under_load(Some((Duration::from_secs(DOWN_AFTER), fault))).await;
}
