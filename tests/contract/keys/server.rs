//! A tiny HTTP server that answers by a script and remembers what it was asked.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub(crate) type Reply = Response<BoxBody<Bytes, Infallible>>;

/// A server that lives as long as its test's runtime.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request<()>>>>,
    count: watch::Receiver<usize>,
}

impl Server {
    /// Answers its n-th request, counted from 1, by `answer`.
    pub(crate) async fn start<F, A>(answer: F) -> Self
    where
        F: Fn(usize) -> A + Clone + Send + 'static,
        A: Future<Output = Reply> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (counted, count) = watch::channel(0);
        let counted = Arc::new(counted);
        let seen = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, seen) = (answer.clone(), Arc::clone(&seen));
                let counted = Arc::clone(&counted);
                let service = service_fn(move |request: Request<Incoming>| {
                    let n = {
                        let mut seen = seen.lock().unwrap();
                        seen.push(request.map(drop));
                        seen.len()
                    };
                    counted.send_replace(n);
                    let answer = answer(n);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                // A client that hangs up is no matter of the server's.
                tokio::spawn(async move {
                    http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok();
                });
            }
        });
        Self { address, requests, count }
    }

    /// Answers every request with this text.
    pub(crate) async fn text(status: u16, text: impl Into<String>) -> Self {
        let text = text.into();
        Self::start(move |_| std::future::ready(reply(status, text.clone()))).await
    }

    pub(crate) fn uri(&self) -> String {
        format!("http://user:hushpass@{}/key?for=hushquery", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request<()>> {
        self.requests.lock().unwrap().clone()
    }

    /// Resolves when a first request has arrived.
    pub(crate) async fn asked(&self) {
        self.count.clone().wait_for(|count| *count > 0).await.unwrap();
    }
}

pub(crate) fn reply(status: u16, text: impl Into<Bytes>) -> Reply {
    Response::builder().status(status).body(Full::new(text.into()).boxed()).unwrap()
}
