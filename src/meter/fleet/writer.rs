//! The task that writes to Redis: one connection, one write on its way, repeated until it is answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep, sleep_until};

use super::RecorderInner;
use super::client::BillClient;
use crate::backoff::Backoff;
use crate::config;
use crate::redis_client::ClientError;

/// Between two tries to connect; and while the process waits for its end.
const RECONNECT: Backoff = Backoff::exponential(Duration::from_millis(500), Duration::from_secs(4));
const LAST_RECONNECT: Backoff = Backoff::steady(Duration::from_millis(100));

/// Ends when the recorder is closed and all is written.
pub(super) async fn run(shared: Arc<RecorderInner>, fleet: config::Fleet) {
    let mut line = None;
    let (mut failures, mut has_warned) = (0_u32, false);
    while !shared.journal().is_closed() {
        let done = match &mut line {
            None => BillClient::connect(&fleet).await.map(|new| {
                shared.journal().connected(Instant::now());
                line = Some(new);
            }),
            Some(line) => step(&shared, line).await,
        };
        match done {
            Ok(()) => {
                failures = 0;
                if std::mem::take(&mut has_warned) {
                    tracing::info!("the fleet's bill is written to Redis again");
                }
            }
            Err(error) => {
                line = None;
                failures = failures.saturating_add(1);
                // That Redis is gone is logged where permits are shared.
                if !has_warned && error.wants_a_person() {
                    has_warned = true;
                    tracing::warn!(
                        %error,
                        "the fleet's bill is not written to Redis: this sidecar's messages are counted in its \
                         memory, and written later"
                    );
                }
                wait(&shared, failures).await;
            }
        }
    }
}

/// Not for long once the process waits for its end.
async fn wait(shared: &RecorderInner, failures: u32) {
    let wait = RECONNECT.after(failures, fastrand::f64());
    let closing = async {
        while !shared.journal().is_closing() {
            shared.wake.notified().await;
        }
        sleep(LAST_RECONNECT.after(1, fastrand::f64())).await;
    };
    tokio::select! {
        () = sleep(wait) => {}
        () = closing => {}
    }
}

/// Writes what is due, or waits until something is.
async fn step(shared: &RecorderInner, line: &mut BillClient) -> Result<(), ClientError> {
    let due = shared.journal().due();
    if let Some(due) = due.filter(|due| *due > Instant::now()) {
        tokio::select! {
            () = sleep_until(due) => {}
            () = shared.wake.notified() => {}
        }
        return Ok(());
    }
    let (write, texts) = {
        let mut journal = shared.journal();
        let write = journal.next(Instant::now(), Timestamp::now().as_second());
        let (rows, seconds) = (write.changes.rows.keys(), write.changes.seconds.keys());
        let ids = rows.map(|(_, id)| *id).chain(seconds.map(|(_, id)| *id));
        let ids: BTreeSet<_> = ids.collect();
        let texts = ids.into_iter().map(|id| (id, Arc::clone(journal.text(id))));
        let texts: BTreeMap<_, _> = texts.collect();
        (write, texts)
    };
    let answer = line.write(&shared.id, &write, Instant::now(), &texts).await?;
    if !shared.journal().answered(&answer, Instant::now()) {
        tracing::debug!(
            "Redis does not have what this sidecar last wrote for the fleet's bill: it has lost data, and what it may \
             lack is written again"
        );
    }
    Ok(())
}
