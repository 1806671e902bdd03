//! The drills: how a pod ends, and what becomes of the messages that it had accepted.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::Value;

use super::node::{Container, Ended, Node, Pod, cgroup};
use crate::support::http::{get, post};
use crate::support::process::{Emulator, Serve};
use crate::support::redis::Redis;
use crate::support::until;

pub(super) const FAILS: &str = r#"[{"code":"SendMessageFailed"}]"#;
/// Messages of a drill that is not about room.
const MESSAGES: usize = 200;
/// Longer than any stop here may take.
const GRACE: Duration = Duration::from_mins(1);
/// What a kubelet gives a pod that it evicts for its size.
const EVICTED: Duration = Duration::from_secs(1);

/// What became of the messages of one drill.
pub(super) struct Drill {
    what: &'static str,
    spool: &'static str,
    accepted: usize,
    promise: String,
    delivered: usize,
    reported: usize,
}

impl Drill {
    fn lost(&self) -> usize {
        self.accepted - self.delivered
    }

    pub(super) fn row(&self) -> String {
        let Self { what, spool, accepted, promise, delivered, reported } = self;
        let lost = self.lost();
        format!(
            "| {what} | {spool} | {accepted}, `{promise}` | {delivered} | {lost} | {reported} |"
        )
    }

    /// A promise of `disk` is kept, and a loss of what was promised less is reported.
    pub(super) fn holds(&self) {
        assert!(self.accepted > 20, "a drill without messages: {}", self.row());
        match &*self.promise {
            "disk" => assert_eq!((self.lost(), self.reported), (0, 0), "{}", self.row()),
            "pod" => assert_eq!(self.lost(), self.reported, "a silent loss: {}", self.row()),
            other => panic!("an unknown promise {other}: {}", self.row()),
        }
    }
}

/// A provider, and how sidecars reach it.
pub(super) struct Provider {
    pub(super) emulator: Emulator,
    pub(super) url: String,
}

impl Provider {
    pub(super) async fn start(faults: &str) -> Self {
        let emulator = Emulator::start_at("[::]:0", &["--egress-ip-qps", "0"]).await;
        let port = emulator.address.rsplit_once(':').unwrap().1;
        let provider = Self { url: format!("http://{}:{port}", Node::gateway()), emulator };
        provider.fault(faults).await;
        provider
    }

    pub(super) async fn fault(&self, faults: &str) {
        let set = post(&self.emulator.address, "/_emulator/faults", &[], faults.as_bytes()).await;
        assert_eq!(set.status, 200, "{}", set.text());
    }

    /// The bodies that it has.
    pub(super) async fn has(&self) -> BTreeSet<String> {
        let all = get(&self.emulator.address, "/_emulator/messages").await.text();
        let body = |line: &str| {
            let message: Value = serde_json::from_str(line).unwrap();
            let body = STANDARD.decode(message["payload"].as_str().unwrap()).unwrap();
            // Large ones begin with what tells them apart.
            String::from_utf8_lossy(&body).split(' ').next().unwrap().to_owned()
        };
        all.lines().map(body).collect()
    }

    async fn delivered(&self, bodies: &[String]) -> usize {
        let has = self.has().await;
        bodies.iter().filter(|body| has.contains(*body)).count()
    }

    /// Works again, and gets all of these.
    pub(super) async fn gets(&self, bodies: &[String]) {
        self.fault("[]").await;
        until("all are delivered", async || self.delivered(bodies).await == bodies.len()).await;
    }
}

/// `tollgate serve` in a pod.
pub(super) fn serve<'a>(
    pod: &'a Pod<'_>,
    provider: &Provider,
    spool: &Path,
    more: &[(&str, &str)],
) -> Container<'a> {
    let base = [
        ("upstream.endpoint", &*provider.url),
        ("upstream.instance_id", "post-cn-test0001"),
        ("listen.publish", "[::]:8080"),
        ("listen.telemetry", "[::]:9464"),
        ("ceilings.account", "1000"),
        ("retry.base", "50ms"),
        ("retry.cap", "500ms"),
        ("drain.grace", "1s"),
    ];
    let set = base.iter().filter(|(key, _)| more.iter().all(|(other, _)| other != key));
    let set: Vec<_> = set.chain(more).copied().collect();
    pod.run(spool, &set, &["serve"])
}

