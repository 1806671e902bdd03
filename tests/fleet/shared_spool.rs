//! Real sidecars that keep their messages in one real Redis, before one emulator: when one of them
//! dies its peers deliver what it has left, all of it, once.
#![allow(clippy::print_stdout, reason = "figures to quote")]

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support;
use crate::support::http::{get, post, series};
use crate::support::lossy::loses_an_answer;
use crate::support::process::{Emulator, Said, Serve, run};
use crate::support::redis::Redis;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

/// So many messages has a pod kept that is killed for good.
const MESSAGES: usize = 2_000;
/// In this time all of them are delivered.
const ACCEPTABLE: Duration = Duration::from_mins(1);
/// A peer takes nothing over before it has seen a pod stand still for 15 s: what arrives within this time
/// of a pod's death was sent by the pod.
const ITS_OWN: jiff::SignedDuration = jiff::SignedDuration::from_secs(10);
const FAILS: &[u8] = br#"[{"code":"SendMessageFailed","probability":1}]"#;

/// A Redis that keeps what it has when it dies, and whose fleet began a lease ago.
fn redis() -> Redis {
    let redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    redis.begin(&[("account", 1_000)]);
    redis
}

fn signal(redis: &Redis, signal: Signal) {
    kill_process(Pid::from_raw(redis.pid()).unwrap(), signal).unwrap();
}

/// What arrived at the provider: when, and the name that it gave it.
type Arrival = (Timestamp, String);

/// When a pod died or stood still, and all that Redis had heard by then.
struct Died {
    at: Timestamp,
    heard: String,
}

impl Died {
    fn now(pods: &Pods) -> Self {
        let at = Timestamp::now();
        let words: Vec<String> = pods.redis.tell("HVALS tollgate:{default}:spool:words");
        Self { at, heard: words.concat() }
    }

    /// Nobody could know of this delivery.
    fn forgives(&self, (at, name): &Arrival) -> bool {
        *at < self.at + ITS_OWN && !self.heard.contains(name.as_str())
    }
}

struct Pods {
    redis: Redis,
    emulator: Emulator,
    folder: tempfile::TempDir,
}

impl Pods {
    async fn new() -> Self {
        let emulator = Emulator::start(&["--egress-ip-qps", "0", "--account-qps", "1000"]).await;
        let (redis, folder) = (redis(), tempfile::tempdir().unwrap());
        Self { redis, emulator, folder }
    }

    fn settings(&self, name: &str, more: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
        let path = self.folder.path().join(name).display().to_string();
        let mut settings = vec![
            ("upstream.endpoint", self.emulator.url()),
            ("fleet.url", self.redis.url()),
            ("ceilings.account", "1000".to_owned()),
            ("spool.store", "redis".to_owned()),
            ("spool.path", path),
            ("retry.base", "50ms".to_owned()),
            ("retry.cap", "1s".to_owned()),
            ("drain.grace", "100ms".to_owned()),
            // A call that takes long on a busy machine is no doubt about its outcome; no fleet's may be
            // longer.
            ("upstream.call_timeout", "5s".to_owned()),
        ];
        settings.retain(|(key, _)| more.iter().all(|(other, _)| other != key));
        settings.extend(more.iter().map(|(key, value)| (*key, (*value).to_owned())));
        settings
    }

    async fn pod(&self, name: &str, more: &[(&'static str, &str)]) -> Serve {
        let settings = self.settings(name, more);
        let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, &**value)).collect();
        Serve::start(&settings, &[]).await
    }

    async fn fault(&self, faults: &[u8]) {
        let answer = post(&self.emulator.address, "/_emulator/faults", &[], faults).await;
        assert_eq!(answer.status, 200);
    }

    /// The arrivals of each message at the provider, by its body.
    async fn arrivals(&self) -> BTreeMap<String, Vec<Arrival>> {
        let mut arrivals = BTreeMap::<String, Vec<Arrival>>::new();
        let all = get(&self.emulator.address, "/_emulator/messages").await.text();
        for line in all.lines() {
            let message: Value = serde_json::from_str(line).unwrap();
            let body = STANDARD.decode(message["payload"].as_str().unwrap()).unwrap();
            let at = message["time"].as_str().unwrap().parse().unwrap();
            let name = message["MsgId"].as_str().unwrap().to_owned();
            arrivals.entry(String::from_utf8(body).unwrap()).or_default().push((at, name));
        }
        arrivals
    }

