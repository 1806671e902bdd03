//! Connections that misbehave, and how long an idle one lives.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tollgate::emulator::{Emulator, EmulatorError, EmulatorOptions, Fault, Then};

use crate::client::{Call, Client};
use crate::support::http::BOUND;
use crate::support::until;
use crate::{options, start};

/// All that comes after `sent`, until the connection ends.
async fn all_after(address: SocketAddr, sent: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // a peer that has enough may close while we still write
    stream.write_all(sent).await.ok();
    let mut answer = Vec::new();
    let end = timeout(BOUND, stream.read_to_end(&mut answer)).await;
    // reset or end of file, but an end
    end.expect("the connection stays open").ok();
    answer
}

fn short_idle() -> EmulatorOptions {
    EmulatorOptions { idle: Duration::from_millis(150), ..options() }
}

#[tokio::test]
async fn idle_connections_are_dropped() {
    let (emulator, _client) = start(short_idle()).await;
    let address = emulator.address();
    for unfinished in
        ["", "POST / HT", "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc"]
    {
        let answer = all_after(address, unfinished.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{unfinished}");
    }
    // one that was used and waits for the next call, if we were quicker than idle
    let report = b"GET /_emulator/report HTTP/1.1\r\nhost: x\r\n\r\n";
    until("it is used", async || all_after(address, report).await.starts_with(b"HTTP/1.1 200"))
        .await;
}

#[tokio::test]
async fn connections_are_kept_alive() {
    let (_emulator, mut client) = start(options()).await;
    for _ in 0..20 {
        client.publish("TopicA", "x").await;
    }
}

#[tokio::test]
async fn garbage_does_no_harm() {
    let (emulator, _client) = start(short_idle()).await;
    let address = emulator.address();
    let mut random = fastrand::Rng::with_seed(1);
    let mut garbage: Vec<Vec<u8>> = [
        "\r\n\r\n\r\n",
        "GET\r\n\r\n",
        "POST /?%%%&&&==&Action=SendMessage&Version=2020-04-20&a%=%f HTTP/1.1\r\n\r\n",
        "POST /?\u{e9}=\u{1f980} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        "POST / HTTP/1.1\r\nAuthorization: ACS3-HMAC-SHA256 ,,,===\r\nx-acs-action: SendMessage\r\n\
         x-acs-version: 2020-04-20\r\nconnection: close\r\n\r\n",
        "POST / HTTP/1.1\r\nAuthorization: \u{e9}\r\nconnection: close\r\n\r\n",
        "POST / HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n",
        "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nZZZ\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nconnection: close\r\n\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    garbage.extend((0..20).map(|n| (0..n * 50).map(|_| random.u8(..)).collect()));
    garbage.push([b"GET /?".as_slice(), &vec![b'a'; 100_000], b" HTTP/1.1\r\n\r\n"].concat());
    garbage.push([b"GET / HTTP/1.1\r\nx: ".as_slice(), &vec![b'a'; 2_000_000]].concat());
    garbage.push(
        [b"POST / HTTP/1.1\r\ncontent-length: 2000000\r\n\r\n".as_slice(), &vec![b'a'; 2_000_000]]
            .concat(),
    );
    for bytes in garbage {
        let answer = all_after(address, &bytes).await;
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(60)]);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{shown}");
    }
    // as soon as we are quicker than idle
    until("it works on", async || {
        let mut client = Client::connect(address).await;
        client.try_call(&Call::new("TopicA", "x")).await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
}

#[tokio::test]
async fn a_long_url_is_taken() {
    let (emulator, mut client) = start(options()).await;
    let payload = "x".repeat(65_000);
    client.publish("TopicA", &payload).await;
    assert_eq!(emulator.messages()[0].payload, payload);
}

#[tokio::test]
async fn stops_when_told_and_when_dropped() {
    let (emulator, _client) = start(options()).await;
    let address = emulator.address();
    timeout(BOUND, emulator.stop()).await.unwrap();
    TcpStream::connect(address).await.unwrap_err();

    let emulator = Emulator::start(options()).unwrap();
    let mut stream = TcpStream::connect(emulator.address()).await.unwrap();
    drop(emulator);
    let end = timeout(BOUND, stream.read_u8()).await.unwrap();
    end.unwrap_err();
}

#[tokio::test]
async fn says_why_it_does_not_start() {
    let (emulator, _client) = start(options()).await;
    let taken = EmulatorOptions { listen: emulator.address(), ..options() };
    assert!(matches!(Emulator::start(taken), Err(EmulatorError::Listen { .. })));
    let mqtt = Some("http://x".to_owned());
    assert!(matches!(
        Emulator::start(EmulatorOptions { mqtt, ..options() }),
        Err(EmulatorError::Mqtt(_))
    ));
    let faults = vec![Fault { probability: 2.0, ..Fault::new(Then::Close) }];
    let started = Emulator::start(EmulatorOptions { faults, ..options() });
    assert!(matches!(started, Err(EmulatorError::Faults(_))));
}
