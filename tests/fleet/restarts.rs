//! Ordered restarts while the provider takes long to answer: it has taken the messages of all calls that
//! had begun, and their answers come when the sidecar has been asked to stop. None is delivered twice,
//! none is lost, every caller is answered, and the ledger equals the provider's count.
//!
//! `TOLLGATE_RESTARTS=200` is what `make soak` runs.
#![allow(clippy::print_stdout, reason = "figures to quote")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support;
use crate::support::http::{get, raw};
use crate::support::process::{Emulator, Serve, run};
use crate::support::redis::Redis;
use crate::support::until;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

const MESSAGES: usize = 200;
/// How long the provider takes to answer.
const TAKES: std::ops::Range<u64> = 100..2_900;

/// A way to the emulator on which answers take long; the calls themselves do not.
async fn slow(emulator: &Emulator) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let address = emulator.address.clone();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(&address).await.unwrap();
            let (mut from_near, mut to_near) = near.into_split();
            let (mut from_far, mut to_far) = far.into_split();
            tokio::spawn(async move {
                drop(tokio::io::copy(&mut from_near, &mut to_far).await);
            });
            tokio::spawn(async move {
                let mut bytes = vec![0; 16 * 1024];
                while let Ok(read @ 1..) = from_far.read(&mut bytes).await {
                    // An answer comes in one piece.
                    sleep(Duration::from_millis(fastrand::u64(TAKES))).await;
                    if to_near.write_all(&bytes[..read]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}

/// What callers were answered, by their message: `None` for a connection that ended without an answer.
type Answers = Arc<Mutex<BTreeMap<String, Option<u16>>>>;

/// Callers with and without patience, with and without a key.
fn callers(serve: &Serve, life: usize, answers: &Answers) -> Vec<tokio::task::JoinHandle<()>> {
    let ask = |number: usize| {
        let (address, answers) = (serve.publish.clone(), Arc::clone(answers));
        let body = format!("{life}-{number}");
        let more = match number % 4 {
            0 => "prefer: respond-async\r\n".to_owned(),
            1 => format!("prefer: wait=20\r\nidempotency-key: \"{body}\"\r\n"),
            _ => "prefer: wait=20\r\n".to_owned(),
        };
        let request = format!(
            "POST /publish/Topic{} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{more}content-length: {}\r\n\r\n{body}",
            number % 3,
            body.len()
        );
        tokio::spawn(async move {
            let answer = raw(&address, request.as_bytes()).await;
            answers.lock().unwrap().insert(body, answer.map(|answer| answer.status));
        })
    };
    (0..MESSAGES).map(ask).collect()
}

fn times(otherwise: usize) -> usize {
    std::env::var("TOLLGATE_RESTARTS").map_or(otherwise, |n| n.parse().unwrap())
}

#[tokio::test]
async fn a_provider_that_takes_long() {
    restarts(times(4), &[("spool.store", "disk")], &[]).await;
}

/// Each hands its rest over to the fleet's spool, from which the last one delivers.
#[tokio::test]
async fn with_what_is_left_handed_over() {
    let redis = Redis::start();
    redis.begin(&[("account", 1_000)]);
    let url = redis.url();
    let store = [
        ("spool.store", "disk"),
        ("drain.handoff", "true"),
        ("fleet.url", &*url),
        ("ceilings.account", "1000"),
    ];
    restarts(times(3), &store, &[("spool.store", "redis"), ("drain.handoff", "false")]).await;
}

#[tokio::test]
async fn with_a_shared_spool() {
    let redis = Redis::start();
    redis.begin(&[("account", 1_000)]);
    let url = redis.url();
    let store = [("spool.store", "redis"), ("fleet.url", &*url), ("ceilings.account", "1000")];
    restarts(times(3), &store, &[]).await;
}

/// So many lives of a sidecar with these settings, and one more with others in their stead.
async fn restarts<'a>(restarts: usize, store: &[(&'a str, &'a str)], last: &[(&'a str, &'a str)]) {
    let emulator = Emulator::start(&["--account-qps", "0", "--egress-ip-qps", "0"]).await;
    let url = slow(&emulator).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    let mut settings = vec![
        ("upstream.endpoint", url.as_str()),
        // Longer than any answer takes, also on a slow machine; a fleet's calls may take no more.
        ("upstream.connect_timeout", "5s"),
        ("upstream.call_timeout", "5s"),
        ("publish.wait", "20s"),
        ("spool.path", &path),
        ("drain.grace", "1s"),
    ];
    settings.extend(store);
    let (answers, start) = (Answers::default(), Instant::now());
    for life in 0..restarts {
        let serve = Serve::start(&settings, &[]).await;
        let callers = callers(&serve, life, &answers);
        let calls = async || emulator.report().await["calls"].as_u64().unwrap();
        let before = calls().await;
        until("calls are under way", async || calls().await > before + 40).await;
        sleep(Duration::from_millis(fastrand::u64(..600))).await;
        serve.signal(Signal::TERM);
        let (status, log) = serve.ended().await;
        assert_eq!(status.code(), Some(0), "{log}");
        for caller in callers {
            caller.await.unwrap();
        }
    }
    // What was left is delivered by the last one.
    settings.retain(|(key, _)| last.iter().all(|(other, _)| other != key));
    settings.extend(last);
    let serve = Serve::start(&settings, &[]).await;
    let answers = std::mem::take(&mut *answers.lock().unwrap());
    let accepted = answers.iter().filter(|(_, status)| matches!(status, Some(200 | 202)));
    let accepted: Vec<_> = accepted.map(|(body, _)| body).collect();
    let missing = async || {
        let taken = taken(&emulator).await;
        accepted.iter().filter(|body| !taken.contains_key(**body)).count()
    };
    let queued = async || {
        let status = get(&serve.telemetry, "/status.json").await.json();
        status["kept"]["queued"].as_u64().unwrap()
    };
    let mut left = missing().await;
    while left > 0 {
        let what = format!("fewer than {left} are missing");
        until(&what, async || missing().await < left).await;
        left = missing().await;
    }
    until("nothing is left", async || queued().await == 0).await;
    serve.signal(Signal::TERM);
    serve.ended().await;

    let taken = taken(&emulator).await;
    let of = |status: Option<u16>| answers.values().filter(|answer| **answer == status).count();
    let statuses: BTreeSet<_> = answers.values().collect();
    let statuses: BTreeMap<_, _> =
        statuses.into_iter().map(|status| (status, of(*status))).collect();
    println!("{restarts} restarts in {:?}: answered {statuses:?}", start.elapsed());
    assert_eq!(of(None), 0, "every caller is answered");
    let twice: Vec<_> = taken.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "none is delivered twice: {} {:?}", twice.len(), twice.first());
    for (body, answer) in &answers {
        match answer {
            Some(200 | 202) => assert!(taken.contains_key(body), "{body} is lost"),
            Some(503) => assert!(!taken.contains_key(body), "{body} was not sent"),
            other => panic!("{body}: {other:?}"),
        }
    }
    let mut args =
        vec!["bill".to_owned(), "--from".into(), "24h".into(), "-o".into(), "json".into()];
    for (key, value) in settings.iter().chain(&[("upstream.instance_id", support::INSTANCE)]) {
        args.extend(["--set".to_owned(), format!("{key}={value}")]);
    }
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let bill: Value = serde_json::from_str(&run(&args, &[]).await.stdout).unwrap();
    let rows = bill["rows"].as_array().unwrap();
    let sum = |name: &str| rows.iter().map(|row| row[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("messages"), sum("uncertain")), (taken.len() as u64, 0), "{bill}");
}

/// How often the provider took each message.
async fn taken(emulator: &Emulator) -> BTreeMap<String, usize> {
    let mut taken = BTreeMap::new();
    let text = get(&emulator.address, "/_emulator/messages").await.text();
    for message in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let payload = STANDARD.decode(message["payload"].as_str().unwrap()).unwrap();
        *taken.entry(String::from_utf8(payload).unwrap()).or_default() += 1;
    }
    taken
}
