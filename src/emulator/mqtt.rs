//! Hands accepted messages to a real broker, without ever making a call wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use tokio::time::sleep;

use super::options::MqttPayload;
use super::report::{Accepted, MqttReport};

/// Messages that wait for the broker; while it does not answer, the rest is dropped.
const QUEUE: usize = 4096;
/// A message of the provider's largest size with room to spare.
const MOST_PACKET: usize = 1 << 20;
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The end of the hand-over that calls see.
pub(super) struct Broker {
    client: AsyncClient,
    payload: MqttPayload,
    counts: Arc<MqttCounts>,
}

#[derive(Default)]
struct MqttCounts {
    published: AtomicU64,
    dropped: AtomicU64,
}

impl Broker {
    /// Makes both ends, or `None` if the URL is not one of a broker. The future must run for
    /// messages to flow.
    pub(super) fn new(
        url: &str,
        payload: MqttPayload,
    ) -> Option<(Self, impl Future<Output = ()> + use<>)> {
        let (client, events) = AsyncClient::new(address(url)?, QUEUE);
        let counts = Arc::new(MqttCounts::default());
        let flow = flow(events, Arc::clone(&counts));
        Some((Self { client, payload, counts }, flow))
    }

    pub(super) fn hand_over(&self, message: &Accepted) {
        let as_sent = || message.payload.clone().into_bytes();
        let bytes = match self.payload {
            MqttPayload::AsSent => as_sent(),
            MqttPayload::Decoded => STANDARD.decode(&message.payload).unwrap_or_else(|_| as_sent()),
        };
        let topic = message.topic.as_str();
        if self.client.try_publish(topic, QoS::AtLeastOnce, false, bytes).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn report(&self) -> MqttReport {
        MqttReport {
            published: self.counts.published.load(Ordering::Relaxed),
            dropped: self.counts.dropped.load(Ordering::Relaxed),
        }
    }

    pub(super) fn reset(&self) {
        self.counts.published.store(0, Ordering::Relaxed);
        self.counts.dropped.store(0, Ordering::Relaxed);
    }
}

/// Reads `mqtt://[user:password@]host[:port]`.
fn address(url: &str) -> Option<MqttOptions> {
    let uri: Uri = url.parse().ok().filter(|uri: &Uri| uri.scheme_str() == Some("mqtt"))?;
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    let id = format!("tollgate-emulator-{:08x}", fastrand::u32(..));
    let mut options = MqttOptions::new(id, host, uri.port_u16().unwrap_or(1883));
    options.set_max_packet_size(MOST_PACKET, MOST_PACKET);
    options.set_keep_alive(Duration::from_secs(30));
    let login = uri.authority()?.as_str().rsplit_once('@');
    if let Some((user, password)) = login.and_then(|(login, _)| login.split_once(':')) {
        options.set_credentials(user, password);
    }
    Some(options)
}

/// Drives the connection, and makes it anew, ever more slowly, when it breaks.
async fn flow(mut events: EventLoop, counts: Arc<MqttCounts>) {
    let mut wait = FIRST_WAIT;
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::PubAck(_))) => {
                counts.published.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                tracing::info!("connected to the broker");
                wait = FIRST_WAIT;
            }
            Ok(_) => {}
            Err(error) => {
                let retry_in_s = wait.as_secs_f64();
                tracing::warn!(%error, retry_in_s, "the broker does not answer");
                sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_addresses() {
        let broker = |url| address(url).map(|options| options.broker_address());
        assert_eq!(broker("mqtt://127.0.0.1:1884"), Some(("127.0.0.1".to_owned(), 1884)));
        assert_eq!(broker("mqtt://broker"), Some(("broker".to_owned(), 1883)));
        assert_eq!(broker("mqtt://[::1]:1885"), Some(("::1".to_owned(), 1885)));
        assert_eq!(broker("mqtt://u:p@broker"), Some(("broker".to_owned(), 1883)));
        for wrong in ["broker:1883", "http://broker", "mqtt://", ""] {
            assert_eq!(broker(wrong), None, "{wrong}");
        }
    }
}
