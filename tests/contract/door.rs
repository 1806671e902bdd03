//! What every server does with a request before its service: an answer that is given early leaves the
//! connection whole, framings and hosts that HTTP forbids are refused, and so is what another site's page
//! makes a browser send.

use std::time::Duration;

use crate::support::http::{Answer, BOUND, parse, raw};
use crate::support::script::Script;
use crate::support::{config, sidecar};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// A client that sends the whole of a request before it reads, and keeps its connection.
struct KeepAlive {
    stream: TcpStream,
    read: Vec<u8>,
}

impl KeepAlive {
    async fn open(address: &str) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), read: Vec::new() }
    }

    async fn send(&mut self, bytes: &[u8]) -> Answer {
        timeout(BOUND, self.stream.write_all(bytes)).await.expect("it is read").unwrap();
        timeout(BOUND, self.answer()).await.expect("an answer")
    }

    async fn answer(&mut self) -> Answer {
        loop {
            let end = self.read.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
            if let Some(end) = end {
                let answer = parse(&self.read[..end]).unwrap();
                let length: usize = answer.header("content-length").parse().unwrap();
                if self.read.len() >= end + length {
                    let body = self.read[end..end + length].to_vec();
                    self.read.drain(..end + length);
                    return Answer { body, ..answer };
                }
            }
            let n = self.stream.read_buf(&mut self.read).await.unwrap();
            assert!(n > 0, "closed before an answer: {:?}", String::from_utf8_lossy(&self.read));
        }
    }

    /// Whether the server has ended the connection after its last answer.
    async fn is_closed(&mut self) -> bool {
        let n = timeout(BOUND, self.stream.read_buf(&mut self.read)).await.expect("its end");
        matches!(n, Ok(0))
    }
}

fn request(line: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("{line} HTTP/1.1\r\nhost: localhost\r\n{headers}");
    let length = format!("content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), length.as_bytes(), body].concat()
}

fn chunked(line: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("{line} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n");
    let mut bytes = head.into_bytes();
    for chunk in body.chunks(10_000) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        bytes.extend([chunk, b"\r\n"].concat());
    }
    bytes.extend(b"0\r\n\r\n");
    bytes
}

fn problem(answer: &Answer, status: u16, slug: &str) {
    assert_eq!(answer.status, status, "{slug}: {:?}", String::from_utf8_lossy(&answer.body));
    assert_eq!(answer.header("content-type"), "application/problem+json", "{slug}");
    assert_eq!(answer.json()["type"], format!("urn:tollgate:{slug}"));
    assert_eq!(answer.json()["status"], status);
    assert_eq!(answer.json()["outcome"], "not-sent", "{slug}");
    assert!(!answer.header("x-request-id").is_empty(), "{slug}");
}

/// An answer that does not need the body leaves the connection to the next request.
#[tokio::test]
async fn an_early_answer_keeps_the_connection() {
    let script = Script::start([]).await;
    let flags = [("topics.allow", "TopicA, TopicA/*"), ("publish.max_payload", "48KiB")];
    let (_sidecar, publish, telemetry) = sidecar(&config(&script.url, &flags)).await;
    let body = vec![b'x'; 48_000];
    let mut client = KeepAlive::open(&publish).await;
    let mut good = 0;
    for (line, status) in [
        ("POST /publish/x", 400),
        ("POST /publish/Other", 403),
        ("POST /nothing", 404),
        ("PUT /publish/TopicA", 405),
        ("POST /publish", 415),
    ] {
        for turn in 0..4 {
            let refused = request(line, "", &body);
            let answer = client.send(&refused).await;
            assert_eq!((answer.status, answer.header("connection")), (status, ""), "{line}");
            let answer = client.send(&chunked(line, &body)).await;
            assert_eq!((answer.status, answer.header("connection")), (status, ""), "{line}");
            let answer = client.send(&request("POST /publish/TopicA", "", b"good")).await;
            assert_eq!(answer.status, 200, "{line}, turn {turn}");
            good += 1;
        }
    }
    // A body over the limit, declared and not; and the server that has no bodies at all.
    for bytes in [50_000, 900_000, 15_000_000] {
        let large = vec![b'x'; bytes];
        assert_eq!(client.send(&request("POST /publish/TopicA", "", &large)).await.status, 413);
        assert_eq!(client.send(&chunked("POST /publish/TopicA", &large)).await.status, 413);
        assert_eq!(client.send(&request("POST /publish/TopicA", "", b"good")).await.status, 200);
        good += 1;
    }
    assert_eq!(script.requests().len(), good);
    let mut client = KeepAlive::open(&telemetry).await;
    assert_eq!(client.send(&request("POST /metrics", "", &body)).await.status, 405);
    assert_eq!(client.send(&request("GET /nothing", "", &body)).await.status, 404);
    assert_eq!(client.send(&request("GET /livez", "", b"")).await.status, 200);
}

