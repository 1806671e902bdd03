//! Thirty sidecars, one account, one ceiling of 1,000, through a real Redis and for minutes:
//! `make soak`. Smaller fleets are in `tests/load/shared_ceiling.rs`, larger ones in `cargo test --lib simulation`.
#![allow(clippy::print_stdout, reason = "figures to quote")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::support::callers::{self, Asked};
use crate::support::http::{get, series};
use crate::support::process::{Emulator, Serve};
use crate::support::redis::Redis;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until};

const N: f64 = 1_000.0;
const SIDECARS: usize = 30;
/// Callers of all that are never served at once: each waits three seconds for its turn.
const SATURATED: usize = 3_000;
/// Leases of a fleet that was never there.
const LEARNS: Duration = Duration::from_secs(32);

struct Fleet {
    emulator: Emulator,
    redis: Redis,
    sidecars: Vec<Serve>,
}

/// Where a sidecar is different from the others.
#[derive(Default, Clone)]
struct Place {
    redis: Option<String>,
    upstream: Option<String>,
    egress: Option<usize>,
}

impl Fleet {
    async fn empty(emulator: &[&str]) -> Self {
        let emulator = Emulator::start(emulator).await;
        Self { emulator, redis: Redis::start(), sidecars: Vec::new() }
    }

    /// Thirty of them, after the time that a new Redis learns.
    async fn full(places: impl Fn(usize) -> Place, emulator: &[&str]) -> Self {
        let mut fleet = Self::empty(emulator).await;
        for number in 0..SIDECARS {
            fleet.join(&places(number)).await;
        }
        sleep(LEARNS).await;
        fleet
    }

    async fn join(&mut self, place: &Place) {
        let upstream = place.upstream.clone().unwrap_or(self.emulator.url());
        let redis = place.redis.clone().unwrap_or(self.redis.url());
        let expected = SIDECARS.to_string();
        let mut settings = vec![
            ("upstream.endpoint", upstream.as_str()),
            ("ceilings.account", "1000"),
            ("publish.wait", "5s"),
            ("runtime.threads", "1"),
            ("fleet.url", &redis),
            ("fleet.expected_sidecars", &expected),
        ];
        let (address, group);
        if let Some(egress) = place.egress {
            address = format!("127.0.0.{}", egress + 2);
            group = format!("nat-{egress}");
            settings
                .extend([("upstream.egress_addresses", &*address), ("fleet.egress_group", &group)]);
            settings.push(("ceilings.egress_ip", "300"));
        }
        self.sidecars.push(Serve::start(&settings, &[]).await);
    }

    /// Callers, divided among all, until then.
    async fn load(&self, callers: usize, until: Instant) -> Vec<Asked> {
        let each = callers / self.sidecars.len();
        let addresses = self.sidecars.iter().map(|sidecar| sidecar.publish.clone());
        let loads: Vec<_> = addresses.map(|address| load(address, each, until)).collect();
        let joined = tokio::task::spawn_blocking(move || {
            loads.into_iter().flat_map(|load| load.join().unwrap()).collect()
        });
        joined.await.unwrap()
    }

    /// Never over, and nothing was pushed back; how many calls each second held.
    async fn never_over(&self, what: &str) -> Vec<f64> {
        let report = self.emulator.report().await;
        let seconds = report["by_second"].as_array().unwrap();
        let calls: Vec<_> = seconds.iter().map(|s| s["calls"].as_f64().unwrap()).collect();
        println!("{what}: worst sliding second {}, by second {calls:?}", report["worst_second"]);
        assert!(report["worst_second"].as_f64().unwrap() <= N, "{report}");
        assert_eq!(report["refused"], serde_json::json!({}));
        let sources = report["worst_second_by_source"].as_object().unwrap();
        println!("  by source {sources:?}");
        calls
    }

    /// Calls that each has made.
    async fn calls(&self) -> Vec<f64> {
        let mut calls = Vec::new();
        for sidecar in &self.sidecars {
            let text = get(&sidecar.telemetry, "/metrics").await.text();
            calls.push(series(&text, "tollgate_upstream_calls_total{kind=\"first\",code=\"OK\"}"));
        }
        calls
    }

    /// Round trips that Redis has answered.
    fn round_trips(&self) -> f64 {
        let mut connection = self.redis.connection();
        let said: String = redis::cmd("INFO").arg("commandstats").query(&mut connection).unwrap();
        let calls = |name: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(name));
            line.map_or(0.0, |line| line.split(',').next().unwrap().parse::<f64>().unwrap())
        };
        calls("cmdstat_evalsha:calls=") + calls("cmdstat_eval:calls=")
    }
}

