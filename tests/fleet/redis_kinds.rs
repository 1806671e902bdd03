//! The kinds of Redis that a fleet may use, each a real one: behind TLS, with users, behind Sentinels,
//! as a Cluster; and what is said of one that will not do.

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use crate::support::authority::certify;
use crate::support::callers::{self, Asked};
use crate::support::http::{get, post};
use crate::support::ports::free_port;
use crate::support::process::{Emulator, Serve};
use crate::support::redis::{Cluster, Redis};
use crate::support::until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// What is looked at after a change: far less than a lease, and far more than 80 calls take.
const AFTER: Duration = Duration::from_secs(10);

/// A sidecar of a fleet that shares 50 calls a second.
async fn serve(endpoint: &str, settings: &[(&str, &str)]) -> Serve {
    let base =
        [("upstream.endpoint", endpoint), ("ceilings.account", "50"), ("runtime.threads", "1")];
    let settings: Vec<_> = base.iter().chain(settings).copied().collect();
    Serve::start(&settings, &[]).await
}

/// One that publishes nothing.
async fn idle(settings: &[(&str, &str)]) -> Serve {
    serve("http://127.0.0.1:9", settings).await
}

async fn shares(serve: &Serve) {
    until("shared", async || {
        let metrics = get(&serve.telemetry, "/metrics").await.text();
        metrics.contains("tollgate_fleet_mode{mode=\"shared\"} 1")
    })
    .await;
}

async fn publishes(serve: &Serve) {
    until("a message goes through", async || {
        post(&serve.publish, "/publish/TopicA", &[], b"hello").await.status == 200
    })
    .await;
}

/// Callers go on before, meanwhile and after. The new server learns from the sidecar what is out, so
/// that nobody waits for leases to end: that would be 30 s from its first word.
async fn busy_while(serve: &Serve, change: impl AsyncFnOnce()) {
    let seen = Cell::new(None);
    let changes = async {
        // What is held is what the new server will learn of.
        until("most permits are held", async || {
            let metrics = get(&serve.telemetry, "/metrics").await.text();
            let share = "tollgate_ceiling_share_calls_per_second{ceiling=\"account\"} ";
            let held = metrics.lines().find_map(|line| line.strip_prefix(share));
            held.unwrap().parse::<f64>().unwrap() > 40.0
        })
        .await;
        change().await;
        seen.set(Some(Instant::now()));
    };
    let calls = async {
        let mut answers = Vec::new();
        while seen.get().is_none_or(|since| since.elapsed() < AFTER) {
            let soon = Instant::now() + Duration::from_secs(1);
            answers.extend(callers::run(&serve.publish, 4, soon).await);
        }
        answers
    };
    let (answers, ()) = tokio::join!(calls, changes);
    let since = seen.get().unwrap();
    let until = since + AFTER;
    let after = |a: &&Asked| a.at > since && a.at + a.took < until && a.status == 200;
    let after = answers.iter().filter(after).count();
    assert!(after > 80, "{after} calls after the change, and before a lease has ended");
}

