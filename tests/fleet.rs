//! Real sidecars share one ceiling through a real Redis, before one emulator that counts: never over
//! it in any sliding second, whatever happens to Redis or to a sidecar.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]
#![allow(clippy::print_stdout, reason = "figures to quote")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::callers;
use support::process::{Emulator, Serve, run};
use support::redis::{Redis, keys};
use support::until;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

const N: u64 = 300;
const SIDECARS: usize = 5;
/// Each caller waits for its answer: more of them than permits keep a line at every door.
const CALLERS: usize = 3 * 300 / SIDECARS;
/// One at a time: each wants the machine for itself.
static ONE: Mutex<()> = Mutex::const_new(());

/// A Redis whose fleet began a lease ago.
fn redis() -> Redis {
    let redis = Redis::start();
    redis.begin(&[("account", N)]);
    redis
}

struct Fleet {
    emulator: Emulator,
    sidecars: Vec<Serve>,
    start: Instant,
}

impl Fleet {
    /// `urls`: of Redis, as each sidecar sees it.
    async fn start(urls: &[String]) -> Self {
        let account = N.to_string();
        let emulator = Emulator::start(&["--egress-ip-qps", "0", "--account-qps", &account]).await;
        let endpoint = emulator.url();
        let expected = urls.len().to_string();
        let mut sidecars = Vec::new();
        for url in urls {
            let settings = [
                ("upstream.endpoint", endpoint.as_str()),
                ("ceilings.account", &account),
                ("publish.wait", "5s"),
                ("runtime.threads", "1"),
                ("fleet.url", url),
                ("fleet.expected_sidecars", &expected),
            ];
            sidecars.push(Serve::start(&settings, &[]).await);
        }
        Self { emulator, sidecars, start: Instant::now() }
    }

    /// Callers at each, until then.
    async fn load(&self, seconds: u64) {
        let until = self.start + Duration::from_secs(seconds);
        let mut loads = Vec::new();
        for sidecar in &self.sidecars {
            let address = sidecar.publish.clone();
            loads.push(std::thread::spawn(move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(callers::run(&address, CALLERS, until)).len()
            }));
        }
        let joined = move || loads.into_iter().map(|load| load.join().unwrap()).sum::<usize>();
        let answers = tokio::task::spawn_blocking(joined).await.unwrap();
        assert!(answers > 0);
    }

    async fn at(&self, seconds: u64) {
        tokio::time::sleep_until(self.start + Duration::from_secs(seconds)).await;
    }

    /// Never over; how many calls each second held.
    async fn kept(&self, what: &str) -> Vec<u64> {
        let report = self.emulator.report().await;
        let seconds = report["by_second"].as_array().unwrap();
        let calls: Vec<u64> = seconds.iter().map(|s| s["calls"].as_u64().unwrap()).collect();
        println!(
            "{what}: worst sliding second {} of {N}, by second {calls:?}",
            report["worst_second"]
        );
        assert!(report["worst_second"].as_u64().unwrap() <= N, "{report}");
        assert_eq!(report["refused"], serde_json::json!({}));
        calls
    }
}

async fn metric(sidecar: &Serve, name: &str) -> f64 {
    let text = support::http::get(&sidecar.telemetry, "/metrics").await.text();
    let line = text.lines().find(|line| line.starts_with(name));
    let line = line.unwrap_or_else(|| panic!("{name} is not in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

async fn mode(sidecar: &Serve, word: &str) -> bool {
    metric(sidecar, &format!("tollgate_fleet_mode{{mode=\"{word}\"}}")).await > 0.0
}

/// Waits until it is so.
async fn becomes(sidecar: &Serve, word: &str) {
    let end = Instant::now() + Duration::from_secs(40);
    while !mode(sidecar, word).await {
        assert!(Instant::now() < end, "not {word}:\n{}", sidecar.log());
        sleep(Duration::from_millis(50)).await;
    }
}

fn mean(calls: &[u64]) -> f64 {
    calls.iter().sum::<u64>() as f64 / calls.len() as f64
}

#[tokio::test]
async fn five_at_three_times_the_ceiling_and_one_killed() {
    let _one = ONE.lock().await;
    let redis = redis();
    let mut fleet = Fleet::start(&vec![redis.url(); SIDECARS]).await;
    let killed = fleet.sidecars.pop().unwrap();
    let doomed =
        Fleet { emulator: Emulator::start(&[]).await, sidecars: vec![killed], start: fleet.start };
    let middle = async {
        fleet.at(8).await;
        assert!(mode(&fleet.sidecars[0], "shared").await);
        let mut shares = 0.0;
        for sidecar in fleet.sidecars.iter().chain(&doomed.sidecars) {
            let name = "tollgate_ceiling_share_calls_per_second{ceiling=\"account\"}";
            shares += metric(sidecar, name).await;
        }
        // They are asked one after the other.
        assert!((200.0..=330.0).contains(&shares), "{shares} permits are held");
        fleet.at(11).await;
        doomed.sidecars[0].signal(Signal::KILL);
    };
    tokio::join!(fleet.load(20), doomed.load(10), middle);
    let calls = fleet.kept("five, and four of them").await;
    assert!(mean(&calls[3..9]) > 0.9 * N as f64, "{calls:?}");
    // What the killed one held is lost until its leases end: a fifth.
    assert!(mean(&calls[13..18]) > 0.7 * N as f64, "{calls:?}");

    // Who is asked to stop gives all back.
    for sidecar in fleet.sidecars.drain(..) {
        sidecar.signal(Signal::TERM);
        assert!(sidecar.ended().await.0.success());
    }
    let mut connection = redis.connection();
    let (seconds, _): (u64, u64) = redis::cmd("TIME").query(&mut connection).unwrap();
    let mut count = redis::cmd("ZCOUNT");
    count.arg(&keys("account")[0]).arg((seconds + 2) * 1_000_000).arg("+inf");
    let out: u64 = count.query(&mut connection).unwrap();
    println!("{out} permits are still out: the killed one's");
    assert!(out <= N / 4, "{out}");
}

#[tokio::test]
async fn redis_stands_still() {
    let _one = ONE.lock().await;
    let redis = redis();
    let fleet = Fleet::start(&vec![redis.url(); SIDECARS]).await;
    let pid = Pid::from_raw(redis.pid()).unwrap();
    let stops = async {
        fleet.at(6).await;
        kill_process(pid, Signal::STOP).unwrap();
        fleet.at(11).await;
        kill_process(pid, Signal::CONT).unwrap();
    };
    tokio::join!(fleet.load(18), stops);
    let calls = fleet.kept("Redis stopped for 5 s").await;
    assert!(mean(&calls[7..10]) > 0.7 * N as f64, "calls go on with what is held: {calls:?}");
    assert!(mean(&calls[13..16]) > 0.8 * N as f64, "{calls:?}");
}

#[tokio::test]
async fn redis_comes_back_empty() {
    let _one = ONE.lock().await;
    let mut redis = redis();
    let fleet = Fleet::start(&vec![redis.url(); SIDECARS]).await;
    let dies = async {
        fleet.at(6).await;
        redis.kill();
        becomes(&fleet.sidecars[0], "cut_off").await;
        fleet.at(16).await;
        redis.restart();
    };
    tokio::join!(fleet.load(28), dies);
    let calls = fleet.kept("Redis killed, and empty after 10 s").await;
    assert!(mean(&calls[8..14]) > 0.7 * N as f64, "calls go on with what is held: {calls:?}");
    // All that was held was brought back.
    assert!(mean(&calls[22..26]) > 0.7 * N as f64, "{calls:?}");
}

/// A way to Redis that can be cut.
async fn cuttable(port: u16) -> (String, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let cut = Arc::new(AtomicBool::new(false));
    let is_cut = Arc::clone(&cut);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let is_cut = Arc::clone(&is_cut);
            tokio::spawn(async move {
                let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                let cut = async {
                    while !is_cut.load(Ordering::Relaxed) {
                        sleep(Duration::from_millis(10)).await;
                    }
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = cut => {}
                }
            });
        }
    });
    (url, cut)
}