fn load(address: String, callers: usize, until: Instant) -> std::thread::JoinHandle<Vec<Asked>> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(callers::run(&address, callers, until))
    })
}

/// Requests at random, so many a second at each.
fn arriving(
    sidecars: &[Serve],
    per_second: f64,
    until: Instant,
) -> tokio::task::JoinHandle<Vec<Asked>> {
    let addresses = sidecars.iter().map(|sidecar| sidecar.publish.clone()).zip(0..);
    let loads: Vec<_> = addresses
        .map(|(address, seed)| {
            std::thread::spawn(move || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_all().build().unwrap();
                runtime.block_on(callers::arrive(&address, per_second, until, seed))
            })
        })
        .collect();
    tokio::task::spawn_blocking(move || {
        loads.into_iter().flat_map(|load| load.join().unwrap()).collect()
    })
}

/// Of the seconds from and to, of all that there could be.
fn used(calls: &[f64], from: usize, to: usize) -> f64 {
    calls[from..to].iter().sum::<f64>() / (to - from) as f64 / N
}

/// Jain's index: 1 where all have the same.
fn fairness(shares: &[f64]) -> f64 {
    let (sum, squares) = shares.iter().fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
    sum * sum / (shares.len() as f64 * squares)
}

fn nobody_hangs(answers: &[Asked]) {
    let longest = answers.iter().map(|asked| asked.took).max().unwrap();
    println!("  {} answers, the longest wait {longest:?}", answers.len());
    assert!(longest < Duration::from_secs(7), "patience is 5 s");
}

#[tokio::test]
async fn three_times_the_ceiling() {
    let fleet = Fleet::full(|_| Place::default(), &["--egress-ip-qps", "0"]).await;
    let start = Instant::now();
    let watch = async {
        sleep_until(start + Duration::from_secs(5)).await;
        let before = (fleet.round_trips(), fleet.calls().await);
        sleep_until(start + Duration::from_mins(1)).await;
        (before, (fleet.round_trips(), fleet.calls().await))
    };
    let loading = fleet.load(SATURATED, start + Duration::from_secs(62));
    let (answers, (before, after)) = tokio::join!(loading, watch);
    let calls = fleet.never_over("3x").await;
    nobody_hangs(&answers);
    let shares: Vec<_> =
        after.1.iter().zip(&before.1).map(|(after, before)| after - before).collect();
    let (use_of, jain) = (used(&calls, 5, 60), fairness(&shares));
    let trips = (after.0 - before.0) / 55.0;
    println!("  use {use_of:.4}, Jain {jain:.4}, {trips:.0} round trips to Redis a second");
    assert!(use_of >= 0.985 && jain >= 0.98 && trips <= 2_500.0);
}

/// Requests come at random, half as many as may: nearly all find a permit that is there.
#[tokio::test]
async fn half_the_ceiling() {
    let fleet = Fleet::full(|_| Place::default(), &["--egress-ip-qps", "0"]).await;
    let start = Instant::now();
    let until = start + Duration::from_secs(40);
    let loading = arriving(&fleet.sidecars, N / 2.0 / SIDECARS as f64, until);
    // Calls, those that waited for a permit, those that waited for more than two milliseconds, and
    // round trips.
    let figures = async || {
        let mut sums = [fleet.calls().await.iter().sum(), 0.0, 0.0, fleet.round_trips()];
        for sidecar in &fleet.sidecars {
            let text = get(&sidecar.telemetry, "/metrics").await.text();
            for ceiling in ["account", "egress_ip"] {
                let of =
                    |what: &str| series(&text, &format!("tollgate_ceiling_wait_seconds_{what}"));
                let all = of(&format!("count{{ceiling=\"{ceiling}\"}}"));
                sums[1] += all;
                sums[2] += all - of(&format!("bucket{{ceiling=\"{ceiling}\",le=\"0.002\"}}"));
            }
        }
        sums
    };
    sleep_until(start + Duration::from_secs(10)).await;
    let before = figures().await;
    sleep_until(until).await;
    let after = figures().await;
    let answers = loading.await.unwrap();
    fleet.never_over("half the ceiling").await;
    nobody_hangs(&answers);
    let [calls, waited, long, trips] = std::array::from_fn(|i| after[i] - before[i]);
    println!(
        "  {calls} calls, {:.1} % waited, {:.2} % for more than 2 ms, {:.3} round trips a call",
        100.0 * waited / calls,
        100.0 * long / calls,
        trips / calls
    );
    // The median wait is none, and the 99th percentile below 3 ms.
    assert!(calls > 0.9 * 30.0 * N / 2.0, "the load is no half");
    assert!(waited < 0.5 * calls && long <= 0.01 * calls && trips <= 1.2 * calls);
}

