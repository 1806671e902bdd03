//! What a 202 is worth: in a folder that ends with its pod, on a volume that is too small, and on one that is
//! left without a sidecar.

use std::time::Duration;

use crate::support;
use crate::support::http::{get, post, series};
use crate::support::process::{Emulator, Said, Serve, run};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::Instant;

const KEY: [(&str, &str); 2] =
    [("ALIBABA_CLOUD_ACCESS_KEY_ID", "testid"), ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "testsecret")];
const FAILS: &str = r#"[{"code":"SendMessageFailed"}]"#;
const REFUSES: &str = r#"[{"code":"ParameterCheckFailed"}]"#;
const AT_RISK: &str = "tollgate_spool_at_risk_messages";

async fn fault(emulator: &Emulator, faults: &str) {
    let answer = post(&emulator.address, "/_emulator/faults", &[], faults.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// A sidecar whose provider fails, with so many messages.
async fn keeps(emulator: &Emulator, spool: &str, lifetime: &str, messages: usize) -> Serve {
    let settings = [
        ("upstream.endpoint", &*emulator.url()),
        ("spool.store", "disk"),
        ("spool.path", spool),
        ("spool.lifetime", lifetime),
        ("drain.grace", "200ms"),
    ];
    let serve = Serve::start(&settings, &[]).await;
    let word = if lifetime == "pod" { "pod" } else { "disk" };
    for n in 0..messages {
        let body = format!("{n}");
        let prefer = [("prefer", "respond-async")];
        let answer = post(&serve.publish, "/publish/TopicA", &prefer, body.as_bytes()).await;
        assert_eq!((answer.status, &answer.json()["Durability"]), (202, &word.into()));
    }
    let line = br#"{"topic":"TopicA","payload":"line"}"#;
    let headers = [("content-type", "application/x-ndjson"), ("prefer", "respond-async")];
    let batch = post(&serve.publish, "/publish", &headers, line).await;
    assert_eq!(batch.json()["Durability"], word, "{}", batch.text());
    let status = get(&serve.telemetry, "/status.json").await.json();
    assert_eq!(status["kept"]["durability"], word);
    serve
}

fn lines(log: &str, words: &str) -> Vec<Value> {
    let lines = log.lines().filter(|line| line.contains(words));
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What a deleted pod would lose is in the answer, in the metrics, in the log and in the exit code.
#[tokio::test]
async fn a_spool_that_ends_with_its_pod() {
    let emulator = Emulator::start(&[]).await;
    fault(&emulator, FAILS).await;
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().display().to_string();
    let serve = keeps(&emulator, &spool, "pod", 9).await;
    let metrics = get(&serve.telemetry, "/metrics").await.text();
    assert!((series(&metrics, AT_RISK) - 10.0).abs() < 0.5, "{metrics}");
    serve.signal(Signal::TERM);
    let (status, log) = serve.ended().await;
    assert_eq!(status.code(), Some(3), "{log}");
    for words in ["stopping with messages in a spool", "stopped with messages in a spool"] {
        let found = lines(&log, words);
        assert_eq!(found.len(), 1, "{log}");
        assert_eq!((&found[0]["level"], &found[0]["messages"]), (&"WARN".into(), &10.into()));
    }
    assert!(!log.contains("messages stay in the spool"), "{log}");

    // The same on a volume is no loss.
    let serve = keeps(&emulator, &spool, "volume", 4).await;
    let metrics = get(&serve.telemetry, "/metrics").await.text();
    assert!(series(&metrics, AT_RISK) < 0.5, "{metrics}");
    serve.signal(Signal::TERM);
    let (status, log) = serve.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(lines(&log, "messages stay in the spool")[0]["messages"], 15, "{log}");

    // Nor is there one where all are delivered.
    fault(&emulator, "[]").await;
    let serve = keeps(&emulator, &spool, "pod", 1).await;
    support::until("all are delivered", async || {
        let metrics = get(&serve.telemetry, "/metrics").await.text();
        series(&metrics, AT_RISK) < 0.5
    })
    .await;
    serve.signal(Signal::TERM);
    let (status, log) = serve.ended().await;
    assert!(status.code() == Some(0) && !log.contains("messages in a spool"), "{log}");
}

/// Bounds that no file system has, and bounds that each has.
#[tokio::test]
async fn a_file_system_that_is_smaller_than_the_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let spool = format!("spool.path={}", folder.path().join("not/yet").display());
    let upstream =
        ["--set", "upstream.endpoint=http://127.0.0.1:1", "--set", "upstream.instance_id=i"];
    for (bound, warns) in [("1TiB", true), ("1MiB", false)] {
        let bound = format!("spool.max_bytes={bound}");
        let check = [&["check", "--set", &spool, "--set", &bound][..], &upstream].concat();
        let said = run(&check, &[]).await;
        assert_eq!(said.code, 0, "{}", said.stderr);
        let warned = said.stdout.contains("warning: the file system of spool.path");
        assert_eq!(warned, warns, "{}", said.stdout);
    }
    let path = folder.path().display().to_string();
    let settings = [
        ("upstream.endpoint", "http://127.0.0.1:1"),
        ("spool.store", "disk"),
        ("spool.path", &*path),
        ("spool.max_bytes", "1TiB"),
    ];
    let serve = Serve::start(&settings, &[]).await;
    serve.logs("and the spool may take").await;
}

#[tokio::test]
async fn a_client_for_an_image_without_one() {
    let emulator = Emulator::start(&[]).await;
    let serve = Serve::start(&[("upstream.endpoint", &emulator.url())], &[]).await;
    let get = async |path: &str, more: &[&str]| {
        let telemetry = format!("listen.telemetry={}", serve.telemetry);
        run(&[&["get", path, "--set", &telemetry][..], more].concat(), &[]).await
    };
    for (path, words) in [
        ("/readyz?verbose", "accepting: true"),
        ("/metrics", "tollgate_build_info"),
        ("/status.json", "\"version\""),
        ("/livez", "ok"),
    ] {
        let said = get(path, &[]).await;
        assert!(said.code == 0 && said.stdout.contains(words), "{path}: {}", said.stderr);
    }
    let missing = get("/nothing", &[]).await;
    assert_eq!(missing.code, 1);
    assert!(missing.stdout.contains("urn:tollgate:"), "the answer: {}", missing.stdout);
    assert!(missing.stderr.contains("answers 404"), "{}", missing.stderr);
    let publish = get("/messages/x", &["--at", &serve.publish]).await;
    assert!(publish.stdout.contains("no-such-message"), "{}", publish.stdout);
    for wrong in ["readyz", "/a b", ""] {
        assert_eq!(get(wrong, &[]).await.code, 2, "{wrong:?}");
    }
    let silent = get("/livez", &["--at", "127.0.0.1:1"]).await;
    assert!(silent.code == 1 && silent.stderr.contains("no sidecar answers"), "{}", silent.stderr);
    // The configuration has a mistake since, and the sidecar runs with what was before.
    let mistaken = run(&["get", "/livez", "--set", "drain.grace=soon"], &[]).await;
    assert!(mistaken.stderr.contains("drain.grace"), "{}", mistaken.stderr);
    assert!(mistaken.stderr.contains("asking 127.0.0.1:9464"), "{}", mistaken.stderr);
}

async fn deliver(emulator: &Emulator, spool: &str, more: &[&str]) -> Said {
    let endpoint = format!("upstream.endpoint={}", emulator.url());
    // As the fleet's sidecars are configured by now.
    let base = ["messages", "deliver", "--spool", spool, "--set", "spool.store=none"];
    let set =
        ["--set", &endpoint, "--set", "upstream.instance_id=i", "--set", "listen.control=none"];
    let rest = ["--set", "listen.telemetry=127.0.0.1:0", "--set", "retry.base=50ms"];
    run(&[&base[..], &set, &rest, more].concat(), &KEY).await
}

/// The claim of a pod that is not there any more.
#[tokio::test]
async fn a_spool_without_a_sidecar_is_emptied() {
    let emulator = Emulator::start(&[]).await;
    fault(&emulator, FAILS).await;
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool").display().to_string();
    let serve = keeps(&emulator, &spool, "volume", 299).await;
    serve.signal(Signal::TERM);
    assert!(serve.ended().await.0.success());

    let nowhere = deliver(&emulator, &format!("{spool}/nowhere"), &[]).await;
    assert!(
        nowhere.code == 1 && nowhere.stderr.contains("there is no spool at"),
        "{}",
        nowhere.stderr
    );
    assert!(!folder.path().join("spool/nowhere").exists());

    // The provider fails for longer than it may take.
    let short = ["--set", "upstream.connect_timeout=200ms", "--set", "upstream.call_timeout=500ms"];
    let called = emulator.report().await["calls"].as_u64();
    let failed = deliver(&emulator, &spool, &[&short[..], &["--for", "12s"]].concat()).await;
    assert_eq!(failed.code, 1, "{}", failed.stderr);
    assert!(emulator.report().await["calls"].as_u64() > called, "{}", failed.stderr);
    assert_eq!(failed.stdout, "0 delivered; left: 300 messages, 0 dead letters\n");
    assert!(
        failed.stderr.contains("300 messages and 0 dead letters are left at"),
        "{}",
        failed.stderr
    );

    fault(&emulator, "[]").await;
    let done = deliver(&emulator, &spool, &["-o", "json"]).await;
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(done.stdout, "{\"Done\":300,\"Queued\":0,\"DeadLetters\":0}\n");
    assert!(done.stderr.contains("delivering what the spool holds"), "{}", done.stderr);
    let report = emulator.report().await;
    assert_eq!((&report["accepted"], &report["duplicates"]), (&300.into(), &0.into()), "{report}");

    // A dead letter is no message that may be deleted with the volume.
    fault(&emulator, REFUSES).await;
    let serve = keeps(&emulator, &spool, "volume", 1).await;
    support::until("both are dead letters", async || {
        let metrics = get(&serve.telemetry, "/metrics").await.text();
        series(&metrics, "tollgate_spool_messages{state=\"dead\"}") > 1.5
    })
    .await;
    serve.signal(Signal::TERM);
    assert!(serve.ended().await.0.success());
    let dead = deliver(&emulator, &spool, &[]).await;
    assert_eq!((dead.code, &*dead.stdout), (1, "0 delivered; left: 0 messages, 2 dead letters\n"));
    let unshared = deliver(&emulator, &spool, &["--handoff"]).await;
    assert!(unshared.code == 1 && unshared.stderr.contains("fleet.url"), "{}", unshared.stderr);
}

/// `--for` is all the time that it takes: no call begins that could not end, and it does not wait longer for a process
/// that has the spool.
#[tokio::test]
async fn the_limit_is_for_all_of_it() {
    let emulator = Emulator::start(&[]).await;
    fault(&emulator, FAILS).await;
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool").display().to_string();
    let serve = keeps(&emulator, &spool, "volume", 9).await;

    for limit in ["1s", "11999ms"] {
        let refused = deliver(&emulator, &spool, &["--for", limit]).await;
        assert_eq!(refused.code, 2, "{limit}: {}", refused.stderr);
        assert!(refused.stderr.contains("at least 12s"), "{limit}: {}", refused.stderr);
    }
    let refused = deliver(&emulator, &spool, &["--handoff", "--for", "7999ms"]).await;
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("at least 8s"), "{}", refused.stderr);
    // Its sidecar runs, which has 38 s to end.
    let begun = Instant::now();
    let waited = deliver(&emulator, &spool, &["--for", "13s"]).await;
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert_eq!((waited.code, &*waited.stdout), (1, ""));
    let last = waited.stderr.lines().last().unwrap();
    assert!(last.contains("another process holds the spool at"), "{}", waited.stderr);
    assert!(last.contains("--for 13s: no message was touched"), "{}", waited.stderr);

    // A provider that never answers: calls begin at the end of the time for them, too.
    serve.signal(Signal::TERM);
    assert!(serve.ended().await.0.success());
    fault(&emulator, r#"[{"latency":"10m"}]"#).await;
    let begun = Instant::now();
    let called = emulator.report().await["calls"].as_u64();
    let hung = deliver(&emulator, &spool, &["--for", "16s"]).await;
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert!(emulator.report().await["calls"].as_u64() > called, "{}", hung.stderr);
    assert_eq!((hung.code, &*hung.stdout), (1, "0 delivered; left: 10 messages, 0 dead letters\n"));
}
