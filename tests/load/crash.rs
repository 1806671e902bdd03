//! kill -9 at any moment, again and again, under load and with faults: what was accepted is
//! delivered, and twice only where nobody could know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support;
use crate::support::http::{get, parse, post};
use crate::support::process::{Emulator, Serve, run};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// `TOLLGATE_CRASHES=10000 cargo test --release --test load crash` for a long night.
const CRASHES: usize = 150;
const CALLERS: usize = 8;

/// Each process calls from an address of its own, so that the provider's books say whose a call was. Its
/// clock would not: on a busy machine it notes a call long after the process that made it has died.
fn address(cycle: usize) -> String {
    format!("127.0.{}.{}", 1 + cycle / 250, 1 + cycle % 250)
}

/// Posts until the process is gone. Every second caller would rather not wait.
async fn caller(address: String, caller: usize, cycle: usize, accepted: Arc<Mutex<Vec<String>>>) {
    let prefer = if caller.is_multiple_of(2) { "respond-async" } else { "wait=2" };
    for n in 0.. {
        let body = format!("{cycle}-{caller}-{n}");
        let request = format!(
            "POST /publish/TopicA HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nprefer: {prefer}\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let Ok(mut stream) = TcpStream::connect(&address).await else { return };
        let mut answer = Vec::new();
        if stream.write_all(request.as_bytes()).await.is_err()
            || stream.read_to_end(&mut answer).await.is_err()
        {
            return;
        }
        // Cut off by the crash: nobody was told anything.
        let Some(answer) = parse(&answer) else { return };
        if matches!(answer.status, 200 | 202)
            && serde_json::from_slice::<Value>(&answer.body).is_ok()
        {
            accepted.lock().unwrap().push(body);
        }
    }
}

#[tokio::test]
async fn kill_nine_at_any_moment() {
    let _alone = support::beside_others().await;
    let crashes = std::env::var("TOLLGATE_CRASHES").ok().and_then(|n| n.parse().ok());
    let crashes = crashes.unwrap_or(CRASHES);
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool").display().to_string();
    let emulator = Emulator::start(&["--egress-ip-qps", "0", "--account-qps", "0"]).await;
    let faults = br#"[{"code":"SendMessageFailed","probability":0.2},{"code":"SystemOverFlow","probability":0.05}]"#;
    assert_eq!(post(&emulator.address, "/_emulator/faults", &[], faults).await.status, 200);
    let settings = [
        ("upstream.endpoint", &*emulator.url()),
        ("spool.store", "disk"),
        ("spool.path", &spool),
        // Files end and are rewritten while the process is killed.
        ("spool.max_bytes", "8MiB"),
        ("retry.base", "20ms"),
        ("retry.cap", "200ms"),
    ]
    .map(|(key, value)| (key, value.to_owned()));
    let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, &**value)).collect();

    let accepted = Arc::new(Mutex::new(Vec::new()));
    let mut rng = fastrand::Rng::with_seed(20_261_123);
    for cycle in 0..crashes {
        let from = address(cycle);
        let own = [("upstream.egress_addresses", &*from)];
        let serve = Serve::start(&[&settings[..], &own].concat(), &[]).await;
        let callers: Vec<_> = (0..CALLERS)
            .map(|n| tokio::spawn(caller(serve.publish.clone(), n, cycle, Arc::clone(&accepted))))
            .collect();
        tokio::time::sleep(Duration::from_micros(rng.u64(0..400_000))).await;
        serve.signal(Signal::KILL);
        let (_, log) = serve.ended().await;
        assert!(!log.contains("panicked"), "{log}");
        for caller in callers {
            caller.await.unwrap();
        }
    }

    assert_eq!(post(&emulator.address, "/_emulator/faults", &[], b"[]").await.status, 200);
    let serve = Serve::start(&settings, &[]).await;
    let empty = async {
        loop {
            let status = get(&serve.telemetry, "/status.json").await.json();
            if status["kept"]["queued"] == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(2), empty).await.expect("all is delivered");
    serve.signal(Signal::TERM);
    serve.ended().await;

    let mut delivered = BTreeMap::<String, Vec<String>>::new();
    for line in get(&emulator.address, "/_emulator/messages").await.text().lines() {
        let message: Value = serde_json::from_str(line).unwrap();
        let body = STANDARD.decode(message["payload"].as_str().unwrap()).unwrap();
        let from = message["source"].as_str().unwrap().to_owned();
        delivered.entry(String::from_utf8(body).unwrap()).or_default().push(from);
    }
    let accepted = std::mem::take(&mut *accepted.lock().unwrap());
    println!("{crashes} crashes, {} accepted, {} delivered", accepted.len(), delivered.len());
    // A slow disk takes few in so short a life.
    assert!(accepted.len() > crashes, "{}", accepted.len());
    for body in &accepted {
        assert!(delivered.contains_key(body), "{body} was accepted and is lost");
    }
    let mut twice = 0;
    for (body, from) in delivered {
        twice += from.len() - 1;
        // All but the last were on their way, or not yet noted, when their process died: no process
        // delivers again what it has delivered itself.
        let processes: BTreeSet<_> = from.iter().collect();
        assert_eq!(processes.len(), from.len(), "{body} was delivered from {from:?}");
    }
    println!("{twice} delivered again, since nobody could know");

    // The ledger never has less than the provider, nor bills more; what it does not know is what
    // was under way at the crashes.
    let (billable, uncertain) = counted(&settings).await;
    let report = get(&emulator.address, "/_emulator/report").await.json();
    let taken = report["accepted"].as_u64().unwrap();
    println!("{billable} billable and {uncertain} uncertain of {taken} that the provider took");
    assert!(billable <= taken && taken <= billable + uncertain);
    assert!(uncertain < crashes as u64 * 1_000, "{uncertain}");
}

/// Billable and uncertain messages, by `tollgate bill`.
async fn counted(settings: &[(&str, &str)]) -> (u64, u64) {
    let id = ("upstream.instance_id", support::INSTANCE);
    let sets: Vec<_> =
        settings.iter().chain([&id]).map(|(key, value)| format!("{key}={value}")).collect();
    let mut args = vec!["bill", "--from", "24h", "-o", "json"];
    args.extend(sets.iter().flat_map(|set| ["--set", set]));
    let said = run(&args, &[]).await;
    assert_eq!(said.code, 0, "{}", said.stderr);
    let bill: Value = serde_json::from_str(&said.stdout).unwrap();
    let sum = |name: &str| {
        let rows = bill["rows"].as_array().unwrap().iter();
        rows.map(|row| row[name].as_u64().unwrap()).sum()
    };
    (sum("messages"), sum("uncertain"))
}
