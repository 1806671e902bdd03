//! A bad night: the provider fails, throttles, rejects the key and blocks the address, the disk is full, Redis dies, a budget
//! ends. At 300 messages a second the log has few lines, and tells each cause, its beginning, its end and its cost.
//!
//! With `NIGHT=<folder>` it leaves there what an operator sees: the log, and at each fault the status, the page's data and
//! the metrics; and in `truth.txt` what was done.
#![allow(clippy::print_stdout, reason = "figures to quote")]
#![allow(clippy::disallowed_methods, reason = "commands of the system")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::callers::arrive_with;
use crate::support::http::{get, post, raw};
use crate::support::process::{Emulator, Serve, run};
use crate::support::redis::Redis;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::time::{Instant, sleep};

const PER_SECOND: f64 = 300.0;
const MOST_LINES: usize = 40;
const BUDGET: u64 = 3_000;

/// A small disk that ends with the test.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: &Path) -> Self {
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=48m", "tmpfs"]).arg(folder).status();
        assert!(
            mounted.unwrap().success(),
            "this test needs to mount a small disk: run it as root"
        );
        Self(folder.to_owned())
    }

    fn fill(&self) {
        let mut size = 64 << 20;
        while size > 512 {
            let name = self.0.join(format!("ballast-{size}"));
            if std::fs::write(&name, vec![0; size]).is_err() {
                size /= 2;
            }
        }
    }

    fn empty(&self) {
        for entry in std::fs::read_dir(&self.0).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_string_lossy().starts_with("ballast") {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: files may still be open.
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

struct Night {
    serve: Serve,
    control: String,
    start: Instant,
    /// What an operator sees, and what was done.
    seen: String,
    truth: String,
}

impl Night {
    fn begins(&mut self, what: &str) {
        let now = jiff::Timestamp::now().strftime("%H:%M:%S");
        println!("{:>4} s: {what}", self.start.elapsed().as_secs());
        writeln!(self.truth, "{now} {what}").unwrap();
    }

    async fn look(&mut self) {
        let now = jiff::Timestamp::now().strftime("%H:%M:%S");
        let status =
            run(&["status", "--set", &format!("listen.control={}", self.control)], &[]).await;
        let json = get(&self.serve.telemetry, "/status.json").await.text();
        let metrics = get(&self.serve.telemetry, "/metrics").await.text();
        let metrics =
            metrics.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0"));
        let metrics: Vec<_> = metrics.filter(|line| !line.contains("_bucket")).collect();
        let metrics = metrics.join("\n");
        let stdout = status.stdout;
        write!(
            self.seen,
            "\n===== {now} UTC =====\n--- tollgate status\n{stdout}{}\n--- GET /status.json (what the page draws)\n{json}\n\
             --- GET /metrics (without buckets and zeros)\n{metrics}\n",
            status.stderr
        )
        .unwrap();
    }
}

fn request(number: u64) -> Request<Full<Bytes>> {
    let topic = match number % 50 {
        0 => "Alarm/fire",
        1..20 => "Order/new",
        20..30 => "Meter/a",
        _ => "Telemetry/x",
    };
    let request = Request::post(format!("/publish/{topic}")).header("host", "localhost");
    request.body(Full::new(Bytes::from(format!("{number:0>200}")))).unwrap()
}

#[tokio::test]
async fn a_bad_night() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(folder.path());
    let emulator = Emulator::start(&["--egress-ip-qps", "650"]).await;
    let mut redis = Redis::start();
    let control = format!("unix:{}", folder.path().join("control.sock").display());
    let budget = format!(
        "[{{ name = \"alarms\", messages = {BUDGET}, period = \"day\", topics = [\"Alarm\"], on_exceed = \"refuse\" }}]"
    );
    let (url, spool, fleet) =
        (emulator.url(), folder.path().join("spool").display().to_string(), redis.url());
    let settings = [
        ("upstream.endpoint", &*url),
        ("spool.store", "disk"),
        ("spool.path", &spool),
        ("spool.max_bytes", "16MiB"),
        ("listen.control", &control),
        ("ceilings.egress_ip", "600"),
        ("ceilings.allow_above_published", "true"),
        ("fleet.url", &fleet),
        ("fleet.egress_group", "node-7"),
        ("billing.price_per_million", "12"),
        ("billing.budgets", &budget),
    ];
    let serve = Serve::start(&settings, &[]).await;
    // The fleet's ceilings are learnt: nothing is sent meanwhile.
    sleep(Duration::from_secs(40)).await;
    let address = serve.publish.clone();
    let end = Instant::now() + Duration::from_secs(NIGHT_SECONDS);
    let callers = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(arrive_with(&address, PER_SECOND, end, 7, request))
    });
    let (seen, truth) = (String::new(), String::new());
    let mut night = Night { serve, control, start: Instant::now(), seen, truth };
    let seconds = |n| sleep(Duration::from_secs(n));
    let faults = async |faults: &str| {
        post(&emulator.address, "/_emulator/faults", &[], faults.as_bytes()).await;
    };

    night.begins("calm");
    seconds(20).await;
    night.look().await;
    night.begins("the provider answers SendMessageFailed for 25 s");
    faults(r#"[{"code":"SendMessageFailed","for":"25s"}]"#).await;
    seconds(15).await;
    night.look().await;
    seconds(30).await;
    night.begins("the provider throttles nine of ten calls for 20 s");
    faults(r#"[{"code":"Throttling.User","probability":0.9,"for":"20s"}]"#).await;
    seconds(12).await;
    night.look().await;
    seconds(40).await;
    night.begins("the provider rejects the key (InvalidSecurityToken.Expired) for 20 s");
    faults(r#"[{"code":"InvalidSecurityToken.Expired","for":"20s"}]"#).await;
    seconds(12).await;
    night.look().await;
    seconds(35).await;
    night.begins("the disk is full for 30 s, and calls for Meter fail meanwhile");
    disk.fill();
    faults(r#"[{"code":"SendMessageFailed","topic":"Meter","for":"25s"}]"#).await;
    seconds(20).await;
    night.look().await;
    seconds(10).await;
    disk.empty();
    seconds(30).await;
    night.begins("Redis is killed; it comes back, empty, after 45 s");
    redis.kill();
    seconds(35).await;
    night.look().await;
    seconds(10).await;
    redis.restart();
    seconds(60).await;
    night.begins("another client floods from this address, and the provider blocks it; it lifts the block after 60 s");
    let flood = (0..1_000).map(|_| {
        let address = emulator.address.clone();
        tokio::spawn(async move {
            let call = b"GET /?Action=SendMessage HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
            // Its answers do not matter.
            drop(raw(&address, call).await);
        })
    });
    for call in flood.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    seconds(60).await;
    night.look().await;
    raw(
        &emulator.address,
        b"DELETE /_emulator/blocked HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    )
    .await;
    seconds(280).await;
    night.begins("the end");
    night.look().await;

    let answers = callers.await.unwrap();
    let mut statuses = std::collections::BTreeMap::<u16, usize>::new();
    for (.., answer) in answers {
        *statuses.entry(answer.map_or(0, |answer| answer.status().as_u16())).or_default() += 1;
    }
    let report = emulator.report().await;
    writeln!(night.truth, "callers: {statuses:?}\nprovider: {report:#}").unwrap();
    let log = night.serve.log();
    if let Some(folder) = std::env::var_os("NIGHT").map(PathBuf::from) {
        std::fs::create_dir_all(&folder).unwrap();
        for (name, text) in
            [("log.txt", &log), ("seen.txt", &night.seen), ("truth.txt", &night.truth)]
        {
            std::fs::write(folder.join(name), text).unwrap();
        }
    }
    println!("{statuses:?}; {} log lines", log.lines().count());
    for concern in
        ["delivery", "throttled", "access_key", "spool", "redis", "blocked", "budget alarms"]
    {
        let field = format!("\"concern\":\"{concern}\"");
        let lines: Vec<_> = log.lines().filter(|line| line.contains(&field)).collect();
        assert!(
            lines.iter().any(|line| line.contains("begins: ")),
            "{concern} does not begin:\n{log}"
        );
        let is_over =
            concern == "budget alarms" || lines.iter().any(|line| line.contains("over: "));
        assert!(is_over, "{concern} does not end:\n{log}");
    }
    assert!(log.lines().count() <= MOST_LINES, "{} lines:\n{log}", log.lines().count());
    // Money: what the provider took is what was counted, but for what is uncertain.
    let status = get(&night.serve.telemetry, "/status.json").await.json();
    let (today, accepted) = (&status["spend"]["today"], report["accepted"].as_u64().unwrap());
    let count = |name: &str| today[name].as_u64().unwrap();
    assert!(count("messages") <= accepted, "{today}");
    assert!(accepted <= count("messages") + count("uncertain"), "{accepted} of {today}");
}

/// The sum of what is waited above, and a little more.
const NIGHT_SECONDS: u64 = 690;