/// An authority's certificate, and a server's key and certificate from it, for `localhost`.
fn certificates(folder: &Path) {
    let (certificate, key) = certify(folder, &["localhost", "127.0.0.1"]);
    std::fs::write(folder.join("redis.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.join("redis.key"), key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn tls_with_an_authority_of_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (port, certificate, key, ca) =
        (free_port().to_string(), file("redis.pem"), file("redis.key"), file("ca.pem"));
    let redis = Redis::start_with(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
    ]);
    redis.begin(&[("account", 50)]);
    let url = format!("rediss://localhost:{port}");
    let emulator = Emulator::start(&[]).await;
    let trusting = serve(&emulator.url(), &[("fleet.url", &url), ("fleet.ca_file", &ca)]).await;
    shares(&trusting).await;
    publishes(&trusting).await;
    // A Sentinel with TLS names it by its address.
    let watching = free_port().to_string();
    let lines = format!(
        "tls-port {watching}\ntls-replication yes\ntls-auth-clients no\ntls-cert-file {certificate}\n\
         tls-key-file {key}\ntls-ca-cert-file {ca}"
    );
    let sentinel = Redis::sentinel(port.parse().unwrap(), &lines);
    until("the Sentinel sees it", async || sentinel.tell::<String>("INFO").contains("status=ok"))
        .await;
    let named = format!("rediss+sentinel://localhost:{watching}/main");
    shares(&idle(&[("fleet.url", &named), ("fleet.ca_file", &ca)]).await).await;
    // The machine's own authorities do not know it.
    let distrusting = idle(&[("fleet.url", &url)]).await;
    distrusting.logs("check fleet.ca_file").await;
    let missing = idle(&[("fleet.url", &url), ("fleet.ca_file", "/nowhere/ca.pem")]).await;
    missing.logs("/nowhere/ca.pem: No such file").await;
}

#[tokio::test]
async fn a_user_with_just_the_permissions_that_are_documented() {
    let redis = Redis::start();
    redis.begin(&[("account", 50)]);
    let documented = include_str!("../../docs/fleet.md");
    let line = documented.lines().find(|line| line.contains("ACL SETUSER")).unwrap().trim();
    redis.tell::<()>(&line.replace("PASSWORD", "right"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "wrong\n").unwrap();
    let (url, path) = (redis.url(), file.display().to_string());
    let settings = [
        ("fleet.url", url.as_str()),
        ("fleet.username", "tollgate"),
        ("fleet.password_file", &path),
    ];
    let emulator = Emulator::start(&[]).await;
    let sidecar = serve(&emulator.url(), &settings).await;
    sidecar.logs("Redis refuses the user or the password").await;
    // A renewed file is read without a restart.
    std::fs::write(&file, "right\n").unwrap();
    shares(&sidecar).await;
    publishes(&sidecar).await;
    assert!(!sidecar.log().contains("right"), "{}", sidecar.log());

    // Each of them is needed, and missed by its name.
    for permission in line.split(" +").skip(1) {
        redis.tell::<()>(&format!("ACL SETUSER tollgate -{permission}"));
        redis.tell::<()>("CLIENT KILL USER tollgate");
        let sidecar = idle(&settings).await;
        sidecar.logs("give it what docs/fleet.md lists").await;
        let name = permission.split('|').next().unwrap();
        assert!(sidecar.log().contains(name), "{name}: {}", sidecar.log());
        redis.tell::<()>(&format!("ACL SETUSER tollgate +{permission}"));
    }
    redis.tell::<()>("ACL SETUSER tollgate resetkeys ~other:*");
    idle(&settings).await.logs("give it what docs/fleet.md lists").await;

    let mut before = redis.connection();
    redis.tell::<()>("CONFIG SET requirepass secret");
    idle(&[("fleet.url", &url)]).await.logs("Redis requires a password").await;
    redis::cmd("CONFIG").arg("SET").arg("requirepass").arg("").exec(&mut before).unwrap();
}

/// A way to Redis that makes its version another of the same length.
async fn aged(port: u16, version: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let ((mut from_near, mut to_near), (mut from_far, mut to_far)) =
                (near.into_split(), far.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut from_near, &mut to_far).await });
            tokio::spawn(async move {
                let mut buffer = vec![0; 65_536];
                while let Ok(n @ 1..) = from_far.read(&mut buffer).await {
                    let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                    let text = match text.split_once("redis_version:") {
                        Some((head, tail)) => {
                            format!("{head}redis_version:{version}{}", &tail[version.len()..])
                        }
                        None => text,
                    };
                    to_near.write_all(text.as_bytes()).await.unwrap();
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn a_fleet_that_is_gone_leaves_nothing_in_redis_for_ever() {
    let redis = Redis::start();
    let group = [("ceilings.egress_ip", "30"), ("fleet.egress_group", "node-1")];
    let serve = idle(&[&[("fleet.url", redis.url().as_str())], &group[..]].concat()).await;
    shares(&serve).await;
    until("every key ends", async || {
        let keys = redis.tell::<Vec<String>>("KEYS *");
        let ends = |key: &String| redis.tell::<i64>(&format!("TTL {key}")) > 0;
        // Both ceilings, what is out of them, their state, the two of the members, and the two of the bill.
        keys.len() == 10 && keys.iter().all(ends)
    })
    .await;
    let ceiling = redis.tell::<i64>("TTL tollgate:{default}:egress:node-1");
    assert!(ceiling > 6 * 24 * 3600, "{ceiling}");
}

#[tokio::test]
async fn servers_that_will_not_do() {
    let redis = Redis::start();
    let url = aged(redis.port, "6.2.14").await;
    idle(&[("fleet.url", &url)]).await.logs("the version of Redis is 6.2.14").await;

    let port = redis.port.to_string();
    let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port]);
    idle(&[("fleet.url", &replica.url())]).await.logs("this server is a replica").await;

    // Each would give out the whole ceiling.
    let other = Redis::start();
    let both = format!("{},127.0.0.1:{}", redis.url(), other.port);
    idle(&[("fleet.url", &both)]).await.logs("this one is no node of a Cluster").await;
    assert_eq!(redis.tell::<Vec<String>>("KEYS *"), [""; 0]);

    // This one will, but somebody should look at it.
    redis.tell::<()>("CONFIG SET maxmemory-policy allkeys-lru");
    let warned = idle(&[("fleet.url", &redis.url())]).await;
    warned.logs("set maxmemory-policy noeviction").await;
    shares(&warned).await;
    // Those of before are gone in a moment.
    until("one sidecar has two connections", async || redis.clients() == 2).await;
}

#[tokio::test]
async fn a_primary_that_sentinels_name() {
    let mut primary = Redis::start();
    let port = primary.port.to_string();
    let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port]);
    replica.says("master_link_status:up");
    // A first replica makes it another primary.
    primary.begin(&[("account", 50)]);
    let sentinel = Redis::sentinel(primary.port, "");
    sentinel.says("slaves=1");
    // One that is not there comes first.
    let url =
        format!("redis+sentinel://127.0.0.1:{},127.0.0.1:{}/main", free_port(), sentinel.port);
    let emulator = Emulator::start(&[]).await;
    let sidecar = serve(&emulator.url(), &[("fleet.url", &url)]).await;
    shares(&sidecar).await;
    publishes(&sidecar).await;
    until("one connection is left", async || sentinel.clients() == 0).await;

    sidecar.logs("set min-replicas-to-write 1").await;
    busy_while(&sidecar, async || {
        primary.kill();
        sidecar.logs("no usable answer from Redis").await;
        sidecar.logs("Redis answers: the ceilings are shared again").await;
    })
    .await;
    replica.says("role:master");
    until("one connection is left", async || sentinel.clients() == 0).await;
    let wrong = url.replace("main", "mein");
    idle(&[("fleet.url", &wrong)]).await.logs("not found in sentinel").await;
}