/// A body that is too long to be discarded is answered at once, and its client can read the answer.
#[tokio::test]
async fn a_client_that_sends_too_much_reads_its_413() {
    let script = Script::start([]).await;
    let (_sidecar, publish, telemetry) = sidecar(&config(&script.url, &[])).await;
    let large = vec![b'x'; 20 << 20];
    for bytes in [
        request("POST /publish/TopicA", "", &large),
        chunked("POST /publish/TopicA", &large),
        request("POST /publish", "content-type: application/x-ndjson\r\n", &large),
        // A head that does not end.
        [b"POST /publish/TopicA HTTP/1.1\r\nhost: localhost\r\nx: ", &*large].concat(),
    ] {
        let mut client = KeepAlive::open(&publish).await;
        let answer = client.send(&bytes).await;
        assert!([413, 431].contains(&answer.status), "{answer:?}");
        assert_eq!(answer.header("connection"), "close");
        assert!(client.is_closed().await);
    }
    let mut client = KeepAlive::open(&telemetry).await;
    let answer = client.send(&request("POST /", "", &large)).await;
    assert_eq!((answer.status, answer.header("connection")), (405, "close"));
    assert!(client.is_closed().await);
    assert!(script.requests().is_empty());
}

/// A refused body that does not come is not waited for long, and none is asked for.
#[tokio::test]
async fn a_refused_body_that_does_not_come() {
    let script = Script::start([]).await;
    let (_sidecar, publish, _) = sidecar(&config(&script.url, &[])).await;
    let head = |line: &str, more: &str| {
        format!("{line} HTTP/1.1\r\nhost: localhost\r\n{more}content-length: 9\r\n\r\n")
    };
    let mut waits = KeepAlive::open(&publish).await;
    let answer = waits.send(head("POST /publish/x", "expect: 100-continue\r\n").as_bytes()).await;
    assert_eq!((answer.status, answer.header("connection")), (400, "close"));
    assert!(waits.is_closed().await);
    let mut stalls = KeepAlive::open(&publish).await;
    let answer = stalls.send(head("PUT /publish/TopicA", "").as_bytes()).await;
    assert_eq!((answer.status, answer.header("connection")), (405, "close"));
    assert!(stalls.is_closed().await);
    // A good one is asked for as before.
    let mut good = KeepAlive::open(&publish).await;
    let bytes = head("POST /publish/TopicA", "expect: 100-continue\r\n");
    good.stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut asked = [0; 25];
    timeout(BOUND, good.stream.read_exact(&mut asked)).await.unwrap().unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(good.send(b"the body.").await.status, 200);
}

