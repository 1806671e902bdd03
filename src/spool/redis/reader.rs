//! Reads bodies over a connection of its own, many at once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;

use super::connection::{Memory, SpoolConnection, SpoolEndpoint, SpoolRedisError};
use crate::message::MessageId;

/// Bodies that are read at once: together far below what a connection carries before a call is
/// given up.
const AT_ONCE: usize = 32;
/// How long a failure answers for all who read: they do not wait for a second one.
const PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct BodyReader {
    endpoint: Arc<SpoolEndpoint>,
    permits: Semaphore,
    connection: Mutex<ReadConnection>,
}

#[derive(Debug, Default)]
struct ReadConnection {
    open: Option<SpoolConnection>,
    /// Counts connections, so that a late failure does not close a newer one.
    number: u64,
    failed: Option<(Instant, Arc<str>)>,
}

impl BodyReader {
    pub(super) fn new(endpoint: Arc<SpoolEndpoint>) -> Self {
        Self { endpoint, permits: Semaphore::new(AT_ONCE), connection: Mutex::default() }
    }

    /// The body of a message; `None`: Redis has none.
    pub(super) async fn body(&self, id: MessageId) -> Result<Option<Bytes>, Arc<str>> {
        let permit = self.permits.acquire().await;
        let _permit = permit.map_err(|closed| Arc::from(closed.to_string()))?;
        let (mut connection, number, age) = self.connection().await?;
        let mut read = self.read(&mut connection, id).await;
        let mut number = number;
        // A connection that ended while it was idle says nothing about Redis.
        if age == Age::Used && read.as_ref().is_err_and(SpoolRedisError::is_dropped) {
            self.close(number, None).await;
            (connection, number, _) = self.connection().await?;
            read = self.read(&mut connection, id).await;
        }
        match read {
            Ok(body) => Ok(body.map(Bytes::from)),
            Err(error) => {
                let error = Arc::from(error.to_string());
                self.close(number, Some(Arc::clone(&error))).await;
                Err(error)
            }
        }
    }

    async fn connection(&self) -> Result<(SpoolConnection, u64, Age), Arc<str>> {
        let mut connection = self.connection.lock().await;
        if let Some(open) = &connection.open {
            return Ok((open.clone(), connection.number, Age::Used));
        }
        if let Some((at, error)) = &connection.failed
            && at.elapsed() < PAUSE
        {
            return Err(Arc::clone(error));
        }
        match SpoolConnection::open(&self.endpoint).await {
            Ok(open) => {
                connection.open = Some(open.clone());
                connection.number += 1;
                connection.failed = None;
                Ok((open, connection.number, Age::New))
            }
            Err(error) => {
                let error: Arc<str> = error.to_string().into();
                connection.failed = Some((Instant::now(), Arc::clone(&error)));
                Err(error)
            }
        }
    }

    async fn close(&self, number: u64, error: Option<Arc<str>>) {
        let mut connection = self.connection.lock().await;
        if connection.number == number && connection.open.take().is_some() {
            connection.failed = error.map(|error| (Instant::now(), error));
        }
    }

    async fn read(
        &self,
        connection: &mut SpoolConnection,
        id: MessageId,
    ) -> Result<Option<Vec<u8>>, SpoolRedisError> {
        let read: Vec<Option<Vec<u8>>> = connection
            .call(&self.endpoint, Memory::Shrinks, |command| {
                command.arg("read").arg("").arg(0).arg(id.to_string());
            })
            .await?;
        read.into_iter().next().ok_or(SpoolRedisError::Malformed)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    New,
    Used,
}