/// One has nearly all there is to send, and the others little: they take what they need, and it the
/// rest.
#[tokio::test]
async fn one_hot() {
    let fleet = Fleet::full(|_| Place::default(), &["--egress-ip-qps", "0"]).await;
    let until = Instant::now() + Duration::from_secs(40);
    let (hot, others) = fleet.sidecars.split_first().unwrap();
    let many = load(hot.publish.clone(), 1_500, until);
    let few = arriving(others, 0.3 * N / others.len() as f64, until).await.unwrap();
    nobody_hangs(&tokio::task::spawn_blocking(move || many.join().unwrap()).await.unwrap());
    let calls = fleet.never_over("one hot").await;
    nobody_hangs(&few);
    let sent = few.iter().filter(|asked| asked.status == 200).count();
    let use_of = used(&calls, 5, 38);
    println!("  use {use_of:.4}; {sent} of {} calls of the others", few.len());
    assert!(use_of >= 0.97 && sent * 100 >= few.len() * 99);
}

/// Two and five egress addresses of 300 each under the account's 1,000.
#[tokio::test]
async fn two_ceilings_at_once() {
    for (groups, binding) in [(2, 600.0), (5, 1_000.0)] {
        let place = |number| Place { egress: Some(number % groups), ..Place::default() };
        let fleet = Fleet::full(place, &[]).await;
        let answers = fleet.load(SATURATED, Instant::now() + Duration::from_secs(32)).await;
        let calls = fleet.never_over(&format!("{groups} addresses")).await;
        nobody_hangs(&answers);
        let report = fleet.emulator.report().await;
        let sources = report["worst_second_by_source"].as_object().unwrap();
        assert!(sources.values().all(|worst| worst.as_u64().unwrap() <= 300), "{sources:?}");
        let use_of = used(&calls, 5, 30) * N / binding;
        println!("  use of the binding ceiling {use_of:.4}");
        assert!(use_of >= 0.97);
    }
}

#[tokio::test]
async fn a_redis_that_stands_still() {
    let fleet = Fleet::full(|_| Place::default(), &["--egress-ip-qps", "0"]).await;
    let pid = Pid::from_raw(fleet.redis.pid()).unwrap();
    let start = Instant::now();
    let faults = async {
        sleep_until(start + Duration::from_secs(8)).await;
        kill_process(pid, Signal::STOP).unwrap();
        sleep_until(start + Duration::from_secs(13)).await;
        kill_process(pid, Signal::CONT).unwrap();
    };
    let (answers, ()) =
        tokio::join!(fleet.load(SATURATED, start + Duration::from_secs(26)), faults);
    let calls = fleet.never_over("Redis stopped for 5 s").await;
    nobody_hangs(&answers);
    let (during, after) = (used(&calls, 8, 13), used(&calls, 13, 23));
    println!("  use {during:.3} during, {after:.3} after");
    assert!(during >= 0.85 && after >= 0.9);
}

#[tokio::test]
async fn a_redis_that_comes_back_empty() {
    let mut fleet = Fleet::full(|_| Place::default(), &["--egress-ip-qps", "0"]).await;
    let start = Instant::now();
    let loads: Vec<_> = fleet
        .sidecars
        .iter()
        .map(|s| load(s.publish.clone(), SATURATED / SIDECARS, start + Duration::from_secs(32)))
        .collect();
    sleep_until(start + Duration::from_secs(8)).await;
    fleet.redis.kill();
    sleep_until(start + Duration::from_secs(18)).await;
    fleet.redis.restart();
    let joined = tokio::task::spawn_blocking(move || {
        loads.into_iter().flat_map(|load| load.join().unwrap()).collect::<Vec<_>>()
    });
    nobody_hangs(&joined.await.unwrap());
    let calls = fleet.never_over("Redis killed, and back empty after 10 s").await;
    let (during, after) = (used(&calls, 8, 18), used(&calls, 18, 28));
    println!("  use {during:.3} during, {after:.3} after");
    assert!(during >= 0.85 && after >= 0.9);
}

/// How a way is.
const OPEN: u8 = 0;
const FROZEN: u8 = 1;
const CUT: u8 = 2;

