//! Ways to a Redis: over TLS, as a user who may do no more than it must, through a cluster.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::super::{Durability, KeepError, Spool};
use super::shared::{CALM, at, fleet};
use super::{BOUND, message, options, until};
use crate::config::{self, Fleet};
use crate::redis_client::ports::{free_port, refusing};
use crate::redis_client::server::{Redis, program};

/// Another server; killed when dropped.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start(folder: &Path, args: &[&str]) -> Self {
        let port = free_port();
        let number = port.to_string();
        let mut command = program();
        command.args(["--bind", "127.0.0.1", "--save", "", "--dir"]).arg(folder);
        command.args(args.iter().map(|arg| if *arg == "PORT" { &number } else { *arg }));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { process: command.spawn().unwrap(), port }
    }

    /// Runs a command as soon as it can.
    async fn run(&self, words: &[&str]) -> String {
        let done = async {
            loop {
                let client =
                    redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
                if let Ok(mut connection) = client.get_connection() {
                    let mut command = redis::cmd(words[0]);
                    command.arg(&words[1..]);
                    if let Ok(said) = command.query::<String>(&mut connection) {
                        return said;
                    }
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(BOUND, done).await.expect("it does as told")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Keeps one message and reads it back, as soon as Redis is there.
async fn works(fleet: &Fleet) -> Spool {
    let opened = async {
        loop {
            let options = options("/nowhere".as_ref());
            let opened = Spool::share_with(fleet, None, options, CALM).await;
            let error = match opened {
                Ok(spool) if spool.is_ours().is_ok() => return spool,
                Ok(spool) => format!("{:?}", spool.usage().failure),
                Err(error) => error.to_string(),
            };
            assert!(!error.contains("certificate"), "{error}");
            sleep(Duration::from_millis(50)).await;
        }
    };
    let spool = timeout(BOUND, opened).await.expect("it opens");
    let kept = message("abc", "x");
    spool.keep(&kept, None).await.unwrap();
    assert_eq!(spool.read(kept.id).await.unwrap().message.payload, kept.payload);
    spool
}

#[tokio::test]
async fn over_tls_with_an_authority_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = authority.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(authority, key);
    let server_key = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let server = server.signed_by(&server_key, &issuer).unwrap();
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (ca, cert) = (write("ca.pem", root.pem()), write("cert.pem", server.pem()));
    let key = write("key.pem", server_key.serialize_pem());
    let args = ["--port", "0", "--tls-port", "PORT", "--tls-auth-clients", "no"];
    let files = ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    let redis = Server::start(folder.path(), &[&args[..], &files].concat());
    let fleet = Fleet {
        redis: at(redis.port, true),
        ca_file: Some(ca.into()),
        account: "a".to_owned(),
        region: String::new(),
        egress_group: String::new(),
        expected_sidecars: 1,
        username: String::new(),
        password_file: None,
    };
    works(&fleet).await;
    // Whoever is vouched for by nobody we know is not talked to.
    let fleet = Fleet { ca_file: None, ..fleet };
    let spool = Spool::share_with(&fleet, None, options("/nowhere".as_ref()), CALM).await;
    assert!(spool.is_err() || spool.unwrap().is_ours().is_err());
}

/// What docs/shared-spool.md tells operators to allow is enough.
#[tokio::test]
async fn as_a_user_who_may_do_no_more_than_it_must() {
    const DOCUMENT: &str = include_str!("../../../docs/shared-spool.md");
    let rule = DOCUMENT.lines().find_map(|line| line.trim().strip_prefix("ACL SETUSER ")).unwrap();
    let redis = Redis::start();
    let mut command = redis::cmd("ACL");
    command.arg("SETUSER");
    for word in rule.split(' ') {
        command.arg(word.replace("default", "a"));
    }
    command.exec(&mut redis.connection()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "secret").unwrap();
    let mut user = Fleet { password_file: Some(file), ..fleet(&redis, "a") };
    user.username = "tollgate".to_owned();
    let spool = works(&user).await;
    // It may not ask for the configuration.
    assert_eq!(spool.durability(), Durability::RedisMemory);
    spool.close().await;
    // Nor see other accounts.
    user.account = "b".to_owned();
    let other = Spool::share_with(&user, None, options("/nowhere".as_ref()), CALM).await;
    let error = other.unwrap_err().to_string();
    assert!(error.to_lowercase().contains("permission"), "{error}");
}

#[tokio::test]
async fn through_a_cluster_to_the_node_that_has_its_slot() {
    let folder = tempfile::tempdir().unwrap();
    let node = |name: &str| {
        let args = ["--port", "PORT", "--cluster-enabled", "yes", "--cluster-config-file", name];
        Server::start(folder.path(), &args)
    };
    let (one, two) = (node("one"), node("two"));
    one.run(&["CLUSTER", "ADDSLOTSRANGE", "0", "8191"]).await;
    two.run(&["CLUSTER", "ADDSLOTSRANGE", "8192", "16383"]).await;
    one.run(&["CLUSTER", "MEET", "127.0.0.1", &two.port.to_string()]).await;
    for node in [&one, &two] {
        until("they meet", async || {
            node.run(&["CLUSTER", "INFO"]).await.contains("cluster_state:ok")
        })
        .await;
    }
    // Whichever node has the slot, from each of them it is found, and where one is gone.
    let (_nobody, refusing) = refusing();
    for ports in [vec![one.port], vec![two.port], vec![refusing.port(), one.port]] {
        let nodes = ports.into_iter().map(|port| ("127.0.0.1".to_owned(), port)).collect();
        let fleet = Fleet {
            redis: config::Redis { nodes, ..at(0, false) },
            account: "a".to_owned(),
            region: String::new(),
            egress_group: String::new(),
            expected_sidecars: 1,
            username: String::new(),
            password_file: None,
            ca_file: None,
        };
        works(&fleet).await;
    }
}

#[tokio::test]
async fn to_the_primary_that_a_sentinel_names() {
    let primary = Redis::start();
    let replica = Redis::start();
    replica.tell::<()>(&format!("REPLICAOF 127.0.0.1 {}", primary.port));
    replica.says("master_link_status:up");
    let sentinel = Redis::sentinel(primary.port, "");
    sentinel.says("slaves=1");
    let redis = config::Redis { primary: Some("main".to_owned()), ..at(sentinel.port, false) };
    let spool = works(&Fleet { redis, ..fleet(&primary, "a") }).await;
    let before = spool.list(None, 10, &mut |_| true);
    primary.tell::<i64>("WAIT 1 0");
    // It has to hear of the replica first.
    let fails_over = async {
        let mut command = redis::cmd("SENTINEL");
        command.arg("FAILOVER").arg("main");
        while command.exec(&mut sentinel.connection()).is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(BOUND, fails_over).await.expect("it fails over");
    replica.says("role:master");
    primary.says("role:slave");
    let kept = message("abc", "y");
    until("it follows", async || spool.keep(&kept, None).await.is_ok()).await;
    assert_eq!(spool.read(kept.id).await.unwrap().message.payload, kept.payload);
    assert_eq!(spool.list(None, 10, &mut |_| true)[..1], before, "nothing was lost");
    assert_eq!(replica.tell::<i64>("XLEN tollgate:{a}:spool"), 2);
}

/// Whoever takes a connection and says nothing holds nobody: not in a handshake, not before it has
/// looked at a password.
#[tokio::test]
async fn a_server_that_says_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "secret").unwrap();
    for tls in [false, true] {
        let redis = config::Redis { nodes: vec![("127.0.0.1".to_owned(), port)], ..at(port, tls) };
        let fleet = Fleet {
            redis,
            account: "a".to_owned(),
            region: String::new(),
            egress_group: String::new(),
            expected_sidecars: 1,
            username: String::new(),
            password_file: Some(file.clone()),
            ca_file: None,
        };
        let opened = Spool::share_with(&fleet, None, options("/nowhere".as_ref()), CALM);
        let spool = timeout(BOUND, opened).await.expect("it opens").unwrap();
        assert!(spool.is_ours().is_err());
        let refused = timeout(BOUND, spool.keep(&message("abc", "x"), None)).await;
        assert!(matches!(refused.expect("it refuses"), Err(KeepError::Redis(_))));
    }
}
