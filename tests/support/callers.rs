//! Many callers at once, each with a connection of its own, each posting again when it is answered.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::Instant;

/// One answered request: when it was asked, how long it took, what it was told.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub at: Instant,
    pub took: Duration,
    pub status: u16,
}

/// Runs so many callers until then and returns every answer they got. A connection that ends, as
/// when the sidecar is killed, is opened again.
pub async fn run(address: &str, callers: usize, until: Instant) -> Vec<Asked> {
    let answers = Rc::new(RefCell::new(Vec::new()));
    let local = LocalSet::new();
    for caller in 0..callers {
        let (answers, address) = (Rc::clone(&answers), address.to_owned());
        local.spawn_local(async move {
            let mut connection = None;
            let mut number = 0;
            while Instant::now() < until {
                let at = Instant::now();
                let body = format!("{caller}-{number}");
                let request = publish(&address, body);
                let exchange = exchange(&address, connection.take(), request);
                let answer = tokio::time::timeout(super::http::BOUND, exchange).await;
                if let Some((answer, kept)) = answer.expect("no request hangs") {
                    let status = answer.status().as_u16();
                    connection = Some(kept);
                    number += 1;
                    answers.borrow_mut().push(Asked { at, took: at.elapsed(), status });
                    if status == 429 {
                        // As if it had been told when: else refused callers are all there is.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                } else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        });
    }
    local.await;
    answers.take()
}

/// Requests that come at random, so many a second, whether or not others have been answered: a Poisson
/// process. Each body has the seed in it, so that none is like another's. One whose connection ended
/// without an answer has the status 0.
pub async fn arrive(address: &str, per_second: f64, until: Instant, seed: u64) -> Vec<Asked> {
    let request = |number| publish(address, format!("{seed}-{number}"));
    let answers = arrive_with(address, per_second, until, seed, request).await;
    let asked = |(at, took, answer): Answered| {
        let status = answer.map_or(0, |answer| answer.status().as_u16());
        Asked { at, took, status }
    };
    answers.into_iter().map(asked).collect()
}

/// When a request was asked, how long it took, and its answer, if there was one.
pub type Answered = (Instant, Duration, Option<Response<Bytes>>);

/// As [`arrive`], with these requests.
pub async fn arrive_with(
    address: &str,
    per_second: f64,
    until: Instant,
    seed: u64,
    request: impl Fn(u64) -> Request<Full<Bytes>>,
) -> Vec<Answered> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (answers, idle) = (Rc::new(RefCell::new(Vec::new())), Rc::new(RefCell::new(Vec::new())));
    let local = LocalSet::new();
    let arrivals = async {
        let mut at = Instant::now();
        for number in 0.. {
            at += Duration::from_secs_f64(-(1.0 - rng.f64()).ln() / per_second);
            if at > until {
                return;
            }
            tokio::time::sleep_until(at).await;
            let (answers, idle) = (Rc::clone(&answers), Rc::clone(&idle));
            let (address, request) = (address.to_owned(), request(number));
            tokio::task::spawn_local(async move {
                let at = Instant::now();
                // As clients do: one that was closed meanwhile is not used.
                let kept = idle.borrow_mut().pop().filter(|kept: &Connection| !kept.is_closed());
                let exchange = exchange(&address, kept, request);
                let answer = tokio::time::timeout(super::http::BOUND, exchange).await;
                let answer = answer.expect("no request hangs");
                let took = at.elapsed();
                let (answer, kept) = answer.unzip();
                idle.borrow_mut().extend(kept);
                answers.borrow_mut().push((at, took, answer));
            });
        }
    };
    local.run_until(arrivals).await;
    local.await;
    answers.take()
}

type Connection = SendRequest<Full<Bytes>>;

async fn exchange(
    address: &str,
    kept: Option<Connection>,
    request: Request<Full<Bytes>>,
) -> Option<(Response<Bytes>, Connection)> {
    let mut connection = if let Some(connection) = kept {
        connection
    } else {
        let stream = TcpStream::connect(address).await.ok()?;
        let (connection, driver) = handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(async move { drop(driver.await) });
        connection
    };
    connection.ready().await.ok()?;
    let (head, body) = connection.send_request(request).await.ok()?.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    Some((Response::from_parts(head, body), connection))
}

fn publish(address: &str, body: String) -> Request<Full<Bytes>> {
    let request = Request::post("/publish/TopicA").header("host", address);
    request.body(Full::new(Bytes::from(body))).unwrap()
}
