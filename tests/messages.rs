//! `tollgate messages`, on a running sidecar and on a stopped one.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod support;

use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;
use serde_json::Value;
use support::http::{get, post};
use support::process::{Said, Serve, run};
use support::script::{Script, error};

/// The verb with this sidecar's configuration.
struct Verb(Vec<String>);

impl Verb {
    fn new(settings: &[(&str, &str)]) -> Self {
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

#[tokio::test]
async fn dead_letters() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool").display().to_string();
    let socket = folder.path().join("control.sock");
    let control = format!("unix:{}", socket.display());
    let script = Script::start((0..3).map(|_| error(400, "ParameterCheckFailed"))).await;
    let settings = [
        ("upstream.endpoint", &*script.url),
        ("spool.store", "disk"),
        ("spool.path", &*spool),
        ("listen.control", &*control),
    ];
    let serve = Serve::start(&settings, &[]).await;
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut ids = Vec::new();
    for topic in ["TopicA/one", "TopicA/two", "TopicB"] {
        let path = format!("/publish/{topic}");
        let answer =
            post(&serve.publish, &path, &[("prefer", "respond-async")], topic.as_bytes()).await;
        ids.push(answer.json()["Id"].as_str().unwrap().to_owned());
    }
    let dead = async {
        while get(&serve.telemetry, "/status.json").await.json()["kept"]["dead"] != 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(support::http::BOUND, dead).await.expect("all are refused");

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
    assert!(table.starts_with("ID ") && table.contains("refused ParameterCheckFailed"), "{table}");
    let shown = verb.run(&["show", &ids[1]]).await.stdout;
    assert!(shown.contains("VG9waWNBL3R3bw=="), "the payload: {shown}");
    for wrong in [&["show", "x"][..], &["show", &"0".repeat(32)], &["drop"], &["replay"]] {
        let said = verb.run(wrong).await;
        assert!(said.code == 1 && !said.stderr.is_empty(), "{wrong:?}: {}", said.stderr);
    }

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
    assert_eq!(verb.list(&["--state", "dead"]).await[0]["Id"], ids[1].as_str());
    let replayed = verb.run(&["replay", "--all", "-o", "json"]).await;
    assert_eq!(replayed.stdout, "{\"Messages\":1}\n", "{}", replayed.stderr);
    assert_eq!(verb.list(&["--state", "queued"]).await.len(), 1);
    assert_eq!(verb.run(&["drop", "--all"]).await.stdout, "0 dropped\n", "queued ones are named");
    assert_eq!(verb.run(&["drop", "--state", "queued"]).await.stdout, "1 dropped\n");
    assert!(verb.list(&["--state", "queued"]).await.is_empty());
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
    assert!(said.code == 1 && said.stderr.contains("nothing is kept"), "{}", said.stderr);
    let nowhere = [("upstream.endpoint", "http://x"), ("spool.path", "/nowhere/at/all")];
    let said = Verb::new(&nowhere).run(&["list"]).await;
    assert!(said.code == 1 && said.stderr.contains("there is no spool"), "{}", said.stderr);
}
