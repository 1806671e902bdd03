//! `[listen.tls]`: what the callers' addresses speak, and whom a certificate proves. And who may connect to their Unix
//! sockets.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use rcgen::{Certificate, KeyPair};
use rustls::version::TLS12;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::authority::Authority;
use crate::support::http::{Answer, BOUND, get, raw};
use crate::support::process::{Serve, run};
use crate::support::script::Script;
use crate::support::tls_client::TlsClient;
use crate::support::{config, sidecar, until};

const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";
const BATCH: &str = "hushsecret-of-the-batch";
const KEY: [(&str, &str); 2] =
    [("ALIBABA_CLOUD_ACCESS_KEY_ID", "testid"), ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "testsecret")];

/// A sidecar that speaks TLS, and the authorities of its certificate and of its callers'.
struct Stand {
    folder: TempDir,
    server: Authority,
    clients: Authority,
    script: Script,
    serve: Serve,
}

fn write(folder: &TempDir, (certificate, key): &(Certificate, KeyPair)) {
    std::fs::write(folder.path().join("tls.key"), key.serialize_pem()).unwrap();
    std::fs::write(folder.path().join("tls.crt"), certificate.pem()).unwrap();
}

impl Stand {
    async fn start(more: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (server, clients) = (Authority::new(), Authority::new());
        write(&folder, &server.issue(&["localhost"]));
        std::fs::write(folder.path().join("clients.pem"), clients.pem()).unwrap();
        std::fs::write(folder.path().join("batch"), BATCH).unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let callers = format!(
            r#"[{{ name = "orders", certificate = "{ORDERS}", topics = ["Order*"] }},
                {{ name = "alarms", certificate = "Alarms.shop.svc", topics = ["Alarm/*"] }},
                {{ name = "batch", token_file = "{}", topics = ["Batch"] }}]"#,
            path("batch")
        );
        let script = Script::start([]).await;
        let (certificate, key, authority) = (path("tls.crt"), path("tls.key"), path("clients.pem"));
        let base = [
            ("upstream.endpoint", &*script.url),
            ("callers", &callers),
            ("listen.tls.certificate", &certificate),
            ("listen.tls.key", &key),
            ("listen.tls.client_ca", &authority),
        ];
        let serve = Serve::start(&[&base[..], more].concat(), &[]).await;
        serve.has_secret(BATCH);
        serve.has_secret(&std::fs::read_to_string(&key).unwrap());
        Self { folder, server, clients, script, serve }
    }

    fn client(&self, shows: Option<&(Certificate, KeyPair)>) -> TlsClient {
        TlsClient::new(self.server.pem(), shows)
    }

    async fn publish(
        &self,
        shows: Option<&(Certificate, KeyPair)>,
        topic: &str,
        token: Option<&str>,
    ) -> std::io::Result<Answer> {
        self.client(shows).publish(&self.serve.publish, topic, token).await
    }
}

fn slug(answer: &Answer) -> String {
    let body: Value = answer.json();
    body["type"].as_str().unwrap_or_default().trim_start_matches("urn:tollgate:").to_owned()
}

