//! A real broker, mosquitto, and subscribers to it. `tests/setup.sh` installs it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::process::Stdio;
use std::time::Duration;

use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

pub const PATIENCE: Duration = Duration::from_secs(20);

/// A broker that ends with its test.
pub struct Mosquitto {
    _process: Child,
    _folder: tempfile::TempDir,
}

impl Mosquitto {
    /// Returns when it takes connections.
    pub async fn start(port: u16) -> Self {
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
pub struct Subscriber {
    _client: AsyncClient,
    events: EventLoop,
}

impl Subscriber {
    pub async fn connect(port: u16) -> Self {
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
    pub async fn next(&mut self) -> (String, Vec<u8>) {
        self.until(|packet| match packet {
            Packet::Publish(message) => Some((message.topic, message.payload.to_vec())),
            _ => None,
        })
        .await
    }
}
