//! Callers cannot make the process take more memory than it may: what finds none is answered 503, and
//! small messages are let in beside large ones.

use std::sync::Arc;

use crate::support::http::{get, post, series};
use crate::support::process::{Serve, run};
use crate::support::script::{Say, Script};
use crate::support::{config, sidecar, until};
use rustix::process::Signal;
use tokio::sync::Notify;
use tokio::task::JoinSet;

const LARGE: usize = 48 << 10;
const NDJSON: [(&str, &str); 1] = [("content-type", "application/x-ndjson")];

async fn metric(telemetry: &str, name: &str) -> f64 {
    series(&get(telemetry, "/metrics").await.text(), name)
}

/// The figure of `/proc/<pid>/status` in bytes.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Publishes so many large messages at once; returns how often each status was answered.
async fn flood(publish: &str, callers: usize, path: &'static str, body: &Arc<Vec<u8>>) -> Vec<u16> {
    let mut all = JoinSet::new();
    for _ in 0..callers {
        let (publish, body) = (publish.to_owned(), Arc::clone(body));
        let headers: &[_] = if path == "/publish" { &NDJSON } else { &[] };
        all.spawn(async move {
            let answer = post(&publish, path, headers, &body).await;
            assert!(
                answer.status != 503 || answer.header("retry-after") == "1",
                "{}",
                answer.text()
            );
            answer.status
        });
    }
    all.join_all().await
}

#[tokio::test]
async fn large_messages_wait_outside_and_small_ones_come_in() {
    let answers: Vec<_> = (0..200).map(|_| Arc::new(Notify::new())).collect();
    let script = Script::start(answers.iter().map(Arc::clone).map(Say::Later)).await;
    let flags = [("runtime.memory", "32MiB"), ("spool.store", "none"), ("publish.wait", "1m")];
    let (_sidecar, publish, telemetry) = sidecar(&config(&script.url, &flags)).await;
    let (used, max) = ("tollgate_message_memory_bytes", "tollgate_message_memory_max_bytes");
    assert!(metric(&telemetry, used).await < 1.0);

    let body = Arc::new(vec![b'x'; LARGE]);
    let mut held = JoinSet::new();
    let mut refused = None;
    for _ in 0..100 {
        let (publish, body, calls) = (publish.clone(), Arc::clone(&body), script.requests().len());
        let mut one = Box::pin(async move { post(&publish, "/publish/TopicA", &[], &body).await });
        let begun = until("its call", async || script.requests().len() > calls);
        tokio::select! {
            answer = &mut one => { refused = Some(answer); break }
            () = begun => {}
        }
        held.spawn(one);
    }
    let refused = refused.expect("a limit");
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1"), "{}", refused.text());
    assert!(
        refused.json()["type"].as_str().unwrap().ends_with("memory-full"),
        "{}",
        refused.text()
    );
    assert!(held.len() > 3);
    let part = metric(&telemetry, used).await / metric(&telemetry, max).await;
    assert!(part > 0.5 && part <= 0.75, "{part}");
    assert!(metric(&telemetry, "tollgate_message_memory_refusals_total").await >= 1.0);

    // A batch, too, and each of its lines.
    let line = format!("{{\"topic\":\"TopicA\",\"payload\":\"{}\"}}\n", "y".repeat(20 << 10));
    let batch = post(&publish, "/publish", &NDJSON, line.repeat(2).as_bytes()).await;
    assert_eq!(batch.status, 503, "{}", batch.text());

    // The last part is for small ones.
    let calls = script.requests().len();
    let address = publish.clone();
    let small = tokio::spawn(async move { post(&address, "/publish/TopicB", &[], b"small").await });
    until("the small one's call", async || script.requests().len() > calls).await;
    for answer in &answers {
        answer.notify_one();
    }
    assert_eq!(small.await.unwrap().status, 200);
    for answer in held.join_all().await {
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    until("it is free again", async || metric(&telemetry, used).await < 1.0).await;
    assert_eq!(post(&publish, "/publish/TopicA", &[], &body).await.status, 200);
}

/// As `docker run --memory` has it: the process must stay below it by itself.
#[tokio::test]
async fn a_process_stays_below_its_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    // An upstream that takes calls and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("http://{}", silent.local_addr().unwrap());
    let hang = tokio::spawn(async move {
        while let Ok((mut stream, _)) = silent.accept().await {
            tokio::spawn(async move { tokio::io::copy(&mut stream, &mut tokio::io::sink()).await });
        }
    });
    let memory = 96 << 20;
    let settings = [
        ("upstream.endpoint", &*upstream),
        ("runtime.memory", "96MiB"),
        ("spool.store", "disk"),
        ("spool.path", &*path),
        ("publish.wait", "1s"),
        ("drain.grace", "1s"),
        // Else the calls without an answer keep the others waiting.
        ("ceilings.account", "none"),
    ];
    let serve = Serve::start(&settings, &[]).await;
    assert!(serve.log().contains("idempotency.max_keys = "), "{}", serve.log());

    let body = Arc::new(vec![0xa5; LARGE]);
    // No more than there are connections: one that is slow to send its first byte would give way to another.
    let statuses = flood(&serve.publish, 500, "/publish/TopicA", &body).await;
    assert!(statuses.iter().all(|status| [202, 503].contains(status)), "{}", serve.log());
    assert!(statuses.contains(&202) && statuses.contains(&503), "{statuses:?}");

    let line = format!("{{\"topic\":\"TopicA\",\"payload\":\"{}\"}}\n", "y".repeat(20 << 10));
    let batch = Arc::new(line.repeat((8 << 20) / line.len()).into_bytes());
    let statuses = flood(&serve.publish, 16, "/publish", &batch).await;
    assert!(statuses.iter().all(|status| [202, 207, 413, 503].contains(status)), "{statuses:?}");

    assert_eq!(get(&serve.telemetry, "/livez").await.status, 200);
    let peak = peak(serve.pid());
    assert!(peak < memory, "{} MiB", peak >> 20);
    hang.abort();
    serve.signal(Signal::TERM);
    assert!(serve.ended().await.0.success());
}

#[tokio::test]
async fn check_says_what_the_memory_does_not_carry() {
    let set = ["--set=upstream.endpoint=http://127.0.0.1:1", "--set=upstream.instance_id=i"];
    let small = run(&[&["check"][..], &set, &["--set=runtime.memory=64MiB"]].concat(), &[]).await;
    assert_eq!(small.code, 0, "{}", small.stderr);
    let note = small.stdout.lines().find(|line| line.starts_with("note: the memory (64.0 MiB"));
    let note = note.unwrap_or_else(|| panic!("{}", small.stdout));
    for key in ["publish.max_connections = ", "spool.max_messages = ", "idempotency.max_keys = "] {
        assert!(note.contains(key), "{note}");
    }
    // The keys follow the rate.
    assert!(small.stdout.contains("0 (here 601000)"), "{}", small.stdout);
    let ample = run(&[&["check"][..], &set, &["--set=runtime.memory=8GiB"]].concat(), &[]).await;
    assert!(!ample.stdout.contains("note: the memory"), "{}", ample.stdout);
}