/// Nothing was wrong.
fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// What a request with this certificate and this token gets; the status 0: the handshake fails.
#[tokio::test]
async fn whom_a_certificate_proves() {
    let stand = Stand::start(&[]).await;
    let (ours, other) = (&stand.clients, Authority::new());
    let many: Vec<_> = (0..40).map(|n| format!("spiffe://cluster.local/{n}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).chain([ORDERS]).collect();
    let orders = &ours.issue(&[ORDERS]);
    let stranger = &ours.issue(&["strange.svc", "spiffe://cluster.local/ns/shop/sa/strange"]);
    let capitals = ORDERS.replace("/ns/", "/NS/");
    let longer = format!("{ORDERS}2");
    let (expired, early) = ((1975, 2020), (4000, 4096));
    let mut wrong = Vec::new();
    for (what, shown, topic, token, status) in [
        ("a URI", Some(orders), "Order1", None, 200),
        ("a DNS name", Some(&ours.issue(&["alarms.SHOP.svc"])), "Alarm/x", None, 200),
        ("one of several", Some(&ours.issue(&["x.svc", ORDERS])), "Order1", None, 200),
        ("another's topic", Some(orders), "Alarm/x", None, 403),
        // Valid, and no caller's. The log has the first few.
        ("a stranger", Some(stranger), "Order1", None, 401),
        ("two callers", Some(&ours.issue(&[ORDERS, "alarms.shop.svc"])), "Order1", None, 401),
        ("a URI in capitals", Some(&ours.issue(&[&capitals])), "Order1", None, 401),
        ("a longer URI", Some(&ours.issue(&[&longer])), "Order1", None, 401),
        ("a DNS name as URI", Some(&ours.issue_uris(&["alarms.shop.svc"])), "Alarm/x", None, 401),
        ("a wildcard", Some(&ours.issue(&["*.shop.svc"])), "Alarm/x", None, 401),
        ("too many names", Some(&ours.issue(&many)), "Order1", None, 401),
        ("no name", Some(&ours.issue(&[])), "Order1", None, 401),
        ("no certificate", None, "Order1", None, 401),
        // A token counts first.
        ("a stranger and a token", Some(stranger), "Batch", Some(BATCH), 200),
        ("a token alone", None, "Batch", Some(BATCH), 200),
        ("a caller and a wrong token", Some(orders), "Order1", Some("hushsecret-x"), 401),
        ("a caller and another's token", Some(orders), "Order1", Some(BATCH), 403),
        // What does not verify is no certificate at all.
        ("another authority", Some(&other.issue(&[ORDERS])), "Order1", None, 0),
        ("another's and a token", Some(&other.issue(&[ORDERS])), "Batch", Some(BATCH), 0),
        ("expired", Some(&ours.issue_for("alarms.shop.svc", expired)), "Alarm/x", None, 0),
        ("not valid yet", Some(&ours.issue_for("alarms.shop.svc", early)), "Alarm/x", None, 0),
        ("a server's", Some(&ours.issue_server("alarms.shop.svc")), "Alarm/x", None, 0),
    ] {
        let answer = stand.publish(shown, topic, token).await.ok();
        let slug = answer.as_ref().map(slug).unwrap_or_default();
        let found = answer.map_or(0, |answer| answer.status);
        let said = match status {
            401 => "unproven-caller",
            403 => "forbidden-topic",
            _ => "",
        };
        if (found, &*slug) != (status, said) {
            wrong.push(format!("{what}: {found} {slug}"));
        }
    }
    assert_none(&wrong);
    assert_eq!(stand.script.requests().len(), 5);
    // Both versions.
    let old = TlsClient::speaking(&[&TLS12], stand.server.pem(), Some(orders));
    let answer = old.publish(&stand.serve.publish, "Order1", None).await.unwrap();
    assert_eq!(answer.status, 200);
    // Operators learn what is wrong.
    let log = stand.serve.log();
    for words in [
        "the certificate of a client was refused",
        "spiffe://cluster.local/ns/shop/sa/strange",
        "the names of several callers",
    ] {
        assert!(log.contains(words), "{words}: {log}");
    }
    // Telemetry speaks plain HTTP.
    assert_eq!(get(&stand.serve.telemetry, "/livez").await.status, 200);
}

#[tokio::test]
async fn certificates_are_read_again() {
    let Stand { folder, server, clients, serve, script: _script } = Stand::start(&[]).await;
    let (new_server, new_clients) = (Authority::new(), Authority::new());
    let (old, new) = (clients.issue(&[ORDERS]), new_clients.issue(&[ORDERS]));
    let publish = async |authority: &Authority, shown: &(Certificate, KeyPair)| {
        let client = TlsClient::new(authority.pem(), Some(shown));
        client.publish(&serve.publish, "Order1", None).await.map(|answer| answer.status)
    };
    assert_eq!(publish(&server, &old).await.unwrap(), 200);
    assert!(publish(&new_server, &old).await.is_err() && publish(&server, &new).await.is_err());

    // Half of a pair changes nothing, and is logged.
    let pair = new_server.issue(&["localhost"]);
    std::fs::write(folder.path().join("tls.crt"), pair.0.pem()).unwrap();
    serve.logs("the old one stays").await;
    assert_eq!(publish(&server, &old).await.unwrap(), 200);
    write(&folder, &pair);
    until("the new certificate is shown", async || publish(&new_server, &old).await.is_ok()).await;
    assert!(publish(&server, &old).await.is_err());

    // What a connection has shown is worth no more than a new one's.
    let mut open =
        TlsClient::new(new_server.pem(), Some(&old)).connect(&serve.publish).await.unwrap();
    assert_eq!(open.publish("Order1", None).await.unwrap().status, 200);
    std::fs::write(folder.path().join("clients.pem"), new_clients.pem()).unwrap();
    until("the new authority holds", async || publish(&new_server, &new).await.is_ok()).await;
    assert_eq!(publish(&new_server, &new).await.unwrap(), 200);
    assert!(publish(&new_server, &old).await.is_err());
    assert_eq!(open.publish("Order1", None).await.unwrap().status, 401);
}

#[tokio::test]
async fn plain_http_is_closed_at_once() {
    let stand = Stand::start(&[("publish.idle_timeout", "1h")]).await;
    let plain = raw(&stand.serve.publish, b"POST /publish/Order1 HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(plain.await.is_none(), "plain HTTP");
}

#[tokio::test]
async fn a_client_that_makes_no_handshake_is_let_go() {
    let stand = Stand::start(&[("publish.idle_timeout", "300ms")]).await;
    // Nothing at all, and the beginning of a ClientHello of 512 bytes.
    for begun in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
        let mut stream = TcpStream::connect(&stand.serve.publish).await.unwrap();
        stream.write_all(begun).await.unwrap();
        let mut rest = Vec::new();
        // However it ends.
        drop(timeout(BOUND, stream.read_to_end(&mut rest)).await.expect("it ends"));
    }
    until("no slot is held", async || {
        let status = get(&stand.serve.telemetry, "/metrics").await.text();
        status.contains("tollgate_connections{listener=\"publish\"} 0")
    })
    .await;
    let orders = stand.clients.issue(&[ORDERS]);
    assert_eq!(stand.publish(Some(&orders), "Order1", None).await.unwrap().status, 200);
}

/// Addresses of the provider's SDKs are the callers', too; a Unix socket is plain.
#[tokio::test]
async fn which_addresses_speak_tls() {
    let script = Script::start([]).await;
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    write(&folder, &authority.issue(&["localhost"]));
    let path = |name: &str| folder.path().join(name).display().to_string();
    let socket = path("sdk.sock");
    let (listen, certificate, key) =
        (format!("127.0.0.1:0,unix:{socket}"), path("tls.crt"), path("tls.key"));
    let flags = [
        ("sdk.enabled", "true"),
        ("sdk.accept", "any"),
        ("sdk.listen", &*listen),
        ("listen.tls.certificate", &*certificate),
        ("listen.tls.key", &*key),
    ];
    let (running, publish, _) = sidecar(&config(&script.url, &flags)).await;
    let request = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    for address in [&publish, &running.addresses().sdk[0]] {
        assert!(raw(address, request).await.is_none(), "{address}: plain HTTP");
        assert!(TlsClient::new(authority.pem(), None).connect(address).await.is_ok(), "{address}");
    }
    let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    timeout(BOUND, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    // Without callers nothing has to be proven.
    let client = TlsClient::new(authority.pem(), None);
    assert_eq!(client.publish(&publish, "TopicA", None).await.unwrap().status, 200);
}

/// A start with files that cannot be used says which.
#[tokio::test]
async fn files_that_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    write(&folder, &authority.issue(&["localhost"]));
    let (_, other) = authority.issue(&["localhost"]);
    std::fs::write(folder.path().join("other.key"), other.serialize_pem()).unwrap();
    std::fs::write(folder.path().join("nonsense"), "nonsense").unwrap();
    let mut mistakes = Vec::new();
    for (certificate, key, authority, wrong, words) in [
        ("gone", "tls.key", "", "gone", "No such file"),
        ("tls.crt", "gone", "", "gone", "No such file"),
        ("nonsense", "tls.key", "", "nonsense", "holds no certificate"),
        ("tls.crt", "nonsense", "", "nonsense", ""),
        ("tls.crt", "other.key", "", "tls.crt", "keys"),
        ("tls.crt", "tls.key", "gone", "gone", "No such file"),
        ("tls.crt", "tls.key", "nonsense", "nonsense", "holds no certificate"),
    ] {
        let path = |name: &str| folder.path().join(name).display().to_string();
        let authority = if authority.is_empty() { String::new() } else { path(authority) };
        let flags = [
            format!("listen.tls.certificate={}", path(certificate)),
            format!("listen.tls.key={}", path(key)),
            format!("listen.tls.client_ca={authority}"),
        ];
        let said = run(&with("serve", &flags), &KEY).await;
        let reason = format!("listen.tls: {}: ", path(wrong));
        let is_said = said.stderr.contains(&reason) && said.stderr.contains(words);
        if said.code != 1 || !is_said {
            mistakes.push(format!("{flags:?}: {} {}", said.code, said.stderr));
        }
    }
    assert_none(&mistakes);
}

/// The arguments of a verb with these settings.
fn with<'a>(verb: &'a str, settings: &'a [String]) -> Vec<&'a str> {
    let base = [
        "listen.publish=127.0.0.1:0",
        "listen.telemetry=127.0.0.1:0",
        "listen.control=none",
        "spool.store=none",
        "upstream.endpoint=http://127.0.0.1:1",
        "upstream.instance_id=post-cn-test",
    ];
    let all = base.into_iter().chain(settings.iter().map(String::as_str));
    std::iter::once(verb).chain(all.flat_map(|setting| ["--set", setting])).collect()
}

#[tokio::test]
async fn configurations_that_cannot_be() {
    let by_certificate = r#"callers=[{ name = "a", certificate = "a.svc" }]"#;
    let tls = ["listen.tls.certificate=/c", "listen.tls.key=/k"];
    let all = [tls[0], tls[1], "listen.tls.client_ca=/a"];
    let twice =
        r#"callers=[{ name = "a", certificate = "a.svc" }, { name = "b", certificate = "A.svc" }]"#;
    let star = r#"callers=[{ name = "a", certificate = "*.svc" }]"#;
    let blank = r#"callers=[{ name = "a", certificate = "spiffe://a b" }]"#;
    let none = r#"callers=[{ name = "a" }]"#;
    let mut mistakes = Vec::new();
    for (settings, key, remedy) in [
        (&tls[..1], "listen.tls.certificate", "set listen.tls.certificate and listen.tls.key"),
        (&tls[1..], "listen.tls.key", "set listen.tls.certificate and listen.tls.key"),
        (&all[2..], "listen.tls.client_ca", "set listen.tls.certificate and listen.tls.key"),
        (&[by_certificate], "callers", "listen.tls.client_ca"),
        (&[tls[0], tls[1], by_certificate], "callers", "listen.tls.client_ca"),
        (&[&all[..], &[twice]].concat(), "callers", "proofs of its own"),
        (&[&all[..], &[star]].concat(), "callers[0].certificate", "write a DNS name without *"),
        (&[&all[..], &[blank]].concat(), "callers[0].certificate", "or a URI"),
        (&[&all[..], &[none]].concat(), "callers[0]", "or certificate"),
        (&["listen.socket_mode=666x"], "listen.socket_mode", "octal digits"),
        (&["listen.socket_mode=0"], "listen.socket_mode", "octal digits"),
        (&["listen.socket_mode=1777"], "listen.socket_mode", "octal digits"),
        (&["listen.socket_mode=0668"], "listen.socket_mode", "octal digits"),
        (&["listen.socket_mode=0066"], "listen.socket_mode", "octal digits"),
        (&["listen.socket_group=web"], "listen.socket_group", "getent group"),
        (&["listen.socket_group=-1"], "listen.socket_group", "getent group"),
    ] {
        let settings: Vec<_> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let said = run(&with("check", &settings), &KEY).await;
        let parts = ["1 mistake", &format!("{key} = "), remedy];
        if said.code != 4 || !parts.iter().all(|part| said.stderr.contains(part)) {
            mistakes.push(format!("{settings:?}: {} {}", said.code, said.stderr));
        }
    }
    assert_none(&mistakes);
}

/// Whatever the umask is. The group is one that this user may give away.
#[tokio::test]
async fn mode_and_group_of_sockets() {
    let script = Script::start([]).await;
    let own = rustix::process::getgid().as_raw();
    let group = if rustix::process::getuid().is_root() {
        own + 4_321
    } else {
        rustix::process::getgroups().unwrap().last().map_or(own, |group| group.as_raw())
    };
    let number = group.to_string();
    for (umask, settings, mode, group) in [
        ("umask 077", &[][..], 0o666, own),
        (
            "umask 0",
            &[("listen.socket_mode", "0660"), ("listen.socket_group", &*number)],
            0o660,
            group,
        ),
        ("umask 022", &[("listen.socket_mode", "777")], 0o777, own),
        ("umask 0", &[("listen.socket_mode", "0600")], 0o600, own),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| format!("unix:{}", folder.path().join(name).display());
        let (publish, sdk, control) =
            (path("publish.sock"), path("sdk.sock"), path("control.sock"));
        let base = [
            ("upstream.endpoint", &*script.url),
            ("listen.publish", &publish),
            ("sdk.enabled", "true"),
            ("sdk.accept", "any"),
            ("sdk.listen", &sdk),
            ("listen.control", &control),
        ];
        let _serve = Serve::start_under(umask, &[&base[..], settings].concat()).await;
        let stat = |name: &str| {
            let found = std::fs::metadata(folder.path().join(name)).unwrap();
            (found.permissions().mode() & 0o7777, found.gid())
        };
        let found = [stat("publish.sock"), stat("sdk.sock"), stat("control.sock")];
        assert_eq!(found, [(mode, group), (mode, group), (0o600, own)], "{umask} {settings:?}");
    }
}
