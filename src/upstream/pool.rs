//! Connections of one egress address: the one used last is used next, so that the others may age.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::connect::Connector;
use crate::answer::TransportError;

/// A connection in use is replaced at this age, so that a name's new addresses are found.
const MAX_AGE: Duration = Duration::from_mins(1);
/// A connection whose last answer was read is ready within one turn of the runtime.
const READY: Duration = Duration::from_millis(20);

pub(super) struct Pool {
    connector: Arc<Connector>,
    source: Option<IpAddr>,
    idle_timeout: Duration,
    idle: Mutex<Vec<PooledConnection>>,
    /// Bounds connections in use. A new one is opened only when none is idle, so it bounds idle ones, too.
    slots: Arc<Semaphore>,
    /// Bounds connections that are kept open for a late answer.
    listeners: Arc<Semaphore>,
}

/// An open connection. Dropped, it is closed.
pub(super) struct PooledConnection {
    sender: SendRequest<Full<Bytes>>,
    /// Owns the socket.
    task: JoinHandle<()>,
    to: SocketAddr,
    opened: Instant,
    unused_since: Instant,
}

/// The place of one call among those that a pool may have at once.
pub(super) type Slot = OwnedSemaphorePermit;

impl Pool {
    pub(super) fn new(
        connector: Arc<Connector>,
        source: Option<IpAddr>,
        idle_timeout: Duration,
        max_connections: usize,
    ) -> Self {
        Self {
            connector,
            source,
            idle_timeout,
            idle: Mutex::default(),
            slots: Arc::new(Semaphore::new(max_connections)),
            listeners: Arc::new(Semaphore::new(max_connections)),
        }
    }

    /// A connection that is ready for a request.
    pub(super) async fn lease(
        &self,
        deadline: Instant,
    ) -> Result<(PooledConnection, Slot), TransportError> {
        let slot = timeout_at(deadline, Arc::clone(&self.slots).acquire_owned()).await;
        let Ok(Ok(slot)) = slot else { return Err(TransportError::NoConnection) };
        while let Some(mut connection) = self.pop() {
            // One that the provider has closed, or that still has bytes to send after an early
            // answer, is dropped: another is sooner ready.
            if let Ok(Ok(())) = timeout(READY, connection.sender.ready()).await {
                return Ok((connection, slot));
            }
        }
        // On the heap: few calls open a connection, and each would have the room for it.
        let opened = timeout_at(deadline, Box::pin(self.open())).await;
        Ok((opened.map_err(|_| TransportError::ConnectTimeout)??, slot))
    }

    /// A place to keep a connection open for a late answer; `None`: as many are open as may be.
    pub(super) fn listener(&self) -> Option<Slot> {
        Arc::clone(&self.listeners).try_acquire_owned().ok()
    }

    async fn open(&self) -> Result<PooledConnection, TransportError> {
        let (stream, to) = self.connector.connect(self.source).await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|_| TransportError::Connect)?;
        let task = tokio::spawn(async move {
            // Its errors reach the call that waits for an answer.
            drop(connection.await);
        });
        sender.ready().await.map_err(|_| TransportError::Connect)?;
        let now = Instant::now();
        Ok(PooledConnection { sender, task, to, opened: now, unused_since: now })
    }

    /// The connection used last, unless it has been idle for too long; then all have.
    fn pop(&self) -> Option<PooledConnection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = idle.pop()?;
        if connection.unused_since.elapsed() >= self.idle_timeout {
            idle.clear();
            return None;
        }
        Some(connection)
    }

    /// Takes a connection back whose answer has been read to its end.
    pub(super) fn put_back(&self, mut connection: PooledConnection) {
        let now = Instant::now();
        if connection.sender.is_closed() || now - connection.opened >= MAX_AGE {
            return;
        }
        connection.unused_since = now;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }

    /// Closes what has been idle for too long.
    pub(super) fn reap(&self) {
        let now = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|c| now - c.unused_since < self.idle_timeout && !c.sender.is_closed());
    }
}

impl PooledConnection {
    pub(super) fn sender(&mut self) -> &mut SendRequest<Full<Bytes>> {
        &mut self.sender
    }

    /// The provider's address.
    pub(super) fn to(&self) -> SocketAddr {
        self.to
    }

    /// Closes the connection and returns when it is closed: nothing of the call is sent later.
    pub(super) async fn close(mut self) {
        self.task.abort();
        // Cancelled is what was asked for.
        drop((&mut self.task).await);
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A call that waits for a connection until its deadline fails with `NoConnection`.
    #[tokio::test]
    async fn all_connections_are_in_use() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let flags = [("upstream.endpoint", &*endpoint), ("upstream.instance_id", "x")];
        let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let config = crate::config::load(None, [], &flags).unwrap().config;
        let connector = Arc::new(Connector::new(&config.upstream).unwrap());
        let pool = Pool::new(connector, None, Duration::from_mins(1), 1);
        let patient = || Instant::now() + Duration::from_mins(1);
        let Ok((first, slot)) = pool.lease(patient()).await else { panic!("there is one") };
        let second = pool.lease(Instant::now() + Duration::from_millis(10)).await;
        assert_eq!(second.err(), Some(TransportError::NoConnection));
        pool.put_back(first);
        drop(slot);
        assert!(pool.lease(patient()).await.is_ok());
    }
}