/// What a probe of the kubelet gets; 0: no connection.
async fn probe(container: &Container<'_>, path: &str) -> u16 {
    if tokio::net::TcpStream::connect(&container.telemetry).await.is_err() {
        return 0;
    }
    get(&container.telemetry, path).await.status
}

pub(super) async fn started(container: &Container<'_>) {
    until("it has started", async || probe(container, "/startupz").await == 200).await;
}

/// Has so many messages accepted. Returns their bodies, and the promise of each answer.
pub(super) async fn accepts(container: &Container<'_>, messages: usize) -> (Vec<String>, String) {
    started(container).await;
    let bodies: Vec<_> = (0..messages).map(|n| format!("message-{n}")).collect();
    let line = |body: &String| format!("{{\"topic\":\"TopicA\",\"payload\":\"{body}\"}}\n");
    let lines: String = bodies.iter().map(line).collect();
    let headers = [("content-type", "application/x-ndjson"), ("prefer", "respond-async")];
    let answer = post(&container.publish, "/publish", &headers, lines.as_bytes()).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let promises =
        answer.text().lines().map(|line| promise(&serde_json::from_str(line).unwrap())).collect();
    (bodies, one(promises))
}

fn promise(answer: &Value) -> String {
    answer["Durability"].as_str().unwrap().to_owned()
}

fn one(promises: BTreeSet<String>) -> String {
    assert_eq!(promises.len(), 1, "{promises:?}");
    promises.into_iter().next().unwrap()
}

/// Publishes large messages until one is refused.
async fn fills(container: &Container<'_>) -> (Vec<String>, String) {
    started(container).await;
    let (mut bodies, mut promises) = (Vec::new(), BTreeSet::new());
    loop {
        let body = format!("message-{}", bodies.len());
        let whole = format!("{body} {}", "x".repeat(40_000));
        let prefer = [("prefer", "respond-async")];
        let answer = post(&container.publish, "/publish/TopicA", &prefer, whole.as_bytes()).await;
        match answer.status {
            202 => promises.insert(promise(&answer.json())),
            503 => return (bodies, one(promises)),
            status => panic!("{status}: {}", answer.text()),
        };
        bodies.push(body);
        assert!(bodies.len() < 2_000, "it is never full");
    }
}

async fn at_risk(container: &Container<'_>) -> usize {
    let metrics = get(&container.telemetry, "/metrics").await.text();
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix("tollgate_spool_at_risk_messages "));
    value.unwrap().parse().unwrap()
}

/// What the last of these warnings counts.
fn warned(log: &str, words: &str) -> usize {
    let line = log.lines().rev().find(|line| line.contains(words));
    let fields = line.map_or(Value::Null, |line| serde_json::from_str(line).unwrap());
    assert!(fields.is_null() || fields["level"] == "WARN", "{fields}");
    usize::try_from(fields["messages"].as_u64().unwrap_or(0)).unwrap()
}

/// What a sidecar that ended by itself has reported.
fn reported(ended: &Ended) -> usize {
    let lost = warned(&ended.log, "stopped with messages in a spool");
    assert_eq!(ended.code, if lost > 0 { 3 } else { 0 }, "{}", ended.log);
    lost
}

/// The bytes of a folder, as a kubelet counts them for a limit.
fn size(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(Result::unwrap).fold(0, |sum, entry| {
        let Ok(metadata) = entry.metadata() else { return sum };
        let inside = if metadata.is_dir() { size(&entry.path()) } else { 0 };
        sum + metadata.blocks() * 512 + inside
    })
}

/// The container is as a pod of Pod Security's profile `restricted` has it, and IPv6 is all it has.
pub(super) async fn restricted(node: &Node) {
    let provider = Provider::start("[]").await;
    let (pod, volume) = (node.pod(), node.volume("emptydir"));
    let container = serve(&pod, &provider, &volume, &[]);
    started(&container).await;
    let pid = container.pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in [
        "Uid:\t65532\t65532\t65532\t65532",
        "CapBnd:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "{line} is not in\n{status}");
    }
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).unwrap();
    assert!(root.split(' ').nth(3).unwrap().split(',').any(|option| option == "ro"), "{root}");
    let limits =
        [("memory", "memory.limit_in_bytes", "memory.max"), ("cpu", "cpu.cfs_quota_us", "cpu.max")];
    for ((controller, first, second), limit) in limits.into_iter().zip(["134217728", "100000"]) {
        let group = cgroup(pid, controller);
        let read = [first, second].map(|file| std::fs::read_to_string(group.join(file)));
        let read = read.into_iter().flatten().next().unwrap();
        assert!(read.starts_with(limit), "{controller}: {read}");
    }
    // The sidecar has found the limit.
    assert!(
        container.log().contains("the memory (128.0 MiB, runtime.memory)"),
        "{}",
        container.log()
    );
    let routes = std::fs::read_to_string(format!("/proc/{pid}/net/route")).unwrap();
    assert_eq!(routes.lines().count(), 1, "IPv4: {routes}");
    let (bodies, _) = accepts(&container, 50).await;
    provider.gets(&bodies).await;
    assert_eq!(container.stop(GRACE).await.expect("it ends in its grace").code, 0);
}

