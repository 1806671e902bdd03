//! Callers of one sidecar, one of which floods.
#![allow(clippy::print_stdout, reason = "figures to quote")]

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::time::Instant;

use crate::support::alone;
use crate::support::callers::{Answered, arrive_with};
use crate::support::http::{get, post, series};
use crate::support::process::{Emulator, Serve};

const NAMES: [&str; 4] = ["flood", "a", "b", "c"];
/// Calls a second of the ceiling, and of each share of it.
const CEILING: f64 = 120.0;
const SHARE: f64 = CEILING / 4.0;
const LOAD: Duration = Duration::from_secs(12);

fn token(name: &str) -> String {
    format!("hushsecret-of-caller-{name}")
}

/// The answers of each caller, which sends so many messages a second.
async fn beside(rates: [f64; 4]) -> [Vec<Answered>; 4] {
    let folder = tempfile::tempdir().unwrap();
    let tables = NAMES.map(|name| {
        let path = folder.path().join(name);
        std::fs::write(&path, token(name)).unwrap();
        format!(r#"{{ name = "{name}", token_file = "{}" }}"#, path.display())
    });
    let emulator = Emulator::start(&[]).await;
    let (url, callers) = (emulator.url(), format!("[{}]", tables.join(", ")));
    let ceiling = CEILING.to_string();
    let settings = [
        ("upstream.endpoint", url.as_str()),
        ("ceilings.account", &ceiling),
        ("callers", &callers),
        ("publish.wait", "2s"),
    ];
    let serve = Serve::start(&settings, &[]).await;
    for name in NAMES {
        serve.has_secret(&token(name));
    }
    // What processes before this one have sent is not known: the ceiling opens with the first answers.
    let bearer = format!("Bearer {}", token("flood"));
    for _ in 0..20 {
        let headers = [("authorization", &*bearer), ("prefer", "wait=20")];
        assert_eq!(post(&serve.publish, "/publish/TopicA", &headers, b"first").await.status, 200);
    }
    let until = Instant::now() + LOAD;
    let load = |n: usize| {
        let (address, bearer) = (serve.publish.clone(), format!("Bearer {}", token(NAMES[n])));
        async move {
            let request = |number| {
                let request = Request::post("/publish/TopicA")
                    .header("host", &address)
                    .header("authorization", &bearer);
                request.body(Full::new(Bytes::from(format!("{n}-{number}")))).unwrap()
            };
            arrive_with(&address, rates[n], until, n as u64, request).await
        }
    };
    let (flood, a, b, c) = tokio::join!(load(0), load(1), load(2), load(3));
    let report = emulator.report().await;
    assert!(report["worst_second"].as_f64().unwrap() <= CEILING, "{report}");
    let metrics = get(&serve.telemetry, "/metrics").await.text();
    for (name, answers) in NAMES.iter().zip([&flood, &a, &b, &c]) {
        let counted = series(
            &metrics,
            &format!(r#"tollgate_caller_billable_messages_total{{caller="{name}"}}"#),
        );
        let first = if *name == "flood" { 20 } else { 0 };
        let delivered = first + answers.iter().filter(|answer| status(answer) == 200).count();
        assert!((counted - delivered as f64).abs() < 0.5, "{name}: {counted} of {delivered}");
    }
    [flood, a, b, c]
}

fn status((_, _, answer): &Answered) -> u16 {
    answer.as_ref().map_or(0, |answer| answer.status().as_u16())
}

fn p99(answers: &[Vec<Answered>]) -> Duration {
    let mut took: Vec<_> = answers.iter().flatten().map(|(_, took, _)| *took).collect();
    took.sort();
    took[took.len() - took.len() / 100 - 1]
}

/// One sends twenty times its share, three send within theirs: all of theirs are delivered, and the one that floods
/// is refused. The times are shown: how long they are is the machine's affair too.
#[tokio::test]
async fn one_that_floods_is_refused_and_no_other() {
    let _one = alone().await;
    let calm = beside([SHARE, SHARE * 0.7, SHARE * 0.7, SHARE * 0.7]).await;
    let flooded = beside([SHARE * 20.0, SHARE * 0.7, SHARE * 0.7, SHARE * 0.7]).await;
    let [with, without] = [&flooded, &calm].map(|all| p99(&all[1..]));
    let refused = flooded[0].iter().filter(|answer| status(answer) == 429).count();
    println!(
        "p99 of three within their shares: {without:?}, beside a flood {with:?}; of the flood {refused} of {} refused",
        flooded[0].len()
    );
    for (n, answers) in calm[1..].iter().chain(&flooded[1..]).enumerate() {
        let others: Vec<_> = answers.iter().map(status).filter(|status| *status != 200).collect();
        assert!(others.is_empty(), "{n}: {others:?}");
    }
    assert!(refused * 2 > flooded[0].len(), "{refused} of {}", flooded[0].len());
    let flood_waits = p99(&flooded[..1]);
    assert!(with * 3 < flood_waits, "{with:?} of {flood_waits:?}");
}