#[tokio::test]
async fn one_is_cut_off() {
    let _one = ONE.lock().await;
    let redis = redis();
    let (url, cut) = cuttable(redis.port).await;
    let mut urls = vec![redis.url(); SIDECARS];
    urls[0] = url;
    let fleet = Fleet::start(&urls).await;
    let cuts = async {
        fleet.at(6).await;
        cut.store(true, Ordering::Relaxed);
        becomes(&fleet.sidecars[0], "cut_off").await;
        becomes(&fleet.sidecars[0], "closed").await;
        // Never open: it sends nothing any more.
        let calls = "tollgate_ceiling_used_calls{ceiling=\"account\"}";
        sleep(Duration::from_secs(4)).await;
        assert_eq!(metric(&fleet.sidecars[0], calls).await.to_string(), "0");
        cut.store(false, Ordering::Relaxed);
        becomes(&fleet.sidecars[0], "shared").await;
    };
    tokio::join!(fleet.load(36), cuts);
    let calls = fleet.kept("one cut off").await;
    assert!(mean(&calls[8..34]) > 0.7 * N as f64, "{calls:?}");
}

/// Who shares the ceiling, as each of them tells it.
async fn members(of: &Serve) -> serde_json::Value {
    let said = run(&["status", "--fleet", "--at", &of.telemetry, "-o", "json"], &[]).await;
    assert_eq!(said.code, 0, "{}", said.stderr);
    serde_json::from_str(&said.stdout).unwrap()
}

#[tokio::test]
async fn who_is_in_the_fleet() {
    let _one = ONE.lock().await;
    let redis = redis();
    let mut fleet = Fleet::start(&vec![redis.url(); 3]).await;
    let first = fleet.sidecars.remove(0);
    until("all are there", async || members(&first).await["size"] == 3).await;
    let seen = members(&first).await;
    assert_eq!((&seen["mode"], &seen["account"]), (&"shared".into(), &"default".into()));
    let listed = seen["members"].as_array().unwrap();
    assert_eq!(listed.len(), 3);
    for member in listed {
        assert_eq!(
            (&member["starved"], &member["waiting"]),
            (&false.into(), &0.into()),
            "{member}"
        );
        assert_eq!(member["version"], env!("CARGO_PKG_VERSION"));
    }
    assert!((metric(&first, "tollgate_fleet_sidecars").await - 3.0).abs() < 0.5);
    let told = run(&["status", "--fleet", "--at", &first.telemetry], &[]).await.stdout;
    assert!(told.contains("3 sidecars") && told.contains("SIDECAR"), "{told}");

    // Who leaves is gone at once, who dies a little later.
    let leaves = fleet.sidecars.remove(0);
    leaves.signal(Signal::TERM);
    assert!(leaves.ended().await.0.success());
    until("it has left", async || members(&first).await["size"] == 2).await;
    fleet.sidecars[0].signal(Signal::KILL);
    until("the dead one is forgotten", async || members(&first).await["size"] == 1).await;

    // Without Redis nobody hangs.
    drop(redis);
    until("it is cut off", async || members(&first).await["mode"] != "shared").await;

    let alone = Serve::start(&[("upstream.endpoint", "http://127.0.0.1:1")], &[]).await;
    let said = run(&["status", "--fleet", "--at", &alone.telemetry], &[]).await;
    assert!(said.code == 1 && said.stderr.contains("fleet.url"), "{}", said.stderr);
}