/// What hyper would hide or answer without a body.
#[tokio::test]
async fn framings_and_hosts_as_http_has_them() {
    let script = Script::start([]).await;
    let flags = [("publish.max_header", "8KiB")];
    let (_sidecar, publish, telemetry) = sidecar(&config(&script.url, &flags)).await;
    let post = "POST /publish/TopicA HTTP/1.1\r\n";
    let host = "host: localhost\r\n";
    let (te, cl) = ("transfer-encoding: chunked\r\n", "content-length: 1\r\n");
    let chunk = "\r\n1\r\nx\r\n0\r\n\r\n";
    let good = format!("{post}{host}content-length: 4\r\n\r\ngood");
    for (bytes, status, slug) in [
        (format!("{post}{host}{te}{cl}{chunk}"), 400, "ambiguous-length"),
        (format!("{post}{host}{cl}{te}{chunk}"), 400, "ambiguous-length"),
        // Behind a good request in the same packet, and behind its body.
        (format!("{good}{post}{host}{cl}{te}{chunk}"), 400, "ambiguous-length"),
        (format!("{post}{host}transfer-encoding: gzip\r\n\r\nx"), 501, "unknown-transfer-coding"),
        (
            format!("{post}{host}transfer-encoding: gzip, chunked\r\n{chunk}"),
            501,
            "unknown-transfer-coding",
        ),
        (
            format!("{post}{host}transfer-encoding: chunked, gzip\r\n{chunk}"),
            501,
            "unknown-transfer-coding",
        ),
        (
            format!("{post}{host}transfer-encoding: identity\r\n\r\n"),
            501,
            "unknown-transfer-coding",
        ),
        (format!("{post}{host}{te}{te}{chunk}"), 501, "unknown-transfer-coding"),
        (
            format!("{post}{host}transfer-encoding: xchunked\r\n{chunk}"),
            501,
            "unknown-transfer-coding",
        ),
        (format!("{post}{cl}\r\nx"), 400, "malformed-host"),
        (format!("{post}{host}{host}{cl}\r\nx"), 400, "malformed-host"),
        (format!("{post}{host}Host: evil.example\r\n{cl}\r\nx"), 400, "malformed-host"),
        (format!("{post}host: a b\r\n{cl}\r\nx"), 400, "malformed-host"),
        (format!("{post}host: http://localhost\r\n{cl}\r\nx"), 400, "malformed-host"),
        (format!("{post}host: localhost:http\r\n{cl}\r\nx"), 400, "malformed-host"),
        (format!("{post}host: user@localhost\r\n{cl}\r\nx"), 400, "malformed-host"),
        (format!("{post}host: \u{e9}\r\n{cl}\r\nx"), 400, "malformed-host"),
        (format!("{post}{host}{cl}content-encoding: gzip\r\n\r\nx"), 415, "encoded-body"),
        (format!("{post}{host}{cl}content-encoding: identity, br\r\n\r\nx"), 415, "encoded-body"),
        (format!("{post}{host}{cl}Content-Encoding: deflate\r\n\r\nx"), 415, "encoded-body"),
        (format!("{post}{host}{}\r\n", "a: b\r\n".repeat(500)), 431, "head-too-large"),
        (format!("{post}{host}x: {}\r\n\r\n", "y".repeat(20_000)), 431, "head-too-large"),
        (format!("{post}{host}x: {}\r\n\r\n", "y".repeat(200_000)), 431, "head-too-large"),
        (format!("POST /{} HTTP/1.1\r\n{host}\r\n", "t".repeat(70_000)), 431, "head-too-large"),
        (format!("{post}nonsense\r\n\r\n"), 400, "malformed-request"),
        (format!("{post}{host}content-length: -1\r\n\r\n"), 400, "malformed-request"),
        (format!("{post}{host}{cl}content-length: 2\r\n\r\nx"), 400, "malformed-request"),
        (format!("POST /publish/TopicA HTTP/1.0\r\n{te}{chunk}"), 400, "malformed-request"),
    ] {
        for address in [&publish, &telemetry] {
            let mut client = KeepAlive::open(address).await;
            let mut answer = client.send(bytes.as_bytes()).await;
            if bytes.starts_with(&good) {
                assert_eq!(answer.status, if *address == publish { 200 } else { 405 });
                answer = client.answer().await;
            }
            let bounds = status == 431 && *address == telemetry && answer.status == 405;
            if !bounds {
                problem(&answer, status, slug);
            }
            if status == 415 {
                assert_eq!(answer.header("accept-encoding"), "identity");
            }
            if ["ambiguous-length", "unknown-transfer-coding"].contains(&slug) {
                assert_eq!(answer.header("connection"), "close", "{bytes}");
            }
        }
    }
    assert_eq!(script.requests().len(), 1);
    // What is unusual and allowed.
    for bytes in [
        format!("POST /publish/TopicA HTTP/1.0\r\n{cl}\r\nx"),
        format!("{post}host:\r\nconnection: close\r\n{cl}\r\nx"),
        format!("{post}{host}connection: close\r\n{cl}content-encoding: identity\r\n\r\nx"),
        format!("{post}{host}connection: close\r\nTransfer-Encoding: Chunked\r\n{chunk}"),
        format!(
            "POST http://localhost/publish/TopicA HTTP/1.1\r\n{host}connection: close\r\n{cl}\r\nx"
        ),
        format!("{post}{host}connection: close\r\n{cl}{cl}\r\nx"),
    ] {
        assert_eq!(raw(&publish, bytes.as_bytes()).await.map(|a| a.status), Some(200), "{bytes}");
    }
}