/// Each way in which a pod ends, with a spool that ends with it.
pub(super) async fn all(node: &Node) -> Vec<Drill> {
    vec![
        delete(node).await,
        in_order(node).await,
        job(node).await,
        job_that_outlasts_an_outage(node).await,
        job_that_hands_over(node).await,
        eviction(node, "emptyDir of 8Mi, default bounds", "256MiB", 8 << 20).await,
        eviction(node, "emptyDir of 48Mi, bounds that follow", "8MiB", 48 << 20).await,
        full(node).await,
        lost_node(node).await,
        out_of_memory(node).await,
    ]
}

const POD: (&str, &str) = ("spool.lifetime", "pod");

async fn delete(node: &Node) -> Drill {
    let provider = Provider::start(FAILS).await;
    let (pod, volume) = (node.pod(), node.volume("emptydir"));
    let container = serve(&pod, &provider, &volume, &[POD]);
    let (bodies, promise) = accepts(&container, MESSAGES).await;
    let ended = container.stop(GRACE).await.expect("it ends in its grace");
    std::fs::remove_dir_all(&volume).unwrap();
    let (accepted, delivered) = (bodies.len(), provider.delivered(&bodies).await);
    let reported = reported(&ended);
    Drill {
        what: "delete, provider down",
        spool: "emptyDir",
        accepted,
        promise,
        delivered,
        reported,
    }
}