/// A way to somewhere that can be frozen, and cut.
async fn way(to: String) -> (String, Arc<AtomicU8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, state) =
        (listener.local_addr().unwrap().to_string(), Arc::new(AtomicU8::new(OPEN)));
    let is = Arc::clone(&state);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let (is, to) = (Arc::clone(&is), to.clone());
            tokio::spawn(async move {
                let Ok(far) = TcpStream::connect(to).await else { return };
                drop((near.set_nodelay(true), far.set_nodelay(true)));
                let ((near_in, near_out), (far_in, far_out)) =
                    (near.into_split(), far.into_split());
                tokio::join!(carry(near_in, far_out, &is), carry(far_in, near_out, &is));
            });
        }
    });
    (address, state)
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    is: &AtomicU8,
) {
    let mut buffer = vec![0; 65_536];
    loop {
        let read = tokio::time::timeout(Duration::from_millis(20), from.read(&mut buffer)).await;
        if is.load(Ordering::Relaxed) == CUT {
            return;
        }
        match read {
            Err(_) => {}
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(count)) => {
                while is.load(Ordering::Relaxed) == FROZEN {
                    sleep(Duration::from_millis(1)).await;
                }
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// A third is cut off from Redis, one is killed, one stands still for 20 s, and the way to the
/// provider is frozen twice.
#[tokio::test]
async fn disorder() {
    let mut fleet = Fleet::empty(&["--egress-ip-qps", "0"]).await;
    let (redis, redis_is) = way(format!("127.0.0.1:{}", fleet.redis.port)).await;
    let (upstream, upstream_is) = way(fleet.emulator.address.clone()).await;
    for number in 0..SIDECARS {
        let redis = (number % 3 == 0).then(|| format!("redis://{redis}"));
        let upstream = Some(format!("http://{upstream}"));
        fleet.join(&Place { redis, upstream, egress: None }).await;
    }
    sleep(LEARNS).await;
    let start = Instant::now();
    let at = |seconds| sleep_until(start + Duration::from_secs(seconds));
    let faults = async {
        at(5).await;
        redis_is.store(CUT, Ordering::Relaxed);
        at(17).await;
        redis_is.store(OPEN, Ordering::Relaxed);
        at(25).await;
        fleet.sidecars[1].signal(Signal::KILL);
        at(28).await;
        fleet.sidecars[2].signal(Signal::STOP);
        at(48).await;
        fleet.sidecars[2].signal(Signal::CONT);
        for second in [55, 60] {
            at(second).await;
            upstream_is.store(FROZEN, Ordering::Relaxed);
            sleep(Duration::from_millis(300)).await;
            upstream_is.store(OPEN, Ordering::Relaxed);
        }
    };
    tokio::join!(fleet.load(SATURATED, start + Duration::from_secs(70)), faults);
    fleet.never_over("a third cut off, one killed, one stopped, the way frozen twice").await;
}

/// Five sidecars become thirty and five again, under twice what the provider takes.
#[tokio::test]
async fn joining_and_leaving() {
    const FEW: usize = 5;
    let mut fleet = Fleet::empty(&["--egress-ip-qps", "0"]).await;
    for _ in 0..FEW {
        fleet.join(&Place::default()).await;
    }
    sleep(LEARNS).await;
    let start = Instant::now();
    let end = start + Duration::from_secs(50);
    let callers = 2_000 / FEW;
    let stay = fleet.sidecars.iter().map(|s| load(s.publish.clone(), callers, end));
    let stay: Vec<_> = stay.collect();
    sleep_until(start + Duration::from_secs(8)).await;
    let mut come = Vec::new();
    let leave = start + Duration::from_secs(30);
    for _ in FEW..SIDECARS {
        fleet.join(&Place::default()).await;
        let address = fleet.sidecars.last().unwrap().publish.clone();
        come.push(load(address, 60, leave));
    }
    sleep_until(leave).await;
    for load in come {
        tokio::task::spawn_blocking(move || load.join().unwrap()).await.unwrap();
    }
    for sidecar in fleet.sidecars.drain(FEW..) {
        sidecar.signal(Signal::TERM);
        assert!(sidecar.ended().await.0.success());
    }
    for load in stay {
        tokio::task::spawn_blocking(move || load.join().unwrap()).await.unwrap();
    }
    let calls = fleet.never_over("5, 30 and 5 again").await;
    let use_of = used(&calls, 5, 48);
    println!("  use {use_of:.4}");
    assert!(use_of >= 0.95);
}
