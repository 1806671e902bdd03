//! `tollgate messages`, on a running sidecar and on a stopped one.

use std::fmt::Display;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::support;
use crate::support::http::{get, post, series};
use crate::support::process::{Said, Serve, run};
use crate::support::script::{Script, error};
use crate::support::secrets::SearchedNow as _;
use crate::support::test_sidecar::message;
use crate::support::until;
use jiff::{SignedDuration, Timestamp};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tollgate::sidecar::spool_options;
use tollgate::spool::{Change, Death, Reason, Spool};

/// The verb with this sidecar's configuration.
struct Verb(Vec<String>);

impl Verb {
    fn new(settings: &[(&str, impl Display)]) -> Self {
        let mut flags = vec!["--set".to_owned(), "upstream.instance_id=x".to_owned()];
        for (key, value) in settings {
            flags.extend(["--set".to_owned(), format!("{key}={value}")]);
        }
        Self(flags)
    }

    async fn run(&self, args: &[&str]) -> Said {
        let flags = self.0.iter().map(String::as_str);
        let args: Vec<_> =
            std::iter::once("messages").chain(args.iter().copied()).chain(flags).collect();
        run(&args, &[]).await
    }

    async fn list(&self, args: &[&str]) -> Vec<Value> {
        let said = self.run(&[&["list", "-o", "json"], args].concat()).await;
        assert_eq!(said.code, 0, "{}", said.stderr);
        said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// A sidecar whose messages the provider has refused.
struct DeadLetters {
    _folder: TempDir,
    _script: Script,
    socket: PathBuf,
    settings: Vec<(&'static str, String)>,
    serve: Serve,
    ids: Vec<String>,
}

impl DeadLetters {
    /// One for each of these topics, whose name is its body.
    async fn of(topics: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spool = folder.path().join("spool").display().to_string();
        let socket = folder.path().join("control.sock");
        let refusals = topics.iter().map(|_| error(400, "ParameterCheckFailed"));
        let script = Script::start(refusals).await;
        let settings = vec![
            ("upstream.endpoint", script.url.clone()),
            ("spool.store", "disk".to_owned()),
            ("spool.path", spool),
            ("listen.control", format!("unix:{}", socket.display())),
        ];
        let given: Vec<_> = settings.iter().map(|(key, value)| (*key, &**value)).collect();
        let serve = Serve::start(&given, &[]).await;
        let mut ids = Vec::new();
        for topic in topics {
            let path = format!("/publish/{topic}");
            let prefer = [("prefer", "respond-async")];
            let answer = post(&serve.publish, &path, &prefer, topic.as_bytes()).await;
            ids.push(answer.json()["Id"].as_str().unwrap().to_owned());
        }
        until("all are dead letters", async || {
            get(&serve.telemetry, "/status.json").await.json()["kept"]["dead"] == topics.len()
        })
        .await;
        Self { _folder: folder, _script: script, socket, settings, serve, ids }
    }
}

/// What could mean no message is told, by a running sidecar as by a stopped one.
async fn are_mistakes(verb: &Verb) {
    let nobody = "0".repeat(32);
    for (wrong, told, code) in [
        (&["show", "x"][..], "no message id", 2),
        (&["show", &nobody], "No message with this id", 1),
        (&["drop"], "othing is selected", 2),
        (&["replay"], "othing is selected", 2),
        (&["drop", "x"], "no message id", 2),
        (&["replay", "--topic", "a/#"], "MQTT filter", 2),
        (&["replay", "--state", "queued"], "[possible values: dead]", 2),
        (&["drop", "--state", "delivered"], "[possible values: queued, dead]", 2),
        (&["list", "--topic", "a/+"], "MQTT filter", 2),
    ] {
        let said = verb.run(wrong).await;
        let is_told = said.stderr.to_lowercase().contains(&told.to_lowercase());
        assert!(said.code == code && is_told, "{wrong:?}: {} {}", said.code, said.stderr);
    }
}

/// The control socket without the verb: pages, and what is refused.
async fn the_socket_itself(socket: &std::path::Path, ids: &[String]) {
    let answer = raw(socket, "GET", "/messages?state=dead&limit=2", "").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("200 OK") && head.contains("application/x-ndjson"), "{head}");
    let page: Vec<Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(page.len(), 2);
    assert!(
        page[0].get("MsgId").is_none() && page[0].get("PayloadBase64").is_none(),
        "{}",
        page[0]
    );
    let rest = format!("/messages?state=dead&after={}", ids[1]);
    let rest = raw(socket, "GET", &rest, "").await;
    assert!(rest.contains(&ids[2]) && !rest.contains(&ids[1]), "{rest}");
    for (method, path, body) in [
        ("GET", "/messages?limit=0", ""),
        ("GET", "/messages?stat=dead", ""),
        ("POST", "/messages/drop", "{}"),
        ("POST", "/messages/drop", "{\"id\":[]}"),
        ("POST", "/messages/replay", "{\"ids\":[\"x\"]}"),
    ] {
        let answer = raw(socket, method, path, body).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{method} {path} {body}: {answer}");
    }
    let long = format!("{{\"topic\":\"{}\"}}", "a".repeat(1 << 20));
    let answer = raw(socket, "POST", "/messages/drop", &long).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
}

async fn raw(socket: &std::path::Path, method: &str, path: &str, body: &str) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: c\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // It may answer before it has read all.
    drop(stream.write_all(body.as_bytes()).await);
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await);
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn dead_letters() {
    let topics = ["TopicA/one", "TopicA/two", "TopicB"];
    let DeadLetters { _folder, _script, socket, settings, serve, ids } =
        DeadLetters::of(&topics).await;
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let verb = Verb::new(&settings);
    let listed = verb.list(&["--state", "dead"]).await;
    assert_eq!(listed.len(), 3);
    assert_eq!(listed[0]["Id"], ids[0].as_str());
    assert_eq!(
        (&listed[0]["Reason"], &listed[0]["Code"]),
        (&"refused".into(), &"ParameterCheckFailed".into())
    );
    assert_eq!(listed[0]["RequestId"], "REQ-1");
    assert_eq!(verb.list(&["--topic", "TopicA/*"]).await.len(), 2);
    assert_eq!(verb.list(&["--reason", "expired"]).await.len(), 0);
    assert_eq!(verb.list(&["--limit", "1"]).await.len(), 1);
    let table = verb.run(&["list"]).await.stdout;
    assert!(table.starts_with("ID ") && table.contains("ParameterCheckFailed"), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
    let shown = verb.run(&["show", &ids[1]]).await.stdout;
    assert!(shown.contains("VG9waWNBL3R3bw=="), "the payload: {shown}");
    let shown = verb.run(&["show", &ids[1], "-o", "json"]).await.stdout;
    assert_eq!(serde_json::from_str::<Value>(&shown).unwrap()["Bytes"], 10);
    are_mistakes(&verb).await;
    the_socket_itself(&socket, &ids).await;

    assert_eq!(verb.run(&["replay", "--topic", "TopicB"]).await.stdout, "1 replayed\n");
    let delivered = async {
        while verb.list(&["--state", "delivered"]).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(support::http::BOUND, delivered).await.expect("it is delivered");
    assert_eq!(verb.run(&["drop", &ids[0]]).await.stdout, "1 dropped\n");
    assert_eq!(verb.list(&["--state", "dead"]).await.len(), 1);

    serve.signal(Signal::TERM);
    assert!(serve.ended().await.0.success());
    are_mistakes(&verb).await;
    assert_eq!(verb.list(&["--state", "dead"]).await[0]["Id"], ids[1].as_str());
    let replayed = verb.run(&["replay", "--all", "-o", "json"]).await;
    assert_eq!(replayed.stdout, "{\"Messages\":1}\n", "{}", replayed.stderr);
    assert_eq!(verb.list(&["--state", "queued"]).await.len(), 1);
    assert_eq!(verb.run(&["drop", "--all"]).await.stdout, "0 dropped\n", "queued ones are named");
    assert_eq!(verb.run(&["drop", "--state", "queued"]).await.stdout, "1 dropped\n");
    assert!(verb.list(&["--state", "queued"]).await.is_empty());
}

/// A stop does not wait for the next try of what was dropped.
#[tokio::test]
async fn what_is_dropped_holds_up_no_stop() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool").display().to_string();
    let control = format!("unix:{}", folder.path().join("control.sock").display());
    let script = Script::start((0..1_000).map(|_| error(500, "InternalError"))).await;
    let settings = [
        ("upstream.endpoint", &*script.url),
        ("spool.store", "disk"),
        ("spool.path", &*spool),
        ("listen.control", &*control),
        ("retry.base", "1h"),
        ("retry.cap", "1h"),
        ("drain.grace", "1h"),
    ];
    let serve = Serve::start(&settings, &[]).await;
    for _ in 0..5 {
        post(&serve.publish, "/publish/TopicA", &[("prefer", "respond-async")], b"x").await;
    }
    until("all of them wait", async || {
        let status = get(&serve.telemetry, "/status.json").await.json();
        status["paused"][0]["messages"] == 5
    })
    .await;
    let verb = Verb::new(&settings);
    assert_eq!(verb.run(&["drop", "--state", "queued"]).await.stdout, "5 dropped\n");
    serve.signal(Signal::TERM);
    let (status, log) = serve.ended().await;
    assert!(status.success() && !log.contains("messages stay in the spool"), "{log}");
}

/// Where the configured socket cannot be made, it is beside the spool.
#[tokio::test]
async fn the_socket_beside_the_spool() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().display().to_string();
    let script = Script::start([]).await;
    let settings = [
        ("upstream.endpoint", &*script.url),
        ("spool.store", "disk"),
        ("spool.path", &*spool),
        ("listen.control", "unix:/dev/null/x/control.sock"),
    ];
    let serve = Serve::start(&settings, &[]).await;
    assert!(folder.path().join("control.sock").exists());
    assert!(Verb::new(&settings).list(&[]).await.is_empty());
    drop(serve);

    let none =
        [("upstream.endpoint", "http://x"), ("spool.store", "none"), ("listen.control", "none")];
    let said = Verb::new(&none).run(&["list"]).await;
    assert!(said.code == 1 && said.stderr.contains("nothing is stored"), "{}", said.stderr);
    let nowhere = [("upstream.endpoint", "http://x"), ("spool.path", "/nowhere/at/all")];
    let said = Verb::new(&nowhere).run(&["list"]).await;
    assert!(said.code == 1 && said.stderr.contains("there is no spool"), "{}", said.stderr);
}

/// A pattern, a list of many pages and a reader who has seen enough.
#[tokio::test]
async fn many_and_help() {
    let DeadLetters { _folder, _script, settings, serve, .. } =
        DeadLetters::of(&["TopicA"; 40]).await;
    // What a list leaves out, it counts.
    let more = async |verb: &Verb, args: &[&str], listed: usize, more: &str| {
        for format in ["table", "json"] {
            let said = verb.run(&[&["list", "-o", format], args].concat()).await;
            let header = usize::from(format == "table");
            assert_eq!(said.stdout.lines().count(), listed + header, "{}", said.stdout);
            assert_eq!(said.stderr.split(" not shown").next().unwrap(), more, "{args:?}");
        }
    };
    let verb = Verb::new(&settings);
    more(&verb, &["--limit", "39"], 39, "1 more message").await;
    more(&verb, &["--state", "dead", "--limit", "5"], 5, "35 more messages").await;
    more(&verb, &["--limit", "40"], 40, "").await;
    more(&verb, &["--state", "queued"], 0, "").await;
    // No control socket, and the spool is held.
    let mut quiet = settings;
    quiet.push(("listen.control", "none".to_owned()));
    let verb = Verb::new(&quiet);
    let said = verb.run(&["list"]).await;
    assert!(said.code == 1 && said.stderr.contains("another process holds"), "{}", said.stderr);
    serve.signal(Signal::TERM);
    assert!(serve.ended().await.0.success());

    more(&verb, &["--limit", "5"], 5, "35 more messages").await;
    more(&verb, &[], 40, "").await;
    assert_eq!(verb.run(&["replay", "--all"]).await.stdout, "40 replayed\n");
    let flags = verb.0.join(" ");
    let tollgate = env!("CARGO_BIN_EXE_tollgate");
    let line = format!("set -o pipefail; {tollgate} messages list {flags} | true");
    let piped = std::process::Command::new("bash").args(["-c", &line]).searched_now().unwrap();
    assert!(piped.status.success(), "{}", String::from_utf8_lossy(&piped.stderr));
    for verb in ["list", "show", "replay", "drop"] {
        let help = run(&["messages", verb, "--help"], &[]).await.stdout;
        assert!(help.contains("Example:") && help.contains(&format!("messages {verb} ")), "{help}");
    }
}

/// Who has done what with which messages is in the log, and counted.
#[tokio::test]
async fn operators_are_in_the_audit_log() {
    let DeadLetters { _folder, _script, socket, settings, serve, ids } =
        DeadLetters::of(&["TopicA"; 25]).await;
    let verb = Verb::new(&settings);
    assert_eq!(verb.run(&["show", &ids[0]]).await.code, 0);
    let nobody = "0".repeat(32);
    assert_eq!(verb.run(&["show", &nobody]).await.code, 1);
    assert_eq!(verb.run(&["list"]).await.code, 0);
    let replay = format!("{{\"ids\":[\"{}\"]}}", ids[1]);
    assert!(raw(&socket, "POST", "/messages/replay", &replay).await.contains("{\"Messages\":1}"));
    let dropped = verb.run(&["drop", "--topic", "Topic*", "--state", "dead"]).await.stdout;
    assert_eq!(dropped, "24 dropped\n");
    let metrics = get(&serve.telemetry, "/metrics").await.text();
    for (verb, count) in [("show", 2.0), ("replay", 1.0), ("drop", 1.0)] {
        let name = format!("tollgate_operator_actions_total{{verb=\"{verb}\"}}");
        assert!((series(&metrics, &name) - count).abs() < 0.1, "{verb}: {metrics}");
    }
    serve.signal(Signal::TERM);
    let (_, log) = serve.ended().await;
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let audit: Vec<_> = lines.filter(|line| line["target"] == "tollgate::audit").collect();
    let told: Vec<_> = audit
        .iter()
        .map(|line| {
            assert_eq!(line["level"], "INFO");
            assert_eq!(line["uid"], rustix::process::geteuid().as_raw());
            let text = |name: &str| line[name].as_str().unwrap();
            (text("verb"), text("selection"), line["messages"].as_u64().unwrap(), text("ids"))
        })
        .collect();
    let [of_shown, of_nobody, of_replayed] =
        [&ids[0], &nobody, &ids[1]].map(|id| format!("ids={id}"));
    let rest: Vec<_> = ids.iter().filter(|id| **id != ids[1]).take(20).cloned().collect();
    assert_eq!(
        told,
        [
            ("show", &*of_shown, 1, &*ids[0]),
            ("show", &*of_nobody, 0, ""),
            ("replay", &*of_replayed, 1, &*ids[1]),
            ("drop", "topic=Topic* state=dead", 24, &*rest.join(",")),
        ]
    );
    // The replay is this process's own request; the others are of processes of their own.
    let own = |line: &Value| line["pid"] == std::process::id();
    assert_eq!(audit.iter().map(own).collect::<Vec<_>>(), [false, false, true, false]);
    assert!(audit.iter().all(|line| line["pid"].as_u64() > Some(0)));
}

/// A dead letter that is older than `retry.keep_dead` is dropped by itself: its sender, the metrics and the
/// audit log say so, and a younger one stays.
#[tokio::test]
async fn old_dead_letters_are_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool");
    let now = Timestamp::now();
    let [old, young] = [SignedDuration::from_hours(2), SignedDuration::ZERO].map(|age| now - age);
    let mut ids = Vec::new();
    {
        let flags = [("spool.store", "disk"), ("spool.path", &*path.to_string_lossy())];
        let config = support::config("http://127.0.0.1:1", &flags);
        let options = spool_options(&config.spool.unwrap(), &config.idempotency, &config.runtime);
        let spool = Spool::open(options).await.unwrap();
        for at in [old, young] {
            let kept = message("TopicA", "x".into());
            spool.keep(&kept, None).await.unwrap();
            let (reason, code, request_id) = (Reason::Refused, None, None);
            let death = Death { reason, code, request_id, at, accepted: true };
            spool.note(kept.id, Change::Dead(1, death)).await;
            ids.push(kept.id.to_string());
        }
    }
    let script = Script::start([]).await;
    let settings = [
        ("upstream.endpoint", &*script.url),
        ("spool.store", "disk"),
        ("spool.path", &*path.to_string_lossy()),
        ("retry.keep_dead", "1h"),
    ];
    let serve = Serve::start(&settings, &[]).await;
    let shown = async |id: &String| get(&serve.publish, &format!("/messages/{id}")).await.json();
    until("it is dropped", async || shown(&ids[0]).await["Status"] == "dropped").await;
    assert_eq!(shown(&ids[1]).await["Status"], "dead");
    let count = async |reason: &str| {
        let metrics = get(&serve.telemetry, "/metrics").await.text();
        series(&metrics, &format!("tollgate_dead_letters_dropped_total{{reason=\"{reason}\"}}"))
    };
    until("it counts", async || count("age").await > 0.5).await;
    assert!(count("room").await.abs() < 0.1);
    serve.signal(Signal::TERM);
    let (_, log) = serve.ended().await;
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let audit: Vec<_> = lines.filter(|line| line["target"] == "tollgate::audit").collect();
    assert_eq!(audit.len(), 1, "{log}");
    let line = &audit[0];
    assert_eq!(
        (&line["level"], &line["verb"], &line["reason"], &line["messages"], &line["ids"]),
        (&"WARN".into(), &"expire".into(), &"age".into(), &1.into(), &ids[0].as_str().into())
    );
    assert!(script.requests().is_empty(), "none was delivered");
}