#[tokio::test]
async fn a_cluster() {
    let cluster = Cluster::start();
    cluster.nodes[cluster.owner].begin(&[("account", 50)]);
    // Asked first: one that has not the keys.
    let first = &cluster.nodes[(cluster.owner + 1) % 3];
    let url = format!("redis://127.0.0.1:{},127.0.0.1:{}", free_port(), first.port);
    let emulator = Emulator::start(&[]).await;
    let sidecar = serve(&emulator.url(), &[("fleet.url", &url)]).await;
    shares(&sidecar).await;
    publishes(&sidecar).await;
    let connections = async || cluster.nodes.iter().map(Redis::clients).sum::<usize>() == 2;
    until("there are two connections in all", connections).await;

    // The keys' slot gets another primary.
    busy_while(&sidecar, async || {
        cluster.nodes[3].tell::<()>("CLUSTER FAILOVER");
        sidecar.logs("Moved").await;
        sidecar.logs("Redis answers: the ceilings are shared again").await;
    })
    .await;
    cluster.nodes[3].says("role:master");
    until("there are two connections in all", connections).await;
}

/// A primary whose replica takes over, and which is primary again before anybody has asked the replica:
/// what the replica never heard of is lost, and the server is the same.
#[test]
fn a_primary_that_comes_back() {
    let first = Redis::start();
    let port = first.port.to_string();
    let second = Redis::start_with(&["--replicaof", "127.0.0.1", &port]);
    second.says("master_link_status:up");
    first.begin(&[("account", 50)]);
    assert_eq!(first.ask(50, 5), (5, 0));
    second.tell::<()>("REPLICAOF NO ONE");
    first.tell::<()>(&format!("REPLICAOF 127.0.0.1 {}", second.port));
    first.says("master_link_status:up");
    first.tell::<()>("REPLICAOF NO ONE");
    let (out, learns) = first.ask(50, 5);
    assert!(out == 0 && learns > 29_000_000, "{out} permits, learns for {learns} us");
}
