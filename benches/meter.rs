//! What counting costs, as a part of what a request costs in all.
//!
//! A real sidecar is measured under load; then its calls are counted alone, with and without a
//! ledger on the disk, in a process that does nothing else. Times are CPU times of all threads.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::Signal;
use support::process::{Emulator, Serve};
use tokio::time::Instant;
use tollgate::message::{Message, MessageId, Payload, PayloadForm, Terms, Topic};
use tollgate::meter::{Billed, CallKind, Meter};

const CALLERS: usize = 64;
const LOAD: Duration = Duration::from_secs(10);
const CALLS: u32 = 500_000;
/// What counting may cost of a request.
const SHARE: f64 = 0.03;

/// Microseconds of CPU that a process has used.
fn cpu(pid: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // After the name, which is in brackets and may hold spaces: user and system ticks of 10 ms.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks: f64 = fields.split(' ').skip(11).take(2).map(|n| n.parse::<f64>().unwrap()).sum();
    ticks * 10_000.0
}

/// Microseconds of CPU that a process's ledger thread has used.
fn ledger_cpu(pid: &str) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let threads = threads.map(|thread| thread.unwrap().path());
    let ledger = |thread: &std::path::PathBuf| {
        std::fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim() == "ledger")
    };
    let ledger = threads.into_iter().find(ledger).expect("there is a ledger");
    let stat = std::fs::read_to_string(ledger.join("schedstat")).unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1_000.0
}

/// Microseconds of CPU a request, signing, calling and all; and those of the thread that writes
/// the ledger.
async fn request(ceiling: &str) -> (f64, f64) {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().display().to_string();
    let emulator = Emulator::start(&["--egress-ip-qps", "0", "--account-qps", "0"]).await;
    let url = emulator.url();
    let settings = [
        ("upstream.endpoint", &*url),
        ("spool.store", "disk"),
        ("spool.path", &spool),
        ("ceilings.account", ceiling),
    ];
    let serve = Serve::start(&settings, &[]).await;
    let pid = serve.pid().to_string();
    support::callers::run(&serve.publish, CALLERS, Instant::now() + LOAD / 10).await;
    let before = (cpu(&pid), ledger_cpu(&pid));
    let answers = support::callers::run(&serve.publish, CALLERS, Instant::now() + LOAD).await;
    let used = (cpu(&pid) - before.0, ledger_cpu(&pid) - before.1);
    assert!(answers.iter().all(|answer| answer.status == 200));
    serve.signal(Signal::TERM);
    serve.ended().await;
    let requests = answers.len() as f64;
    (used.0 / requests, used.1 / requests)
}

/// Microseconds of CPU a counted call.
async fn counted(meter: &Meter) -> f64 {
    let message = Message {
        id: MessageId::new(),
        instance: "post-cn-0pp12gl0000".into(),
        topic: Topic::parse("TopicA/sub1").unwrap(),
        payload: Payload::kept(Bytes::new(), PayloadForm::Body),
        caller: None,
        trace: None,
        terms: Terms::default(),
    };
    let before = cpu("self");
    for _ in 0..CALLS {
        let call = meter.begin(black_box(&message), CallKind::First).await.unwrap();
        call.ended("OK", Billed::Yes, Duration::from_millis(5));
    }
    let used = cpu("self") - before;
    used / f64::from(CALLS)
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (paced, writing) = runtime.block_on(request("1000"));
    let (request, _) = runtime.block_on(request("none"));
    let billing = support::config("http://127.0.0.1:1", &[]).billing;
    let instance = || ["post-cn-0pp12gl0000".into()];
    let without = runtime.block_on(counted(&Meter::new(50, &billing, instance())));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let meter = Meter::open(Some(folder.path()), 50, &billing, instance()).unwrap();
    let with = runtime.block_on(counted(&meter));
    runtime.block_on(meter.close());
    println!("a request                       {request:8.2} us of CPU");
    println!(
        "counting its call, in memory    {without:8.2} us, {:.1} %",
        100.0 * without / request
    );
    println!("counting it with a ledger       {with:8.2} us, {:.1} %", 100.0 * with / request);
    println!("at 1,000 a second, a request    {paced:8.2} us of CPU");
    let counting = writing + with;
    println!(
        "counting it, and writing        {counting:8.2} us, {:.1} %",
        100.0 * counting / paced
    );
    let share = (with / request).max(counting / paced);
    assert!(share <= SHARE, "counting costs {:.1} % of a request", 100.0 * share);
}
