//! Hand-over to a real broker: mosquitto, started by the tests. Needs `tests/setup.sh`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::time::timeout;
use tollgate::emulator::{EmulatorOptions, MqttPayload};

use crate::client::{Call, Place};
use crate::support::broker::{Mosquitto, PATIENCE, Subscriber};
use crate::support::ports::{free_port, refusing};
use crate::{options, start};

fn with_broker(port: u16, mqtt_payload: MqttPayload) -> EmulatorOptions {
    EmulatorOptions { mqtt: Some(format!("mqtt://127.0.0.1:{port}")), mqtt_payload, ..options() }
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
    let (_nobody, address) = refusing();
    let (emulator, mut client) = start(with_broker(address.port(), MqttPayload::AsSent)).await;
    for _ in 0..4200 {
        client.publish("TopicA", "x").await;
    }
    let report = emulator.report();
    assert_eq!(report.accepted, 4200);
    let dropped = report.mqtt.unwrap().dropped;
    assert!((1..=104).contains(&dropped), "{dropped} dropped");
}
