//! Real sidecars at saturation before a provider that is stopped (SIGSTOP) and goes on.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::print_stdout, reason = "figures to quote")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

use super::callers;
use super::http::get;
use super::process::{Emulator, Serve};
use super::redis::Redis;

/// Calls a second of the account and of the address; more from one address blocks it.
pub const N: u64 = 300;
pub const CALLERS: usize = 600;
/// When the provider stops, after the beginning of the load.
const BEFORE: Duration = Duration::from_secs(8);
/// After its end, the ceiling is to be used again within this time, and how long that is watched.
const RECOVERS: Duration = Duration::from_secs(15);
const WATCHED: Duration = Duration::from_secs(8);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spool {
    None,
    Disk,
    Redis,
}

struct Stage {
    emulator: Emulator,
    sidecars: Vec<Serve>,
    redis: Option<Redis>,
    folders: Vec<tempfile::TempDir>,
}

impl Stage {
    async fn new(spool: Spool, sidecars: usize) -> Self {
        let emulator = Emulator::start(&[]).await;
        let shared = sidecars > 1 || spool == Spool::Redis;
        let redis = shared.then(Redis::start);
        if let Some(redis) = &redis {
            redis.begin(&[("account", N), ("egress:nat", N)]);
        }
        let mut stage = Self { emulator, sidecars: Vec::new(), redis: None, folders: Vec::new() };
        for _ in 0..sidecars {
            stage.join(spool, sidecars, redis.as_ref()).await;
        }
        stage.redis = redis;
        stage
    }

    async fn join(&mut self, spool: Spool, sidecars: usize, redis: Option<&Redis>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display().to_string();
        let (url, n, expected) = (self.emulator.url(), N.to_string(), sidecars.to_string());
        let store = format!("{spool:?}").to_lowercase();
        let redis = redis.map(Redis::url);
        let mut settings = vec![
            ("upstream.endpoint", url.as_str()),
            ("upstream.connect_timeout", "1s"),
            ("upstream.call_timeout", "3s"),
            ("ceilings.account", &n),
            ("ceilings.egress_ip", &n),
            ("publish.wait", "5s"),
            ("spool.store", &store),
            ("spool.path", &path),
        ];
        if let Some(redis) = &redis {
            settings.extend([("fleet.url", redis.as_str()), ("fleet.egress_group", "nat")]);
            settings.push(("fleet.expected_sidecars", &expected));
        }
        self.sidecars.push(Serve::start(&settings, &[]).await);
        self.folders.push(folder);
    }

    /// Callers at all sidecars, until then.
    fn load(&self, until: Instant) -> Vec<std::thread::JoinHandle<()>> {
        let each = CALLERS / self.sidecars.len();
        let addresses = self.sidecars.iter().map(|sidecar| sidecar.publish.clone());
        addresses.map(|address| load(address, each, until)).collect()
    }
}

pub fn load(address: String, callers: usize, until: Instant) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(callers::run(&address, callers, until));
    })
}

pub fn signal(emulator: &Emulator, signal: Signal) {
    kill_process(Pid::from_raw(emulator.pid()).unwrap(), signal).unwrap();
}

/// How a stop ended: the worst sliding second, and the use of the ceiling after it.
pub async fn stopped(spool: Spool, sidecars: usize, long: Duration) -> f64 {
    let _one = super::beside_others().await;
    let stage = Stage::new(spool, sidecars).await;
    let loads = stage.load(Instant::now() + BEFORE + long + RECOVERS + WATCHED);
    sleep(BEFORE).await;
    signal(&stage.emulator, Signal::STOP);
    sleep(long).await;
    signal(&stage.emulator, Signal::CONT);
    sleep(RECOVERS).await;
    let calls = async || stage.emulator.report().await["calls"].as_u64().unwrap();
    let (before, from) = (calls().await, Instant::now());
    sleep(WATCHED).await;
    let rate = (calls().await - before) as f64 / from.elapsed().as_secs_f64();
    let report = stage.emulator.report().await;
    never_over(&report);
    for load in loads {
        tokio::task::spawn_blocking(move || load.join().unwrap()).await.unwrap();
    }
    never_over(&stage.emulator.report().await);
    // A permit is out for a call of 5 ms and a second.
    let used = rate / (N as f64 / 1.006);
    println!(
        "{spool:?}, {sidecars} sidecars, stopped {long:?}: worst sliding second {} of {N}, {used:.3} used",
        report["worst_second"]
    );
    used
}

pub fn never_over(report: &Value) {
    assert!(report["worst_second"].as_u64().unwrap() <= N, "{report}");
    assert_eq!(report["blocked"], serde_json::json!([]));
}

/// Four providers behind one address, one of which stands still: the other three answer.
pub async fn one_of_four(long: Duration) -> f64 {
    let _one = super::beside_others().await;
    let mut emulators = Vec::new();
    for _ in 0..4 {
        let args = ["--account-qps", "0", "--egress-ip-qps", "0"];
        emulators.push(Emulator::start(&args).await);
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let backends: Vec<_> = emulators.iter().map(|emulator| emulator.address.clone()).collect();
    tokio::spawn(balance(listener, backends));
    let n = N.to_string();
    let settings = [
        ("upstream.endpoint", url.as_str()),
        ("upstream.connect_timeout", "1s"),
        ("upstream.call_timeout", "3s"),
        ("ceilings.account", &n),
        ("publish.wait", "5s"),
    ];
    let serve = Serve::start(&settings, &[]).await;
    let until = Instant::now() + BEFORE + long + RECOVERS + WATCHED;
    let load = load(serve.publish.clone(), CALLERS, until);
    sleep(BEFORE).await;
    signal(&emulators[0], Signal::STOP);
    sleep(long).await;
    signal(&emulators[0], Signal::CONT);
    sleep(RECOVERS).await;
    let begun = jiff::Timestamp::now();
    sleep(WATCHED).await;
    let ended = jiff::Timestamp::now();
    tokio::task::spawn_blocking(move || load.join().unwrap()).await.unwrap();
    let mut taken = Vec::new();
    for emulator in &emulators {
        let text = get(&emulator.address, "/_emulator/messages").await.text();
        taken.extend(text.lines().map(|line| {
            let message: Value = serde_json::from_str(line).unwrap();
            message["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap()
        }));
    }
    taken.sort_unstable();
    let second = jiff::SignedDuration::from_secs(1);
    let end = |at: jiff::Timestamp| taken.partition_point(|other| *other < at + second);
    let worst = taken.iter().enumerate().map(|(i, at)| end(*at) - i).max().unwrap();
    let rate = taken.iter().filter(|at| (begun..ended).contains(at)).count() as f64
        / ended.duration_since(begun).as_secs_f64();
    let used = rate / N as f64;
    println!("one of four, stopped {long:?}: worst sliding second {worst} of {N}, {used:.3} used");
    assert!(worst <= usize::try_from(N).unwrap(), "{worst}");
    used
}

/// Connections are given to backends in turn.
async fn balance(listener: TcpListener, backends: Vec<String>) {
    let next = AtomicUsize::new(0);
    while let Ok((mut near, _)) = listener.accept().await {
        let backend = backends[next.fetch_add(1, Ordering::Relaxed) % backends.len()].clone();
        tokio::spawn(async move {
            let Ok(mut far) = TcpStream::connect(backend).await else { return };
            drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
        });
    }
}
