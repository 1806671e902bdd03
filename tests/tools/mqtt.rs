//! The whole way: posted to a real sidecar, called to a real emulator, handed to a real broker,
//! and printed by a subscriber that nobody here wrote.

use std::process::Stdio;

use crate::support::broker::Mosquitto;
use crate::support::http::{BOUND, post};
use crate::support::ports::free_port;
use crate::support::process::{Emulator, Serve};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;
use tollgate::signing::encode;

/// `mosquitto_sub`, printing topic and payload in hexadecimal, a message a line.
async fn subscriber(port: u16) -> (Child, Lines<BufReader<ChildStdout>>) {
    // It holds its lines back from a pipe otherwise.
    let mut child = Command::new("stdbuf")
        .args([
            "-oL",
            "mosquitto_sub",
            "-d",
            "-q",
            "1",
            "-t",
            "#",
            "-F",
            "got %t %x",
            "-p",
            &port.to_string(),
        ])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("mosquitto_sub is missing: run tests/setup.sh");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let subscribed = async {
        while !lines.next_line().await.unwrap().expect("it subscribes").starts_with("Subscribed") {}
    };
    timeout(BOUND, subscribed).await.expect("it subscribes in time");
    (child, lines)
}

async fn bodies_arrive(mqtt_payload: &str, expected: impl Fn(&[u8]) -> Vec<u8>) {
    let port = free_port();
    let _broker = Mosquitto::start(port).await;
    let (_subscriber, mut lines) = subscriber(port).await;
    let mqtt = format!("mqtt://127.0.0.1:{port}");
    let emulator = Emulator::start(&["--mqtt", &mqtt, "--mqtt-payload", mqtt_payload]).await;
    let url = emulator.url();
    let serve = Serve::start(&[("upstream.endpoint", url.as_str())], &[]).await;

    let mut random = fastrand::Rng::with_seed(9);
    let every_byte: Vec<u8> = (0..=255).collect();
    let largest: Vec<u8> = (0..49_152).map(|_| random.u8(..)).collect();
    for (topic, body) in [
        ("TopicA", b"hello".to_vec()),
        ("TopicA/sub1/sub2", every_byte),
        ("TopicA/p2p/GID_test@@@DEVICE_001", largest),
        ("TopicA/empty", Vec::new()),
    ] {
        let answer = post(&serve.publish, &format!("/publish/{topic}"), &[], &body).await;
        assert_eq!(answer.status, 200, "{}", answer.json());
        let received = async {
            loop {
                let line = lines.next_line().await.unwrap().expect("the subscriber goes on");
                if let Some(message) = line.strip_prefix("got ") {
                    return message.to_owned();
                }
            }
        };
        let received = timeout(BOUND, received).await.expect("it arrives");
        let expected = format!("{topic} {}", encode::hex(&expected(&body)));
        assert!(received == expected, "{topic}: {} bytes came otherwise", body.len());
    }
}

#[tokio::test]
async fn a_subscriber_gets_exactly_what_was_posted() {
    bodies_arrive("decoded", <[u8]>::to_vec).await;
}

#[tokio::test]
async fn or_its_base64() {
    bodies_arrive("as-sent", |body| STANDARD.encode(body).into_bytes()).await;
}
