//! Keys that change under load, with a real sidecar, a mounted Secret and the emulator.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::support::http::{get, post, series};
use crate::support::process::{Emulator, Serve};
use crate::support::until;

/// A Secret as the kubelet mounts it.
struct Secret(TempDir);

impl Secret {
    fn new(id: &str, secret: &str) -> Self {
        let folder = TempDir::new().unwrap();
        for part in ["access_key_id", "access_key_secret"] {
            symlink(format!("..data/{part}"), folder.path().join(part)).unwrap();
        }
        let mount = Self(folder);
        mount.publish(id, secret);
        mount
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn publish(&self, id: &str, secret: &str) {
        let version = self.path().join(format!("..{}", fastrand::u64(..)));
        fs::create_dir(&version).unwrap();
        fs::write(version.join("access_key_id"), id).unwrap();
        fs::write(version.join("access_key_secret"), secret).unwrap();
        let next = self.path().join("..data_tmp");
        symlink(version.file_name().unwrap(), &next).unwrap();
        fs::rename(next, self.path().join("..data")).unwrap();
    }
}

async fn serve(emulator: &Emulator, secret: &Secret, more: &[(&str, &str)]) -> Serve {
    let (url, path) = (emulator.url(), secret.path().display().to_string());
    let settings = [
        ("upstream.endpoint", url.as_str()),
        ("keys.source", "file"),
        ("keys.path", &path),
        ("keys.poll", "100ms"),
        ("ceilings.account", "none"),
    ];
    let serve = Serve::start(&[&settings[..], more].concat(), &[]).await;
    // It answers before it has read its key, and the test may change the files at once.
    until("it has a key", async || get(&serve.telemetry, "/startupz").await.status == 200).await;
    serve
}

/// Publishes at this rate until `done`; each status but 200, and how many messages there were.
async fn publish_until(
    serve: &Serve,
    each: Duration,
    mut done: impl AsyncFnMut() -> bool,
) -> (Vec<(u16, String)>, usize) {
    let mut ticks = interval(each);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut publishes = JoinSet::new();
    while !done().await {
        for _ in 0..10 {
            ticks.tick().await;
            let address = serve.publish.clone();
            publishes.spawn(async move {
                let answer = post(&address, "/publish/TopicA", &[], b"hello").await;
                (answer.status, answer.text())
            });
        }
    }
    let answers = publishes.join_all().await;
    let messages = answers.len();
    (answers.into_iter().filter(|(status, _)| *status != 200).collect(), messages)
}

async fn calls_with(emulator: &Emulator, id: &str) -> u64 {
    emulator.report().await["keys"][id].as_u64().unwrap_or_default()
}

async fn delete(address: &str, path: &str) {
    let request = format!("DELETE {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let answer = crate::support::http::raw(address, request.as_bytes()).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

const NO_LIMIT: [&str; 4] = ["--account-qps", "0", "--egress-ip-qps", "0"];

#[tokio::test]
async fn an_old_key_that_is_revoked_after_the_new_one_is_mounted_fails_no_publish() {
    let keys = [&NO_LIMIT[..], &["--keys", "newid=newsecret"]].concat();
    let emulator = Emulator::start(&keys).await;
    let secret = Secret::new("testid", "testsecret");
    let serve = serve(&emulator, &secret, &[]).await;
    let (mut mounted, mut revoked) = (None, None);
    let (failed, messages) = publish_until(&serve, Duration::from_millis(4), async || {
        let old = calls_with(&emulator, "testid").await;
        if mounted.is_none() && old > 100 {
            secret.publish("newid", "newsecret");
            serve.has_secret("newsecret");
            mounted = Some(Instant::now());
        }
        let on_trial = calls_with(&emulator, "newid").await > 0;
        let is_time = mounted.is_some_and(|at: Instant| at.elapsed() > Duration::from_secs(2));
        if revoked.is_none() && on_trial && is_time {
            delete(&emulator.address, "/_emulator/keys/testid").await;
            revoked = Some(Instant::now());
        }
        revoked.is_some() && calls_with(&emulator, "newid").await > 200
    })
    .await;
    assert_eq!(failed, [], "of {messages}: {}", serve.log());
    let metrics = get(&serve.telemetry, "/metrics").await.text();
    assert!(series(&metrics, "tollgate_key_reloads_total{source=\"file\",result=\"ok\"}") >= 2.0);
}

#[tokio::test]
async fn a_broken_new_key_touches_a_share_of_calls_and_fails_no_publish() {
    let emulator = Emulator::start(&NO_LIMIT).await;
    let secret = Secret::new("testid", "testsecret");
    let serve = serve(&emulator, &secret, &[]).await;
    let mut mounted = false;
    let refused = async || {
        emulator.report().await["refused"]["InvalidAccessKeyId.NotFound"].as_u64().unwrap_or(0)
    };
    let (failed, messages) = publish_until(&serve, Duration::from_millis(4), async || {
        let old = calls_with(&emulator, "testid").await;
        if !mounted && old > 100 {
            secret.publish("brokenid", "brokensecret");
            serve.has_secret("brokensecret");
            mounted = true;
        }
        refused().await > 0 && old > 800
    })
    .await;
    assert_eq!(failed, [], "of {messages}: {}", serve.log());
    let touched = refused().await;
    assert!((touched as f64) <= (messages as f64 * 0.01).ceil() + 1.0, "{touched} of {messages}");
    let log = serve.log();
    let line = "the provider refuses the new access key: tollgate goes on with the old one";
    assert_eq!(log.matches(line).count(), 1, "{log}");
    let metrics = get(&serve.telemetry, "/metrics").await.text();
    let series_of = |result: &str| {
        series(
            &metrics,
            &format!("tollgate_key_reloads_total{{source=\"file\",result=\"{result}\"}}"),
        )
    };
    assert_eq!((series_of("refused"), series_of("ok")), (1.0, 1.0), "{metrics}");
    // This test lifts the ceiling. What was wrong before is shown for a while.
    until("only these two are shown", async || {
        let status = get(&serve.telemetry, "/status.json").await.json();
        let concerns = status["concerns"].as_array().unwrap().iter();
        let titles: Vec<_> = concerns.map(|one| one["title"].clone()).collect();
        titles == ["The new access key is refused", "A ceiling is lifted"]
    })
    .await;
}

/// Keys that live for seconds, from a service that is down for some of them: no caller learns of it.
#[tokio::test]
async fn keys_that_live_for_seconds_are_renewed_under_load() {
    let emulator = Emulator::start(&[&NO_LIMIT[..], &["--key-life", "6s"]].concat()).await;
    let url = emulator.url();
    let settings = [
        ("upstream.endpoint", url.as_str()),
        ("ceilings.account", "none"),
        ("keys.source", "role"),
        ("keys.base", "env"),
        ("keys.role_arn", "acs:ram::1000000000000001:role/tollgate"),
        ("keys.sts_endpoint", &url),
    ];
    let serve = Serve::start(&settings, &[]).await;
    until("it has a key", async || get(&serve.telemetry, "/startupz").await.status == 200).await;
    let begun = Instant::now();
    let mut is_down = false;
    let (failed, messages) = publish_until(&serve, Duration::from_millis(4), async || {
        if !is_down && begun.elapsed() > Duration::from_secs(3) {
            let fault = br#"[{"action":"AssumeRole","then":"close","for":"3s"}]"#;
            post(&emulator.address, "/_emulator/faults", &[], fault).await;
            is_down = true;
        }
        begun.elapsed() > Duration::from_secs(14)
    })
    .await;
    assert_eq!(failed, [], "of {messages}: {}", serve.log());
    let report = emulator.report().await;
    assert!(report["issued"].as_u64().unwrap() >= 8, "{report}");
    assert!(report["refused"]["InvalidSecurityToken.Expired"].is_null(), "{report}");
    let metrics = get(&serve.telemetry, "/metrics").await.text();
    let failures = "tollgate_key_reloads_total{source=\"role\",result=\"failed\"}";
    assert!(series(&metrics, failures) >= 1.0, "the service was down");
    serve.logs("no access key from its source").await;
}

/// With one key, a refusal reads the source again before callers learn of it.
#[tokio::test]
async fn a_refusal_reads_the_source_once_more() {
    let emulator = Emulator::start(&[&NO_LIMIT[..], &["--keys", "newid=newsecret"]].concat()).await;
    let secret = Secret::new("testid", "testsecret");
    let serve = serve(&emulator, &secret, &[("keys.poll", "1h")]).await;
    assert_eq!(post(&serve.publish, "/publish/TopicA", &[], b"1").await.status, 200);
    delete(&emulator.address, "/_emulator/keys/testid").await;
    secret.publish("newid", "newsecret");
    serve.has_secret("newsecret");
    let answer = post(&serve.publish, "/publish/TopicA", &[], b"2").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["Attempts"], 2);
}

/// Also where two dead keys have used up the calls of a message.
#[tokio::test]
async fn with_both_keys_dead_the_source_is_read_once_more() {
    let emulator = Emulator::start(&[&NO_LIMIT[..], &["--keys", "newid=newsecret"]].concat()).await;
    let secret = Secret::new("testid", "testsecret");
    let serve = serve(&emulator, &secret, &[("keys.poll", "1h")]).await;
    // One odd refusal: the source has a new key, which is tried, and is none.
    secret.publish("brokenid", "brokensecret");
    serve.has_secret("brokensecret");
    let once = br#"[{"code":"InvalidAccessKeyId.NotFound","times":1}]"#;
    post(&emulator.address, "/_emulator/faults", &[], once).await;
    let answer = post(&serve.publish, "/publish/TopicA", &[], b"1").await;
    assert_eq!((answer.status, answer.json()["Attempts"].as_u64()), (200, Some(3)));
    serve.logs("tollgate goes on with the old one").await;
    delete(&emulator.address, "/_emulator/keys/testid").await;
    let answer = post(&serve.publish, "/publish/TopicA", &[], b"2").await;
    assert_eq!(answer.status, 502, "the source has the broken one: {}", answer.text());
    secret.publish("newid", "newsecret");
    serve.has_secret("newsecret");
    let answer = post(&serve.publish, "/publish/TopicA", &[], b"3").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(post(&serve.publish, "/publish/TopicA", &[], b"4").await.status, 200);
}

// === What memory holds ===

/// Everything readable of a process's memory that holds these bytes.
fn memory_holds(pid: u32, needle: &[u8]) -> usize {
    use std::os::unix::fs::FileExt as _;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("a test may read it as root");
    let mut found = 0;
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
        if !rights.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let (from, to) = (number(from), number(to));
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        let mut at = 0;
        while at < bytes.len() {
            // Guard pages cannot be read.
            match memory.read_at(&mut bytes[at..], from + at as u64) {
                Ok(n) if n > 0 => at += n,
                _ => break,
            }
        }
        found += bytes.windows(needle.len()).filter(|window| *window == needle).count();
    }
    found
}

#[tokio::test]
async fn after_a_rotation_memory_does_not_hold_the_old_secret() {
    let (old, new) = ("0ldS3cretOfThisTestOnly1", "n3wS3cretOfThisTestOnly2");
    let keys = format!("oldid={old},newid={new}");
    let emulator = Emulator::start(&[&NO_LIMIT[..], &["--keys", &keys]].concat()).await;
    let secret = Secret::new("oldid", old);
    let serve = serve(&emulator, &secret, &[("keys.canary_for", "0s")]).await;
    for _ in 0..20 {
        assert_eq!(post(&serve.publish, "/publish/TopicA", &[], b"1").await.status, 200);
    }
    assert!(memory_holds(serve.pid(), old.as_bytes()) > 0, "this test must be able to find it");
    secret.publish("newid", new);
    serve.has_secret(new);
    until("the new key is in use", async || {
        post(&serve.publish, "/publish/TopicA", &[], b"2").await;
        calls_with(&emulator, "newid").await > 5
    })
    .await;
    until("the old one is wiped", async || memory_holds(serve.pid(), old.as_bytes()) == 0).await;
    assert!(memory_holds(serve.pid(), new.as_bytes()) > 0);
    serve.signal(Signal::TERM);
    let (_, log) = serve.ended().await;
    assert!(!log.contains(old) && !log.contains(new), "{log}");
}
