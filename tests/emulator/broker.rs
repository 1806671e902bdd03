//! Hand-over to a real broker: mosquitto, started by the tests. Needs `tests/setup.sh`.

use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tollgate::emulator::{MqttPayload, Options};

use crate::client::{Call, Place};
use crate::{options, start};

const PATIENCE: Duration = Duration::from_secs(20);

/// A broker that ends with its test.
struct Mosquitto {
    _process: Child,
    _folder: tempfile::TempDir,
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Mosquitto {
    /// Returns when it takes connections.
    async fn start(port: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("mosquitto.conf");
        let text = format!("listener {port} 127.0.0.1\nallow_anonymous true\nlog_dest stderr\n");
        std::fs::write(&config, text).unwrap();
        // Debian keeps it where a user's PATH may not look
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin";
        let mut process = Command::new("mosquitto")
            .env("PATH", path)
            .arg("-c")
            .arg(&config)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("mosquitto is missing: run tests/setup.sh");
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let running = async {
            while let Some(line) = log.next_line().await.unwrap() {
                if line.contains("running") {
                    return;
                }
            }
            panic!("mosquitto ended before it ran");
        };
        timeout(PATIENCE, running).await.unwrap();
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Self { _process: process, _folder: folder }
    }
}

/// A device that is subscribed to everything.
struct Subscriber {
    _client: AsyncClient,
    events: EventLoop,
}

impl Subscriber {
    async fn connect(port: u16) -> Self {
        let mut options = MqttOptions::new("device", "127.0.0.1", port);
        options.set_max_packet_size(1 << 20, 1 << 20);
        let (client, events) = AsyncClient::new(options, 10);
        client.subscribe("#", QoS::AtLeastOnce).await.unwrap();
        let mut subscriber = Self { _client: client, events };
        subscriber.until(|packet| matches!(packet, Packet::SubAck(_)).then_some(())).await;
        subscriber
    }

    async fn until<T>(&mut self, wanted: impl Fn(Packet) -> Option<T>) -> T {
        let found = async {
            loop {
                if let Event::Incoming(packet) = self.events.poll().await.unwrap()
                    && let Some(found) = wanted(packet)
                {
                    return found;
                }
            }
        };
        timeout(PATIENCE, found).await.expect("nothing came from the broker")
    }

    /// Topic and bytes of the next message.
    async fn next(&mut self) -> (String, Vec<u8>) {
        self.until(|packet| match packet {
            Packet::Publish(message) => Some((message.topic, message.payload.to_vec())),
            _ => None,
        })
        .await
    }
}

fn with_broker(port: u16, mqtt_payload: MqttPayload) -> Options {
    Options { mqtt: Some(format!("mqtt://127.0.0.1:{port}")), mqtt_payload, ..options() }
}

#[tokio::test]
async fn subscribers_get_the_decoded_bytes() {
    let port = free_port();
    let _broker = Mosquitto::start(port).await;
    let mut subscriber = Subscriber::connect(port).await;
    let (_emulator, mut client) = start(with_broker(port, MqttPayload::Decoded)).await;

    let every_byte: Vec<u8> = (0..=255).collect();
    let mut largest = vec![0; 49_152];
    fastrand::Rng::with_seed(2).fill(&mut largest);
    for bytes in [every_byte, largest] {
        let call = Call::new("TopicA/p2p/GID_test@@@DEVICE_001", &STANDARD.encode(&bytes));
        let answer = client.call(&Call { place: Place::Form, ..call }).await;
        assert_eq!(answer.json()["MsgId"].as_str().map(str::len), Some(32));
        let (topic, got) = subscriber.next().await;
        assert_eq!(topic, "TopicA/p2p/GID_test@@@DEVICE_001");
        assert!(got == bytes, "{} bytes sent, {} came", bytes.len(), got.len());
    }
    client.publish("TopicA", "no Base64 at all!").await;
    assert_eq!(subscriber.next().await, ("TopicA".to_owned(), b"no Base64 at all!".to_vec()));
}

#[tokio::test]
async fn or_the_characters_as_sent() {
    let port = free_port();
    let _broker = Mosquitto::start(port).await;
    let mut subscriber = Subscriber::connect(port).await;
    let (_emulator, mut client) = start(with_broker(port, MqttPayload::AsSent)).await;
    let payload = STANDARD.encode((0..=255).collect::<Vec<u8>>());
    client.publish("TopicA", &payload).await;
    assert_eq!(subscriber.next().await, ("TopicA".to_owned(), payload.into_bytes()));
}

#[tokio::test]
async fn calls_do_not_wait_for_a_broker_that_is_away() {
    let port = free_port();
    let (emulator, mut client) = start(with_broker(port, MqttPayload::AsSent)).await;
    for _ in 0..5 {
        timeout(PATIENCE, client.publish("TopicA", "early")).await.unwrap();
    }
    let _broker = Mosquitto::start(port).await;
    let mut subscriber = Subscriber::connect(port).await;
    client.publish("TopicA", "late").await;
    while subscriber.next().await.1 != b"late" {}
    let report = emulator.report().mqtt.unwrap();
    assert_eq!(report.dropped, 0, "few enough to wait");
}

#[tokio::test]
async fn what_the_queue_cannot_hold_is_dropped_and_counted() {
    let (emulator, mut client) = start(with_broker(free_port(), MqttPayload::AsSent)).await;
    for _ in 0..4200 {
        client.publish("TopicA", "x").await;
    }
    let report = emulator.report();
    assert_eq!(report.accepted, 4200);
    let dropped = report.mqtt.unwrap().dropped;
    assert!((1..=104).contains(&dropped), "{dropped} dropped");
}
