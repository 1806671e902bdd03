//! Real sidecars that share ceilings, before one emulator that counts what arrives.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::print_stdout, reason = "figures to quote")]

use std::time::Duration;

use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::callers;
use super::process::{Emulator, Serve};
use super::redis::Redis;

/// Calls a second that are shared.
pub const N: u64 = 300;

/// Callers at each of five sidecars: three times as many as permits. Each waits for its answer, so
/// there is a line at every door.
pub const CALLERS: usize = 180;

/// A Redis whose fleet began a lease ago.
pub fn redis() -> Redis {
    let redis = Redis::start();
    redis.begin(&[("account", N)]);
    redis
}

pub struct Fleet {
    pub emulator: Emulator,
    pub sidecars: Vec<Serve>,
    pub start: Instant,
}

impl Fleet {
    /// A sidecar for each of these addresses of Redis.
    pub async fn start(urls: &[String]) -> Self {
        let members: Vec<_> = urls.iter().map(|url| vec![("fleet.url", url.clone())]).collect();
        Self::start_with(&["--egress-ip-qps", "0"], &members).await
    }

    /// A sidecar with each of these settings, before an emulator with these arguments.
    pub async fn start_with(args: &[&str], members: &[Vec<(&str, String)>]) -> Self {
        let account = N.to_string();
        let emulator = Emulator::start(&[&["--account-qps", &account], args].concat()).await;
        let mut fleet = Self { emulator, sidecars: Vec::new(), start: Instant::now() };
        for settings in members {
            fleet.join(members.len(), settings).await;
        }
        fleet.start = Instant::now();
        fleet
    }

    /// One more, which expects so many.
    pub async fn join(&mut self, expected: usize, more: &[(&str, String)]) {
        let (endpoint, account, expected) =
            (self.emulator.url(), N.to_string(), expected.to_string());
        let mut settings = vec![
            ("upstream.endpoint", endpoint.as_str()),
            ("ceilings.account", &account),
            ("publish.wait", "5s"),
            ("runtime.threads", "1"),
            ("fleet.expected_sidecars", &expected),
        ];
        settings.retain(|(key, _)| more.iter().all(|(other, _)| other != key));
        settings.extend(more.iter().map(|(key, value)| (*key, value.as_str())));
        self.sidecars.push(Serve::start(&settings, &[]).await);
    }

    /// Callers at each, until then.
    pub async fn load(&self, seconds: u64) {
        let until = self.start + Duration::from_secs(seconds);
        let loads = self.sidecars.iter().map(|sidecar| load(sidecar, CALLERS, until));
        let loads: Vec<_> = loads.collect();
        for load in loads {
            assert!(load.await.unwrap() > 0);
        }
    }

    pub async fn at(&self, seconds: u64) {
        sleep_until(self.start + Duration::from_secs(seconds)).await;
    }

    /// Never over, and nothing pushed back; how many calls each second held.
    pub async fn kept(&self, what: &str) -> Vec<u64> {
        let (calls, report) = self.never_over(what).await;
        assert_eq!(report["refused"], serde_json::json!({}));
        calls
    }

    /// How many calls each second held, and the whole report.
    pub async fn never_over(&self, what: &str) -> (Vec<u64>, Value) {
        let report = self.emulator.report().await;
        let seconds = report["by_second"].as_array().unwrap();
        let calls: Vec<u64> = seconds.iter().map(|s| s["calls"].as_u64().unwrap()).collect();
        println!(
            "{what}: worst sliding second {} of {N}, by second {calls:?}",
            report["worst_second"]
        );
        assert!(report["worst_second"].as_u64().unwrap() <= N, "{report}");
        (calls, report)
    }
}

/// So many callers at one sidecar; how many answers they got.
pub fn load(sidecar: &Serve, callers: usize, until: Instant) -> tokio::task::JoinHandle<usize> {
    let address = sidecar.publish.clone();
    tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(callers::run(&address, callers, until)).len()
    })
}

pub async fn metric(sidecar: &Serve, name: &str) -> f64 {
    let text = super::http::get(&sidecar.telemetry, "/metrics").await.text();
    let line = text.lines().find(|line| line.starts_with(name));
    let line = line.unwrap_or_else(|| panic!("{name} is not in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

pub async fn mode(sidecar: &Serve, word: &str) -> bool {
    metric(sidecar, &format!("tollgate_fleet_mode{{mode=\"{word}\"}}")).await > 0.0
}

/// Waits until it is so; leases end within 30 s.
pub async fn becomes(sidecar: &Serve, word: &str) {
    let end = Instant::now() + Duration::from_secs(40);
    while !mode(sidecar, word).await {
        assert!(Instant::now() < end, "not {word}:\n{}", sidecar.log());
        sleep(Duration::from_millis(50)).await;
    }
}

pub fn mean(calls: &[u64]) -> f64 {
    calls.iter().sum::<u64>() as f64 / calls.len() as f64
}

/// Where a [`Way`] leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    Port(u16),
    /// Connections are closed.
    Nobody,
    /// Connections stay, and nothing gets through or comes back, ever.
    Nowhere,
}

/// A way to a port that can be led elsewhere. Connections of before are closed then.
pub struct Way {
    pub port: u16,
    to: watch::Sender<To>,
}

impl Way {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port_here = listener.local_addr().unwrap().port();
        let (sender, to) = watch::channel(To::Port(port));
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, to.clone()));
            }
        });
        Self { port: port_here, to: sender }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn lead(&self, to: To) {
        self.to.send(to).unwrap();
    }
}

async fn carry(mut near: TcpStream, mut to: watch::Receiver<To>) {
    let leads = *to.borrow_and_update();
    let mut far = match leads {
        To::Port(port) => match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(far) => Some(far),
            Err(_) => return,
        },
        To::Nobody => return,
        To::Nowhere => None,
    };
    if let Some(far) = &mut far {
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, far) => return,
            _ = to.changed() => {}
        }
    }
    if *to.borrow_and_update() == To::Nowhere {
        drop(to.changed().await);
    }
}