    /// Waits until all of these have arrived.
    async fn delivers(
        &self,
        bodies: &[String],
        within: Duration,
    ) -> BTreeMap<String, Vec<Arrival>> {
        let begun = Instant::now();
        let arrived = async {
            loop {
                let arrivals = self.arrivals().await;
                if bodies.iter().all(|body| arrivals.contains_key(body)) {
                    return arrivals;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        let arrived = timeout(within, arrived).await;
        let Ok(arrived) = arrived else {
            let arrivals = self.arrivals().await;
            let lost = bodies.iter().filter(|body| !arrivals.contains_key(*body)).count();
            panic!("{lost} of {} are not delivered within {within:?}", bodies.len());
        };
        println!("{} messages delivered after {:.1?}", bodies.len(), begun.elapsed());
        arrived
    }
}

/// Keeps so many messages in a sidecar, and returns their bodies.
async fn keeps(pod: &Serve, name: &str, messages: usize, durability: &str) -> Vec<String> {
    let bodies: Vec<_> = (0..messages).map(|n| format!("{name}-{n}")).collect();
    let headers = [("content-type", "application/x-ndjson"), ("prefer", "respond-async")];
    for some in bodies.chunks(1_000) {
        let line = |body: &String| format!("{{\"topic\":\"TopicA\",\"payload\":\"{body}\"}}\n");
        let lines: String = some.iter().map(line).collect();
        let answer = post(&pod.publish, "/publish", &headers, lines.as_bytes()).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        for line in answer.text().lines() {
            let told: Value = serde_json::from_str(line).unwrap();
            assert_eq!(told["Durability"], durability, "{told}");
        }
    }
    bodies
}

async fn queued(pod: &Serve) -> u64 {
    get(&pod.telemetry, "/status.json").await.json()["kept"]["queued"].as_u64().unwrap()
}

/// That each was delivered once, but for those whose outcome nobody could know when a pod died.
fn are_once(arrivals: &BTreeMap<String, Vec<Arrival>>, died: Option<&Died>) {
    let mut twice = 0;
    for (body, arrivals) in arrivals {
        for arrival in &arrivals[..arrivals.len() - 1] {
            let forgiven = died.is_some_and(|died| died.forgives(arrival));
            let died = died.map(|died| died.at);
            assert!(forgiven, "{body} was delivered at {arrivals:?}; died: {died:?}");
            twice += 1;
        }
    }
    println!("{twice} delivered twice, since nobody could know");
    // They are told in time: Redis has heard of most before a pod dies that has delivered for seconds.
    let before = |died: &Died| arrivals.values().flatten().filter(|(at, _)| *at < died.at).count();
    assert!(died.is_none_or(|died| twice * 2 < before(died)), "{twice} were delivered twice");
}

#[tokio::test]
async fn peers_deliver_what_a_killed_pod_has_kept() {
    let pods = Pods::new().await;
    pods.fault(FAILS).await;
    let killed = pods.pod("killed", &[]).await;
    let peers = [pods.pod("one", &[]).await, pods.pod("two", &[]).await];
    let bodies = keeps(&killed, "left", MESSAGES, "redis-aof-always").await;
    assert_eq!(queued(&killed).await, MESSAGES as u64);
    killed.signal(Signal::KILL);
    killed.ended().await;
    pods.fault(b"[]").await;
    let arrivals = pods.delivers(&bodies, ACCEPTABLE).await;
    are_once(&arrivals, None);
    for peer in &peers {
        support::until("nothing is left", async || queued(peer).await == 0).await;
    }
}

#[tokio::test]
async fn a_pod_that_is_killed_while_it_delivers() {
    let pods = Pods::new().await;
    pods.fault(FAILS).await;
    // It takes its time, so that it is killed in the middle however busy this machine is.
    let killed = pods.pod("killed", &[("ceilings.egress_ip", "100")]).await;
    let _peers = [pods.pod("one", &[]).await, pods.pod("two", &[]).await];
    let bodies = keeps(&killed, "left", MESSAGES, "redis-aof-always").await;
    pods.fault(b"[]").await;
    support::until("it delivers", async || pods.arrivals().await.len() > 300).await;
    killed.signal(Signal::KILL);
    killed.ended().await;
    let died = Died::now(&pods);
    let before = pods.arrivals().await.len();
    println!("{before} were delivered before the end");
    assert!(before < MESSAGES, "it was killed too late");
    are_once(&pods.delivers(&bodies, ACCEPTABLE).await, Some(&died));
}

#[tokio::test]
async fn an_answer_of_redis_that_is_lost_at_the_start() {
    let pods = Pods::new().await;
    pods.fault(FAILS).await;
    let killed = pods.pod("a", &[]).await;
    let bodies = keeps(&killed, "left", 230, "redis-aof-always").await;
    killed.signal(Signal::KILL);
    killed.ended().await;
    // Its successor finds them failing, too, so that they are tried together when that ends.
    let (port, loses) = loses_an_answer(pods.redis.port).await;
    let url = format!("redis://127.0.0.1:{port}");
    let again = pods.pod("a", &[("fleet.url", &*url)]).await;
    support::until("it has taken them up", async || queued(&again).await == 230).await;
    assert!(!loses.load(Ordering::Relaxed), "no answer was lost");
    pods.fault(b"[]").await;
    are_once(&pods.delivers(&bodies, ACCEPTABLE).await, None);
    support::until("nothing is left", async || queued(&again).await == 0).await;
    are_once(&pods.arrivals().await, None);
}

/// It may make no call for what is no longer its own, though it has it in its memory and was about to.
#[tokio::test]
async fn a_pod_that_stands_still_and_goes_on() {
    let pods = Pods::new().await;
    pods.fault(FAILS).await;
    // Messages are read before they wait for a permit.
    let slow = [("ceilings.egress_ip", "20")];
    let stopped = pods.pod("stopped", &slow).await;
    let _peer = pods.pod("peer", &[]).await;
    let bodies = keeps(&stopped, "left", 400, "redis-aof-always").await;
    pods.fault(b"[]").await;
    support::until("it delivers", async || pods.arrivals().await.len() > 60).await;
    stopped.signal(Signal::STOP);
    let died = Died::now(&pods);
    pods.delivers(&bodies, ACCEPTABLE).await;
    stopped.signal(Signal::CONT);
    support::until("it has learnt so", async || queued(&stopped).await == 0).await;
    // And works as ever.
    let more = keeps(&stopped, "more", 10, "redis-aof-always").await;
    are_once(&pods.delivers(&[bodies, more].concat(), ACCEPTABLE).await, Some(&died));
}

/// Nobody knows whether it arrived, and it is not to be delivered twice.
#[tokio::test]
async fn a_call_that_was_on_its_way_is_not_made_again_where_it_may_not() {
    let pods = Pods::new().await;
    pods.fault(br#"[{"code":"SendMessageFailed","probability":1,"then":"hang"}]"#).await;
    let park = [("retry.unknown", "park")];
    let killed = pods.pod("killed", &park).await;
    let peer = pods.pod("peer", &park).await;
    keeps(&killed, "left", 1, "redis-aof-always").await;
    support::until("a call is on its way", async || {
        pods.emulator.report().await["calls"].as_u64() == Some(1)
    })
    .await;
    killed.signal(Signal::KILL);
    killed.ended().await;
    pods.fault(b"[]").await;
    let dead = async || get(&peer.telemetry, "/status.json").await.json()["kept"]["dead"].as_u64();
    support::until("it is a dead letter", async || dead().await == Some(1)).await;
    assert_eq!(pods.arrivals().await.len(), 0);
}

#[tokio::test]
async fn with_a_redis_that_dies_and_stands_still_meanwhile() {
    let mut pods = Pods::new().await;
    pods.fault(FAILS).await;
    let killed = pods.pod("killed", &[]).await;
    let peers = [pods.pod("one", &[]).await, pods.pod("two", &[]).await];
    let mut bodies = keeps(&killed, "left", MESSAGES, "redis-aof-always").await;
    bodies.extend(keeps(&peers[0], "own", 200, "redis-aof-always").await);
    killed.signal(Signal::KILL);
    killed.ended().await;
    pods.redis.kill();
    let publish = async || {
        let prefer = [("prefer", "respond-async")];
        let answer = post(&peers[1].publish, "/publish/TopicA", &prefer, b"x");
        let answer = timeout(support::http::BOUND, answer).await.expect("an answer");
        (answer.status, answer.json()["type"].as_str().unwrap().to_owned())
    };
    // Nobody knows of the first that a connection takes along, nor of one that a busy machine lets wait.
    support::until("it is said that nothing is kept", async || {
        let told = publish().await;
        assert!(matches!(told.0, 503 | 504), "{told:?}");
        told == (503, "urn:tollgate:spool-unavailable".to_owned())
    })
    .await;
    pods.redis.restart();
    pods.fault(b"[]").await;
    signal(&pods.redis, Signal::STOP);
    sleep(Duration::from_secs(5)).await;
    signal(&pods.redis, Signal::CONT);
    are_once(&pods.delivers(&bodies, ACCEPTABLE).await, None);
    for peer in peers {
        peer.signal(Signal::TERM);
        let (status, log) = peer.ended().await;
        assert!(status.success() && !log.contains("panicked"), "{log}");
    }
}

#[tokio::test]
async fn who_ends_in_order_leaves_its_messages_at_once() {
    let pods = Pods::new().await;
    pods.fault(FAILS).await;
    let ends = pods.pod("ends", &[]).await;
    let bodies = keeps(&ends, "left", 100, "redis-aof-always").await;
    let peer = pods.pod("peer", &[]).await;
    ends.signal(Signal::TERM);
    let (status, log) = ends.ended().await;
    assert!(status.success(), "{log}");
    // Far sooner than it takes to notice a death.
    let taken = async {
        while queued(&peer).await < 100 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(12), taken).await.expect("they are taken over at once");
    pods.fault(b"[]").await;
    are_once(&pods.delivers(&bodies, ACCEPTABLE).await, None);
}

#[tokio::test]
async fn a_disk_hands_its_rest_over_at_sigterm() {
    let pods = Pods::new().await;
    pods.fault(FAILS).await;
    let disk = [("spool.store", "disk"), ("drain.handoff", "true")];
    let ends = pods.pod("disk", &disk).await;
    let bodies = keeps(&ends, "left", 300, "disk").await;
    let peer = pods.pod("peer", &[]).await;
    ends.signal(Signal::TERM);
    let (status, log) = ends.ended().await;
    assert!(status.success(), "{log}");
    assert!(log.contains("messages migrated to Redis"), "{log}");
    support::until("the peer has them", async || queued(&peer).await == 300).await;
    pods.fault(b"[]").await;
    are_once(&pods.delivers(&bodies, ACCEPTABLE).await, None);
    let left = messages(&pods.settings("disk", &disk), &["list", "-o", "json"]).await;
    assert_eq!((left.code, &*left.stdout), (0, ""), "{}", left.stderr);
}

/// The claim of a pod that is not there any more.
#[tokio::test]
async fn a_disk_without_a_sidecar_is_handed_over() {
    let pods = Pods::new().await;
    pods.fault(FAILS).await;
    let disk = [("spool.store", "disk")];
    let ends = pods.pod("disk", &disk).await;
    let bodies = keeps(&ends, "left", 300, "disk").await;
    ends.signal(Signal::TERM);
    assert!(ends.ended().await.0.success());
    let peer = pods.pod("peer", &[]).await;
    // As its peers are configured, and its folder named.
    let spool = pods.folder.path().join("disk").display().to_string();
    let settings = pods.settings("none", &[("listen.control", "none")]);
    let said = messages(&settings, &["deliver", "--handoff", "--spool", &spool]).await;
    let left = "300 handed over; left: 0 messages, 0 dead letters\n";
    assert_eq!((said.code, &*said.stdout), (0, left), "{}", said.stderr);
    support::until("the peer has them", async || queued(&peer).await == 300).await;
    pods.fault(b"[]").await;
    are_once(&pods.delivers(&bodies, ACCEPTABLE).await, None);
}

/// Without a Redis that takes them they stay where they are.
#[tokio::test]
async fn what_cannot_be_handed_over_stays_on_the_disk() {
    let mut pods = Pods::new().await;
    pods.fault(FAILS).await;
    let disk = [("spool.store", "disk"), ("drain.handoff", "true")];
    let ends = pods.pod("disk", &disk).await;
    let bodies = keeps(&ends, "left", 30, "disk").await;
    pods.redis.kill();
    ends.signal(Signal::TERM);
    let (status, log) = ends.ended().await;
    assert!(status.success() && log.contains("they stay on this disk"), "{log}");
    pods.redis.restart();
    // Nor is it passed over by who keeps in Redis from now on.
    let switched = pods.settings("disk", &[("upstream.instance_id", support::INSTANCE)]);
    let switched: Vec<_> = switched.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut args = vec!["serve", "--set", "listen.publish=127.0.0.1:0"];
    args.extend(["--set", "listen.telemetry=127.0.0.1:0"]);
    args.extend(switched.iter().flat_map(|flag| ["--set", flag]));
    let key = [
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", "testid"),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "testsecret"),
    ];
    let refused = run(&args, &key).await;
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("still holds 30 messages"), "{}", refused.stderr);
    pods.fault(b"[]").await;
    let _again = pods.pod("disk", &disk).await;
    are_once(&pods.delivers(&bodies, ACCEPTABLE).await, None);
}

/// The exit code of a stop, and how many messages it reports as lost with the pod.
async fn lost(ends: Serve) -> (Option<i32>, u64, String) {
    ends.signal(Signal::TERM);
    let (status, log) = ends.ended().await;
    assert!(log.contains("neither delivered nor handed over"), "{log}");
    let line = log.lines().find(|line| line.contains("stopped with messages in a spool"));
    let fields: Value = line.map(|line| serde_json::from_str(line).unwrap()).unwrap_or_default();
    (status.code(), fields["messages"].as_u64().unwrap_or(0), log)
}

/// In a folder that ends with its pod, only what Redis has not taken is lost with it.
#[tokio::test]
async fn what_is_handed_over_does_not_end_with_the_pod() {
    let mut pods = Pods::new().await;
    pods.fault(FAILS).await;
    let disk = [
        ("spool.store", "disk"),
        ("spool.lifetime", "pod"),
        ("drain.handoff", "true"),
        // Of all together, in Redis.
        ("spool.max_messages", "300"),
    ];
    let ends = pods.pod("all", &disk).await;
    let all = keeps(&ends, "all", 200, "pod").await;
    let (code, messages, log) = lost(ends).await;
    assert_eq!((code, messages), (Some(0), 0), "{log}");
    assert!(log.contains("messages migrated to Redis"), "{log}");

    let ends = pods.pod("some", &disk).await;
    keeps(&ends, "some", 150, "pod").await;
    let (code, messages, log) = lost(ends).await;
    assert_eq!((code, messages), (Some(3), 50), "there was room for a hundred: {log}");

    let ends = pods.pod("none", &disk).await;
    keeps(&ends, "none", 30, "pod").await;
    pods.redis.kill();
    let (code, messages, log) = lost(ends).await;
    assert_eq!((code, messages), (Some(3), 30), "{log}");

    pods.redis.restart();
    pods.fault(b"[]").await;
    let _peer = pods.pod("peer", &[]).await;
    are_once(&pods.delivers(&all, ACCEPTABLE).await, None);
    // And the hundred for which there was room.
    support::until("those of the second", async || pods.emulator.report().await["accepted"] == 300)
        .await;
    assert_eq!(pods.emulator.report().await["duplicates"], 0);
}

async fn messages(settings: &[(&'static str, String)], args: &[&str]) -> Said {
    let id = ("upstream.instance_id", support::INSTANCE.to_owned());
    let flags: Vec<_> =
        settings.iter().chain([&id]).map(|(key, value)| format!("{key}={value}")).collect();
    let mut all = vec!["messages"];
    all.extend(args);
    all.extend(flags.iter().flat_map(|flag| ["--set", flag]));
    run(&all, &[]).await
}

#[tokio::test]
async fn an_operator_sees_and_drops_what_stopped_sidecars_have_left() {
    let pods = Pods::new().await;
    pods.fault(br#"[{"code":"InvalidParameter.Topic","probability":1}]"#).await;
    let control = format!("unix:{}", pods.folder.path().join("control.sock").display());
    let more = [("listen.control", &*control)];
    let settings = pods.settings("a", &more);
    let pod = pods.pod("a", &more).await;
    keeps(&pod, "x", 3, "redis-aof-always").await;
    let list = ["list", "--state", "dead", "-o", "json"];
    support::until("they are dead letters", async || {
        messages(&settings, &list).await.stdout.lines().count() == 3
    })
    .await;

    // Whoever lives has them, and is asked.
    let stranger = pods.settings("b", &[("listen.control", "none")]);
    let seen = messages(&stranger, &list).await;
    assert_eq!((seen.code, seen.stdout.lines().count()), (0, 3), "{}", seen.stderr);
    let first: Value = serde_json::from_str(seen.stdout.lines().next().unwrap()).unwrap();
    let id = first["Id"].as_str().unwrap();
    let shown = messages(&stranger, &["show", id, "-o", "json"]).await;
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert!(STANDARD.decode(shown["PayloadBase64"].as_str().unwrap()).unwrap().starts_with(b"x-"));
    let refused = messages(&stranger, &["drop", "--all"]).await;
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("own 3 messages. Run the command where they run"),
        "{}",
        refused.stderr
    );

    pod.signal(Signal::TERM);
    pod.ended().await;
    let dropped = messages(&settings, &["drop", id]).await;
    assert_eq!((dropped.code, &*dropped.stdout), (0, "1 dropped\n"), "{}", dropped.stderr);
    let replayed = messages(&settings, &["replay", "--all"]).await;
    assert_eq!(replayed.stdout, "2 replayed\n", "{}", replayed.stderr);
    let left = messages(&settings, &["list", "--state", "queued", "-o", "json"]).await;
    assert_eq!(left.stdout.lines().count(), 2, "{}", left.stderr);
    pods.fault(b"[]").await;
    let _again = pods.pod("a", &more).await;
    support::until("they are delivered", async || pods.arrivals().await.len() == 2).await;
}

#[tokio::test]
async fn a_key_is_known_after_a_crash() {
    let pods = Pods::new().await;
    let pod = pods.pod("a", &[]).await;
    let publish = async |pod: &Serve| {
        post(&pod.publish, "/publish/TopicA", &[("idempotency-key", "\"k1\"")], b"once").await
    };
    let first = publish(&pod).await;
    assert_eq!(first.status, 200, "{}", first.text());
    pod.signal(Signal::KILL);
    pod.ended().await;
    let pod = pods.pod("a", &[]).await;
    let again = publish(&pod).await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (200, "true"));
    assert_eq!(again.json()["MsgId"], first.json()["MsgId"]);
    assert_eq!(pods.arrivals().await["once"].len(), 1);
}

/// Puts a record of a message of `TopicA` into Redis, with the owner that the first one there has.
fn plant(redis: &Redis, id: &str, body: &str) {
    let script = "local S, W = KEYS[1], KEYS[2]
        local owner = redis.call('XPENDING', S, 'tollgate', '-', '+', 1)[1][2]
        local new = redis.call('XADD', S, '0-*', 'id', ARGV[1], 'body', ARGV[3])
        redis.call('XCLAIM', S, 'tollgate', owner, 0, new, 'FORCE', 'JUSTID', 'LASTID', new)
        redis.call('HSET', W, ARGV[1], new .. ' 90 ' .. ARGV[2])";
    let instance = support::INSTANCE;
    let at = Timestamp::now();
    let words = format!(r#"{{"instance":"{instance}","topic":"TopicA","kept_at":"{at}"}}"#);
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(2);
    command.arg("tollgate:{default}:spool").arg("tollgate:{default}:spool:words");
    command.arg(id).arg(words).arg(body).exec(&mut redis.connection()).unwrap();
}

#[tokio::test]
async fn a_pod_delivers_what_its_own_rules_allow_and_its_keys_verify() {
    const PLANTED: &str = "01a2082df4757088bbc9b040e1f84a7d";
    let pods = Pods::new().await;
    let keys = pods.folder.path().join("keys");
    std::fs::write(&keys, STANDARD.encode([7; 32]) + "\n").unwrap();
    let mac = ("spool.mac_file", keys.to_str().unwrap());
    pods.fault(FAILS).await;
    let stopped = pods.pod("stopped", &[mac]).await;
    for topic in ["TopicA", "TopicB"] {
        let path = format!("/publish/{topic}");
        let headers = [("prefer", "respond-async")];
        let answer = post(&stopped.publish, &path, &headers, topic.as_bytes()).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    plant(&pods.redis, PLANTED, "planted");
    stopped.signal(Signal::TERM);
    stopped.ended().await;
    pods.fault(b"[]").await;

    let narrow = pods.pod("narrow", &[mac, ("topics.allow", "TopicA")]).await;
    pods.delivers(&["TopicA".to_owned()], ACCEPTABLE).await;
    let held = "tollgate_spool_held_messages";
    support::until("the rest is left", async || {
        let metrics = get(&narrow.telemetry, "/metrics").await.text();
        ["not_allowed", "unverified"].iter().all(|reason| {
            let dead = format!("{held}{{reason=\"{reason}\",owner=\"dead\"}}");
            (series(&metrics, &dead) - 1.0).abs() < 0.5
        })
    })
    .await;
    support::until("both are shown", async || {
        let status = get(&narrow.telemetry, "/status.json").await.json();
        let concerns = status["concerns"].to_string();
        ["Stored messages cannot be trusted", "Stored messages may not be sent from here"]
            .iter()
            .all(|title| concerns.contains(title))
    })
    .await;
    let wide = pods.pod("wide", &[mac]).await;
    pods.delivers(&["TopicB".to_owned()], ACCEPTABLE).await;
    for pod in [narrow, wide] {
        pod.signal(Signal::TERM);
        let (_, log) = pod.ended().await;
        assert!(log.contains("no valid MAC") && log.contains(PLANTED), "{log}");
    }
    let arrivals = pods.arrivals().await;
    are_once(&arrivals, None);
    assert!(!arrivals.contains_key("planted"));

    // An operator looks without keys, and drops it.
    let settings = pods.settings("operator", &[("listen.control", "none"), ("spool.mac_file", "")]);
    let listed = messages(&settings, &["list", "--state", "queued"]).await;
    assert!(listed.stdout.contains(PLANTED), "{}{}", listed.stdout, listed.stderr);
    let dropped = messages(&settings, &["drop", PLANTED]).await;
    assert!(
        dropped.code == 0 && dropped.stdout.contains('1'),
        "{}{}",
        dropped.stdout,
        dropped.stderr
    );
    let left = messages(&settings, &["list", "--state", "queued", "-o", "json"]).await;
    assert_eq!(left.stdout, "");
}

/// Messages whose time to live ends before a peer has them, after that, and not at all.
#[tokio::test]
async fn a_peer_sends_nothing_after_its_time_to_live() {
    let pods = Pods::new().await;
    pods.fault(FAILS).await;
    let killed = pods.pod("killed", &[]).await;
    let peer = pods.pod("peer", &[]).await;
    let keep = async |ttl: &str, urgency: &str, body: String| {
        let headers = [("ttl", ttl), ("urgency", urgency), ("prefer", "respond-async")];
        let answer = post(&killed.publish, "/publish/TopicA", &headers, body.as_bytes()).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.header("location").to_owned()
    };
    let (mut ending, mut living) = (Vec::new(), Vec::new());
    for n in 0..20 {
        let urgency = ["very-low", "low", "normal", "high"][n % 4];
        ending.push(keep("8", urgency, format!("soon-{n}")).await);
        ending.push(keep("40", urgency, format!("later-{n}")).await);
        keep("3600", urgency, format!("living-{n}")).await;
        living.push(format!("living-{n}"));
    }
    killed.signal(Signal::KILL);
    killed.ended().await;
    let status = async |location: &str| get(&peer.publish, location).await.json()["Status"].clone();
    support::until("it has those that live", async || queued(&peer).await == 40).await;
    support::until("the others have expired there", async || queued(&peer).await == 20).await;
    for location in &ending {
        assert_eq!(status(location).await, "expired");
    }
    pods.fault(b"[]").await;
    let arrivals = pods.delivers(&living, ACCEPTABLE).await;
    are_once(&arrivals, None);
    support::until("nothing is left", async || queued(&peer).await == 0).await;
    let arrivals = pods.arrivals().await;
    assert!(arrivals.keys().all(|body| living.contains(body)), "{:?}", arrivals.keys());
}