/// The app ends first, as a native sidecar's does, and its last message is taken.
async fn in_order(node: &Node) -> Drill {
    let provider = Provider::start(r#"[{"code":"SendMessageFailed","probability":0.2}]"#).await;
    let (pod, volume) = (node.pod(), node.volume("emptydir"));
    let container = serve(&pod, &provider, &volume, &[POD, ("drain.grace", "20s")]);
    started(&container).await;
    let mut bodies = Vec::new();
    // The app, until its SIGTERM.
    for n in 0..MESSAGES {
        let body = format!("message-{n}");
        let prefer = [("prefer", "respond-async, wait=0")];
        let answer = post(&container.publish, "/publish/TopicA", &prefer, body.as_bytes()).await;
        assert!([200, 202].contains(&answer.status), "{}", answer.text());
        bodies.push(body);
    }
    let ended = container.stop(GRACE).await.expect("it ends in its grace");
    std::fs::remove_dir_all(&volume).unwrap();
    let (accepted, delivered) = (bodies.len(), provider.delivered(&bodies).await);
    let (promise, reported) = ("pod".to_owned(), reported(&ended));
    let what = "delete, app first, every fifth call fails";
    Drill { what, spool: "emptyDir", accepted, promise, delivered, reported }
}

async fn job(node: &Node) -> Drill {
    Drill { what: "Job ends, provider down", ..delete(node).await }
}

async fn job_that_outlasts_an_outage(node: &Node) -> Drill {
    let provider = Provider::start(FAILS).await;
    let (pod, volume) = (node.pod(), node.volume("emptydir"));
    let container = serve(&pod, &provider, &volume, &[POD, ("drain.grace", "40s")]);
    let (bodies, promise) = accepts(&container, MESSAGES).await;
    provider.fault(r#"[{"code":"SendMessageFailed","for":"2s"}]"#).await;
    let ended = container.stop(GRACE).await.expect("it ends in its grace");
    std::fs::remove_dir_all(&volume).unwrap();
    let (accepted, delivered) = (bodies.len(), provider.delivered(&bodies).await);
    let reported = reported(&ended);
    let what = "Job ends, outage shorter than drain.grace";
    Drill { what, spool: "emptyDir", accepted, promise, delivered, reported }
}

async fn job_that_hands_over(node: &Node) -> Drill {
    let provider = Provider::start(FAILS).await;
    let listen = ["--bind", "::", "127.0.0.1", "--protected-mode", "no"];
    let redis = Redis::start_with(&[&listen[..], &["--appendonly", "yes"]].concat());
    redis.begin(&[("account", 1_000)]);
    let url = format!("redis://{}:{}", Node::gateway(), redis.port);
    let (pod, volume) = (node.pod(), node.volume("emptydir"));
    let shared =
        [POD, ("fleet.url", &*url), ("drain.handoff", "true"), ("upstream.call_timeout", "5s")];
    let container = serve(&pod, &provider, &volume, &shared);
    let (bodies, promise) = accepts(&container, MESSAGES).await;
    let ended = container.stop(GRACE).await.expect("it ends in its grace");
    std::fs::remove_dir_all(&volume).unwrap();
    let peer_spool = tempfile::tempdir().unwrap();
    let path = peer_spool.path().display().to_string();
    let peer = [
        ("upstream.endpoint", &*provider.emulator.url()),
        ("upstream.instance_id", "post-cn-test0001"),
        ("ceilings.account", "1000"),
        ("spool.store", "redis"),
        ("spool.path", &path),
        ("fleet.url", &redis.url()),
        ("upstream.call_timeout", "5s"),
    ];
    let _peer = Serve::start(&peer, &[]).await;
    provider.gets(&bodies).await;
    let (accepted, delivered) = (bodies.len(), provider.delivered(&bodies).await);
    let (what, reported) = ("Job ends, provider down, drain.handoff", reported(&ended));
    Drill { what, spool: "emptyDir", accepted, promise, delivered, reported }
}

/// A kubelet evicts a pod whose emptyDir has more than its limit.
async fn eviction(node: &Node, spool: &'static str, max_bytes: &str, limit: u64) -> Drill {
    let provider = Provider::start(FAILS).await;
    let (pod, volume) = (node.pod(), node.volume("emptydir"));
    let settings = [POD, ("spool.max_bytes", max_bytes), ("drain.grace", "20s")];
    let container = serve(&pod, &provider, &volume, &settings);
    // Enough for the first limit; until the spool refuses, for the second.
    let (bodies, promise) = if max_bytes == "256MiB" {
        let (mut bodies, promise) = accepts(&container, MESSAGES).await;
        while size(&volume) <= limit {
            let whole = format!("large-{} {}", bodies.len(), "x".repeat(40_000));
            let prefer = [("prefer", "respond-async")];
            let answer =
                post(&container.publish, "/publish/TopicA", &prefer, whole.as_bytes()).await;
            assert_eq!(answer.status, 202, "{}", answer.text());
            bodies.push(format!("large-{}", bodies.len()));
        }
        (bodies, promise)
    } else {
        fills(&container).await
    };
    let is_evicted = size(&volume) > limit;
    let reported = if is_evicted {
        let log = |container: &Container<'_>| container.log();
        container.signal(Signal::TERM);
        until("it has warned", async || log(&container).contains("stopping with messages in"))
            .await;
        let reported = warned(&log(&container), "stopping with messages in a spool");
        // Its own grace is longer than the kubelet's: it is killed.
        assert!(container.ended(EVICTED).await.is_none());
        std::fs::remove_dir_all(&volume).unwrap();
        reported
    } else {
        provider.gets(&bodies).await;
        reported(&container.stop(GRACE).await.expect("it ends in its grace"))
    };
    let (accepted, delivered) = (bodies.len(), provider.delivered(&bodies).await);
    let what = if is_evicted { "eviction by size" } else { "no eviction: the spool is full first" };
    Drill { what, spool, accepted, promise, delivered, reported }
}

async fn full(node: &Node) -> Drill {
    let provider = Provider::start(FAILS).await;
    let (pod, volume) = (node.pod(), node.small_volume("12m"));
    let container = serve(&pod, &provider, volume.path(), &[]);
    let (bodies, promise) = fills(&container).await;
    assert!(container.log().contains("and the spool may take"), "{}", container.log());
    provider.gets(&bodies).await;
    let ended = container.stop(GRACE).await.expect("it ends in its grace");
    let (accepted, delivered) = (bodies.len(), provider.delivered(&bodies).await);
    let reported = reported(&ended);
    let spool = "claim of 12Mi";
    Drill { what: "full volume, provider down", spool, accepted, promise, delivered, reported }
}

/// No one asks the pod to end: what its last scrape had is what there is.
async fn lost_node(node: &Node) -> Drill {
    let provider = Provider::start(FAILS).await;
    let (pod, volume) = (node.pod(), node.volume("emptydir"));
    let container = serve(&pod, &provider, &volume, &[POD]);
    let (bodies, promise) = accepts(&container, MESSAGES).await;
    let reported = at_risk(&container).await;
    container.signal(Signal::KILL);
    assert_eq!(container.ended(GRACE).await.unwrap().code, 137);
    std::fs::remove_dir_all(&volume).unwrap();
    let (accepted, delivered) = (bodies.len(), provider.delivered(&bodies).await);
    let what = "node lost (kill), provider down";
    Drill { what, spool: "emptyDir", accepted, promise, delivered, reported }
}

/// The kernel kills the process for its group's memory, and the kubelet starts it again in the same pod.
async fn out_of_memory(node: &Node) -> Drill {
    let provider = Provider::start(FAILS).await;
    let (pod, volume) = (node.pod(), node.volume("emptydir"));
    let container = serve(&pod, &provider, &volume, &[POD]);
    let (bodies, promise) = accepts(&container, MESSAGES).await;
    let pid = container.pid();
    // As the kubelet does with a container that asks for less than its limit.
    std::fs::write(format!("/proc/{pid}/oom_score_adj"), "1000").unwrap();
    let group = cgroup(pid, "memory").join("cgroup.procs");
    let fill = "import time\nx = b'x' * (200 << 20)\ntime.sleep(60)";
    let script = format!("echo $$ > {}; exec python3 -c \"$0\"", group.display());
    let hog = Command::new("sh").args(["-c", &script, fill]).stderr(Stdio::null()).spawn();
    let killed = container.ended(GRACE).await;
    let mut hog = hog.unwrap();
    drop(hog.kill());
    hog.wait().unwrap();
    assert_eq!(killed.expect("the kernel kills it").code, 137);
    let again = serve(&pod, &provider, &volume, &[POD]);
    started(&again).await;
    provider.gets(&bodies).await;
    let ended = again.stop(GRACE).await.expect("it ends in its grace");
    let (accepted, delivered) = (bodies.len(), provider.delivered(&bodies).await);
    let (what, reported) = ("killed for memory, started again", reported(&ended));
    Drill { what, spool: "emptyDir", accepted, promise, delivered, reported }
}

/// One claim through a rolling update, a lost node, and a scale-down.
pub(super) async fn claims(node: &Node) -> Drill {
    let provider = Provider::start(FAILS).await;
    let (volume, pods) = (node.volume("claim"), [node.pod(), node.pod(), node.pod()]);
    let old = serve(&pods[0], &provider, &volume, &[]);
    let (bodies, promise) = accepts(&old, MESSAGES).await;
    // A surge: the successor is there before its predecessor is asked to end.
    let new = serve(&pods[1], &provider, &volume, &[]);
    until("it waits", async || new.log().contains("waiting for the other process to end")).await;
    assert_eq!((probe(&new, "/livez").await, probe(&new, "/startupz").await), (200, 503));
    let mut reported = reported(&old.stop(GRACE).await.expect("it ends in its grace"));
    started(&new).await;
    // Its node is lost.
    new.signal(Signal::KILL);
    assert_eq!(new.ended(GRACE).await.unwrap().code, 137);
    // No replica has the claim any more.
    provider.fault("[]").await;
    let settings = [
        ("upstream.endpoint", &*provider.url),
        ("upstream.instance_id", "post-cn-test0001"),
        ("ceilings.account", "1000"),
    ];
    let deliver = ["messages", "deliver", "--spool", "/var/lib/tollgate/spool"];
    let job = pods[2].run(&volume, &settings, &deliver);
    let ended = job.ended(GRACE).await.expect("it ends when it is empty");
    assert_eq!(ended.code, 0, "{}", ended.log);
    let said = format!("{MESSAGES} delivered; left: 0 messages, 0 dead letters");
    assert!(ended.log.contains(&said), "{}", ended.log);
    reported += warned(&ended.log, "stopped with messages in a spool");
    let (accepted, delivered) = (bodies.len(), provider.delivered(&bodies).await);
    let what = "rolling update, then node lost, then scaled down and `messages deliver`";
    Drill { what, spool: "one claim", accepted, promise, delivered, reported }
}
