//! The demo's own callers, which publish at a constant rate.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{CONTENT_LENGTH, HOST, RETRY_AFTER};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval};

const TICK: Duration = Duration::from_millis(10);
/// The most callers at once; beyond it, messages are skipped.
const MAX_CALLERS: usize = 8_192;

#[derive(Default)]
struct SecondCounts {
    statuses: BTreeMap<u16, u64>,
    retry_after: Option<String>,
    unanswered: u64,
}

type CallerConnection = SendRequest<Full<Bytes>>;

struct Callers {
    address: String,
    idle: Mutex<Vec<CallerConnection>>,
    counts: Mutex<SecondCounts>,
    at_once: Arc<tokio::sync::Semaphore>,
}

/// Publishes `rate` messages a second and prints each second what became of them. `worst` is the
/// provider's own count: the most calls that arrived in any sliding second.
pub(super) async fn run(address: String, rate: u32, worst: impl Fn() -> usize) {
    let callers = Arc::new(Callers {
        address,
        idle: Mutex::default(),
        counts: Mutex::default(),
        at_once: Arc::new(tokio::sync::Semaphore::new(MAX_CALLERS)),
    });
    println!("Publishing {rate} messages a second:\n");
    println!(
        "second  delivered  stored  refused  retry-after  worst sliding second at the provider"
    );
    let start = Instant::now();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut made, mut second) = (0, 1);
    loop {
        let now = ticks.tick().await;
        // All that are due since the start, so that rounding does not add up.
        let elapsed = u64::try_from((now - start).as_millis()).unwrap_or(u64::MAX);
        let due = elapsed.saturating_mul(u64::from(rate)) / 1_000;
        for _ in made..due {
            if let Ok(slot) = Arc::clone(&callers.at_once).try_acquire_owned() {
                let callers = Arc::clone(&callers);
                tokio::spawn(async move {
                    callers.publish().await;
                    drop(slot);
                });
            }
        }
        made = due;
        if now - start >= Duration::from_secs(second) {
            callers.report(second, worst());
            second += 1;
        }
    }
}

impl Callers {
    async fn publish(&self) {
        let answer = self.exchange().await;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Some((status, retry_after)) => {
                *counts.statuses.entry(status).or_default() += 1;
                counts.retry_after = retry_after.or(counts.retry_after.take());
            }
            None => counts.unanswered += 1,
        }
    }

    /// The status and `Retry-After`; `None`: no answer.
    async fn exchange(&self) -> Option<(u16, Option<String>)> {
        let mut connection = self.connection().await?;
        let body = Bytes::from_static(b"{\"temperature\":21.5}");
        let request = Request::post("/publish/TopicA/demo")
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

    fn report(&self, second: u64, worst: usize) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = std::mem::take(&mut *counts);
        let of = |status| counts.statuses.get(&status).copied().unwrap_or(0);
        let (delivered, stored) = (of(200), of(202));
        let refused = counts.statuses.values().sum::<u64>() - delivered - stored;
        let retry_after = counts.retry_after.map_or_else(|| "–".to_owned(), |s| format!("{s} s"));
        let unanswered = match counts.unanswered {
            0 => String::new(),
            n => format!("  ({n} without an answer)"),
        };
        println!(
            "{second:>6}  {delivered:>9}  {stored:>6}  {refused:>7}  {retry_after:>11}  {worst}{unanswered}"
        );
    }
}
