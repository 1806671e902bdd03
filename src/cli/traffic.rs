//! The demo's own callers, which publish at a constant rate to five topics.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{CONTENT_LENGTH, HOST, RETRY_AFTER};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval};

const TICK: Duration = Duration::from_millis(10);
/// The most callers at once; beyond it, messages are skipped.
const MAX_CALLERS: u32 = 8_192;
/// Whose turn it is: of ten messages, five are of the first topic, and one or two of each other one.
const TURNS: [&str; 10] = [
    "Telemetry",
    "Orders",
    "Telemetry",
    "Alarm",
    "Telemetry",
    "Presence",
    "Telemetry",
    "Orders",
    "Telemetry",
    "Command",
];

/// What callers were answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CallerTotals {
    /// 200.
    pub(super) delivered: u64,
    /// 202.
    pub(super) stored: u64,
    /// 429 and 503.
    pub(super) refused: u64,
    /// Any other status.
    pub(super) failed: u64,
    /// The connection ended.
    pub(super) unanswered: u64,
}

impl CallerTotals {
    /// What came since `before`.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            delivered: self.delivered - before.delivered,
            stored: self.stored - before.stored,
            refused: self.refused - before.refused,
            failed: self.failed - before.failed,
            unanswered: self.unanswered - before.unanswered,
        }
    }

    pub(super) fn sum(self) -> u64 {
        self.delivered + self.stored + self.refused + self.failed + self.unanswered
    }
}

type CallerConnection = SendRequest<Full<Bytes>>;

/// Callers of one sidecar. Cheap to clone.
#[derive(Clone)]
pub(super) struct DemoCallers(Arc<CallersInner>);

struct CallersInner {
    address: String,
    idle: Mutex<Vec<CallerConnection>>,
    totals: Mutex<CallerTotals>,
    retry_after: Mutex<Option<String>>,
    number: AtomicUsize,
    at_once: Arc<Semaphore>,
}

impl DemoCallers {
    pub(super) fn new(address: String) -> Self {
        Self(Arc::new(CallersInner {
            address,
            idle: Mutex::default(),
            totals: Mutex::default(),
            retry_after: Mutex::default(),
            number: AtomicUsize::new(0),
            at_once: Arc::new(Semaphore::new(MAX_CALLERS as usize)),
        }))
    }

    /// Publishes `rate` messages a second, until it is dropped.
    pub(super) async fn publish(&self, rate: u32) {
        let start = Instant::now();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut made = 0;
        loop {
            let now = ticks.tick().await;
            // All that are due since the start, so that rounding does not add up.
            let elapsed = u64::try_from((now - start).as_millis()).unwrap_or(u64::MAX);
            let due = elapsed.saturating_mul(u64::from(rate)) / 1_000;
            for _ in made..due {
                if let Ok(slot) = Arc::clone(&self.0.at_once).try_acquire_owned() {
                    let callers = Arc::clone(&self.0);
                    tokio::spawn(async move {
                        callers.publish_one().await;
                        drop(slot);
                    });
                }
            }
            made = due;
        }
    }

    /// The same, and prints each second what became of them. `worst` is the provider's own count: the most
    /// calls that arrived in any sliding second.
    pub(super) async fn publish_and_report(&self, rate: u32, worst: impl Fn() -> usize) {
        println!("Publishing {rate} messages a second to five topics:\n");
        println!(
            "second  delivered  stored  refused  retry-after  worst sliding second at the provider"
        );
        let report = async {
            let mut seconds = interval(Duration::from_secs(1));
            seconds.tick().await;
            let mut before = CallerTotals::default();
            for second in 1_u64.. {
                seconds.tick().await;
                let totals = self.totals();
                self.report(second, totals.since(before), worst());
                before = totals;
            }
        };
        tokio::join!(self.publish(rate), report);
    }

    /// Waits until all that have asked are answered.
    pub(super) async fn settled(&self) {
        // The semaphore is never closed.
        drop(self.0.at_once.acquire_many(MAX_CALLERS).await);
    }

    pub(super) fn totals(&self) -> CallerTotals {
        *self.0.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, second: u64, counts: CallerTotals, worst: usize) {
        let CallerTotals { delivered, stored, refused, failed, unanswered } = counts;
        let refused = refused + failed;
        let retry_after = self.0.retry_after.lock().unwrap_or_else(PoisonError::into_inner).take();
        let retry_after = retry_after.map_or_else(|| "–".to_owned(), |s| format!("{s} s"));
        let unanswered = match unanswered {
            0 => String::new(),
            n => format!("  ({n} without an answer)"),
        };
        println!(
            "{second:>6}  {delivered:>9}  {stored:>6}  {refused:>7}  {retry_after:>11}  {worst}{unanswered}"
        );
    }
}

impl CallersInner {
    async fn publish_one(&self) {
        let answer = self.exchange().await;
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Some((status, retry_after)) => {
                match status {
                    200 => totals.delivered += 1,
                    202 => totals.stored += 1,
                    429 | 503 => totals.refused += 1,
                    _ => totals.failed += 1,
                }
                drop(totals);
                if retry_after.is_some() {
                    *self.retry_after.lock().unwrap_or_else(PoisonError::into_inner) = retry_after;
                }
            }
            None => totals.unanswered += 1,
        }
    }

    /// The status and `Retry-After`; `None`: no answer.
    async fn exchange(&self) -> Option<(u16, Option<String>)> {
        let mut connection = self.connection().await?;
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let topic = TURNS[number % TURNS.len()];
        // No two are alike: the provider counts messages that it has had before.
        let body = Bytes::from(format!("{{\"number\":{number},\"temperature\":21.5}}"));
        let request = Request::post(format!("/publish/{topic}/demo"))
            .header(HOST, &self.address)
            .header(CONTENT_LENGTH, body.len())
            .body(Full::new(body))
            .ok()?;
        let answer = connection.send_request(request).await.ok()?;
        let status = answer.status().as_u16();
        let retry_after = answer.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()).map(str::to_owned);
        answer.into_body().collect().await.ok()?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        Some((status, retry_after))
    }

    async fn connection(&self) -> Option<CallerConnection> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut connection) = idle else { break };
            if connection.ready().await.is_ok() {
                return Some(connection);
            }
        }
        let stream = TcpStream::connect(&self.address).await.ok()?;
        let (connection, driver) = handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(async move { drop(driver.await) });
        Some(connection)
    }
}