/// A browser says where a request comes from; a page of another site gets nothing done on any server.
#[tokio::test]
async fn other_sites_are_refused() {
    let script = Script::start([]).await;
    let folder = tempfile::tempdir().unwrap();
    let (control, publish_socket) = (folder.path().join("control"), folder.path().join("publish"));
    let listen = format!("127.0.0.1:0, unix:{}", publish_socket.display());
    let socket = format!("unix:{}", control.display());
    let flags = [("listen.publish", &*listen), ("listen.control", &*socket)];
    let (_sidecar, publish, telemetry) = sidecar(&config(&script.url, &flags)).await;
    let head = |line: &str, host: &str, more: &str| {
        format!(
            "{line} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{more}content-length: 1\r\n\r\nx"
        )
    };
    let foreign = [
        "origin: https://evil.example\r\n",
        "origin: null\r\n",
        "origin: http://localhost:1\r\n",
        "sec-fetch-site: cross-site\r\n",
        "Sec-Fetch-Site: Cross-Site\r\nsec-fetch-mode: no-cors\r\n",
        "origin: http://localhost\r\nsec-fetch-site: cross-site\r\n",
        "origin: http://localhost\r\norigin: https://evil.example\r\n",
    ];
    let own = [
        "origin: http://localhost\r\nsec-fetch-site: same-origin\r\n",
        "sec-fetch-site: none\r\n",
        "sec-fetch-site: same-origin\r\n",
        "",
    ];
    for (line, address) in [("POST /publish/TopicA", &publish), ("GET /livez", &telemetry)] {
        for headers in foreign {
            let answer = raw(address, head(line, "localhost", headers).as_bytes()).await.unwrap();
            problem(&answer, 403, "foreign-origin");
            assert_eq!(answer.header("access-control-allow-origin"), "");
        }
        for headers in own {
            let answer = raw(address, head(line, "localhost", headers).as_bytes()).await.unwrap();
            assert_eq!(answer.status, 200, "{line} {headers}");
        }
    }
    for (line, socket) in [("POST /publish/TopicA", &publish_socket), ("GET /sidecar", &control)] {
        for (headers, status) in [(foreign[0], 403), (foreign[3], 403), ("", 200)] {
            // A name is any, where no browser comes.
            let mut stream = UnixStream::connect(socket).await.unwrap();
            stream.write_all(head(line, "anything", headers).as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            timeout(BOUND, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
            assert_eq!(parse(&answer).unwrap().status, status, "{line} {headers}");
        }
    }
}

/// A page whose name was pointed at this machine is of our origin by then: only its name is foreign.
#[tokio::test]
async fn names_that_are_not_ours_are_refused_on_loopback() {
    let script = Script::start([]).await;
    let ipv6 = TcpStream::connect("[::1]:1").await.is_err_and(|error| {
        // Refused: there is an address to refuse it.
        error.kind() == std::io::ErrorKind::ConnectionRefused
    });
    let flags = [("listen.telemetry", "0.0.0.0:0"), ("listen.hosts", "tollgate.test, other.test")];
    let (_sidecar, publish, telemetry) = sidecar(&config(&script.url, &flags)).await;
    let port = telemetry.rsplit(':').next().unwrap().to_owned();
    let telemetry = format!("127.0.0.1:{port}");
    let head = |line: &str, host: &str| {
        format!(
            "{line} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx"
        )
    };
    for (line, address) in [
        ("POST /publish/TopicA", &publish),
        ("GET /livez", &telemetry),
        ("GET /metrics", &telemetry),
        ("GET /", &telemetry),
    ] {
        for host in ["evil.example", "evil.example:8080", "localhost.evil.example", "rebind.test"] {
            let answer = raw(address, head(line, host).as_bytes()).await.unwrap();
            problem(&answer, 403, "foreign-host");
        }
        // The kubelet and Prometheus name an address, curl what was typed.
        for host in [
            "localhost",
            "localhost:8080",
            "127.0.0.1",
            "10.2.3.4:9464",
            "[::1]:9464",
            "[fd00::7]:9464",
            "tollgate.test",
            "OTHER.test:80",
        ] {
            let answer = raw(address, head(line, host).as_bytes()).await.unwrap();
            assert_eq!(answer.status, 200, "{line} {host}");
        }
    }
    // The absolute form counts before Host.
    let absolute = head("POST http://evil.example/publish/TopicA", "localhost");
    problem(&raw(&publish, absolute.as_bytes()).await.unwrap(), 403, "foreign-host");
    if ipv6 {
        let flags = [("listen.telemetry", "[::]:0")];
        let (_sidecar, _, telemetry) = sidecar(&config(&script.url, &flags)).await;
        let port = telemetry.rsplit(':').next().unwrap().to_owned();
        for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
            let answer = raw(&address, head("GET /livez", &address).as_bytes()).await.unwrap();
            assert_eq!(answer.status, 200, "{address}");
            let answer =
                raw(&address, head("GET /livez", "evil.example").as_bytes()).await.unwrap();
            problem(&answer, 403, "foreign-host");
        }
    }
    // A service mesh may put any name there.
    let (_sidecar, publish, _) = sidecar(&config(&script.url, &[("listen.hosts", "*")])).await;
    let answer = raw(&publish, head("POST /publish/TopicA", "orders.shop.svc").as_bytes()).await;
    assert_eq!(answer.unwrap().status, 200);
}

/// A connection from a network may name anything: the name of a Service, say.
#[tokio::test]
async fn names_are_free_where_a_network_comes_in() {
    let Some(address) = own_address() else {
        return println!("this machine has no address but loopback: nothing comes in");
    };
    let script = Script::start([]).await;
    let flags = [("listen.telemetry", "0.0.0.0:0")];
    let (_sidecar, _, telemetry) = sidecar(&config(&script.url, &flags)).await;
    let port = telemetry.rsplit(':').next().unwrap().to_owned();
    for host in ["orders.shop.svc:9464", &*format!("{address}:{port}")] {
        let head = format!("GET /livez HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let answer = raw(&format!("{address}:{port}"), head.as_bytes()).await.unwrap();
        assert_eq!(answer.status, 200, "{host}");
    }
}

/// An address of this machine that is not loopback, as the kernel would choose it. Nothing is sent.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback())
}

/// A client that does not end its side after its 413 is not kept for ever, nor does it hold a stop.
#[tokio::test]
async fn a_stop_does_not_wait_for_a_client_that_sends_on() {
    let script = Script::start([]).await;
    let (sidecar, publish, _) = sidecar(&config(&script.url, &[])).await;
    let mut client = KeepAlive::open(&publish).await;
    let head =
        b"POST /publish/TopicA HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999\r\n\r\nx";
    assert_eq!(client.send(head).await.status, 413);
    assert!(client.is_closed().await, "our side ends at once");
    timeout(Duration::from_secs(20), sidecar.drain(async {})).await.expect("it stops");
    assert_eq!(post_is_refused(&publish).await, Some(()));
}

async fn post_is_refused(publish: &str) -> Option<()> {
    TcpStream::connect(publish).await.err().map(drop)
}
