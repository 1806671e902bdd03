//! What a fleet costs on the hot road: a permit that is ready, and a whole request, each against the
//! same alone, in one run. Times differ between machines; compare the ratios.
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

use std::alloc::System;
use std::time::Duration;

use rustix::process::Signal;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::process::{Emulator, Serve};
use support::redis::Redis;
use tokio::time::Instant;
use tollgate::ceiling::{Ceiling, Class, Start, Ticket};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Permits taken in a row, and how often.
const ROW: u32 = 1_000;
const ROWS: usize = 300;
/// What a ready permit may cost.
const READY: Duration = Duration::from_nanos(1_500);
/// What a fleet may add to a request's CPU time.
const SHARE: f64 = 0.10;
/// More than the load below uses, so that nobody waits.
const N: u32 = 5_000;
const CALLERS: usize = 8;
const LOAD: Duration = Duration::from_secs(5);
const ROUNDS: usize = 5;

/// Takes a permit and gives it back unsent; whether it was ready.
fn take(ceiling: &Ceiling) -> bool {
    let deadline = Instant::now() + Duration::from_secs(5);
    match ceiling.request(Class::Fresh, deadline) {
        Ok(Ticket::Ready(permit)) => {
            permit.unsent();
            true
        }
        Ok(Ticket::Waiting(_)) | Err(_) => false,
    }
}

/// The median of rows in which every permit was ready: time and allocations a permit.
async fn ready(ceiling: &Ceiling) -> (Duration, f64) {
    let mut rows = Vec::new();
    let end = Instant::now() + Duration::from_mins(1);
    while rows.len() < ROWS {
        assert!(Instant::now() < end, "permits are not ready");
        // Unused ones go back to Redis: then it is time for the others at work here.
        let deadline = Instant::now() + Duration::from_secs(5);
        match ceiling.request(Class::Fresh, deadline) {
            Ok(ticket) => {
                if let Ok(permit) = ticket.permit().await {
                    permit.unsent();
                }
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
        let region = Region::new(ALLOCATOR);
        let start = Instant::now();
        let all = (0..ROW).all(|_| take(ceiling));
        let took = start.elapsed();
        if all {
            rows.push((took / ROW, region.change().allocations as f64 / f64::from(ROW)));
        }
    }
    rows.sort_by_key(|row| row.0);
    let median = rows[ROWS / 2].0;
    rows.sort_by(|a, b| a.1.total_cmp(&b.1));
    (median, rows[ROWS / 2].1)
}

/// Microseconds of CPU that a process has used.
fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // After the name, which is in brackets and may hold spaces: user and system ticks of 10 ms.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks: f64 = fields.split(' ').skip(11).take(2).map(|n| n.parse::<f64>().unwrap()).sum();
    ticks * 10_000.0
}

/// Microseconds of CPU a request.
async fn request(redis: Option<&Redis>) -> f64 {
    let emulator = Emulator::start(&["--egress-ip-qps", "0", "--account-qps", "0"]).await;
    let (endpoint, account) = (emulator.url(), N.to_string());
    let url = redis.map(Redis::url).unwrap_or_default();
    let settings = [
        ("upstream.endpoint", endpoint.as_str()),
        ("ceilings.account", &account),
        ("runtime.threads", "1"),
        ("fleet.url", &url),
        // As one of many: most permits come and go.
        ("fleet.expected_sidecars", "20"),
    ];
    let serve = Serve::start(&settings, &[]).await;
    let warm = Instant::now() + LOAD / 4;
    support::callers::run(&serve.publish, CALLERS, warm).await;
    if let Some(redis) = redis {
        redis.tell::<()>("CONFIG RESETSTAT");
    }
    let before = cpu(serve.pid());
    let answers = support::callers::run(&serve.publish, CALLERS, Instant::now() + LOAD).await;
    let used = cpu(serve.pid()) - before;
    assert!(answers.iter().all(|answer| answer.status == 200), "{}", serve.log());
    if let Some(redis) = redis {
        let stats: String = redis.tell("INFO commandstats");
        let trips = stats.lines().find(|line| line.contains("evalsha")).unwrap_or_default();
        println!("{} calls; {trips}", answers.len());
    }
    serve.signal(Signal::TERM);
    serve.ended().await;
    used / answers.len() as f64
}

fn main() {
    // The benchmark has one thread, and what talks to Redis another.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let redis = Redis::start();
    // A thousand permits are made at a time.
    (0..N / 1_000).for_each(|_| redis.begin(&[("account", u64::from(N))]));
    let url = redis.url();
    let fleet = [("fleet.url", url.as_str()), ("ceilings.account", "5000")];
    let fleet = support::config("http://127.0.0.1:1", &fleet);
    // So many that neither the windows nor the pace are waited for.
    let mut many = fleet.ceilings.clone();
    many.account = Some(1_000_000_000);

    let (alone, shared) = runtime.block_on(async {
        let alone = Ceiling::start(&many, 1, 10, Start::Alone);
        let shared = Ceiling::start(&many, 1, 10, Start::Alone);
        let call_timeout = fleet.upstream.call_timeout;
        shared.share(&fleet.ceilings, fleet.fleet.as_ref().unwrap(), call_timeout);
        (ready(&alone).await, ready(&shared).await)
    });
    println!("a ready permit alone      {:?}, {} allocations", alone.0, alone.1);
    println!("a ready permit in a fleet {:?}, {} allocations", shared.0, shared.1);

    // In turn, so that a machine that changes its pace does so for both.
    let mut rounds: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let alone = runtime.block_on(request(None));
            let shared = runtime.block_on(request(Some(&redis)));
            println!("a request alone {alone:.1} us of CPU, in a fleet {shared:.1} us");
            shared / alone - 1.0
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    let more = rounds[ROUNDS / 2];
    println!("a fleet costs {:+.1} % of a request", 100.0 * more);

    assert!(shared.0 <= READY && alone.0 <= READY, "a ready permit costs more than {READY:?}");
    assert!(shared.1 == 0.0 && alone.1 == 0.0, "a ready permit allocates");
    assert!(more <= SHARE, "a fleet costs {:.1} % of a request", 100.0 * more);
}
