//! Hands messages over to another spool.

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::entry::{Entry, Stage};
use super::record::{Brief, Change, Record, State};
use super::room::Bound;
use super::{KeepError, ReadError, Spool};

/// Messages that are handed over at once.
const SLICE: usize = 100;

impl Spool {
    /// Hands what is to be delivered, and dead letters, to another spool: each is durable there
    /// before it is forgotten here. Returns how many were handed over, and stops at the first that is
    /// not taken. Begins no slice after `until`; one that has begun is not to be given up.
    pub async fn hand_over(&self, to: &Self, until: Instant) -> Result<usize, KeepError> {
        let mut handed = 0;
        let mut after = None;
        while Instant::now() < until {
            let open = |brief: &Brief| !brief.state.is_final();
            let slice = self.list(after, SLICE, &mut |brief| open(brief));
            let Some(last) = slice.last() else { return Ok(handed) };
            after = Some(last.id);
            let mut keeps = Vec::with_capacity(slice.len());
            let mut failed = None;
            for brief in &slice {
                let submitted = match self.read(brief.id).await {
                    Ok(record) => to.submit_as(&record),
                    Err(ReadError::Absent | ReadError::Damaged | ReadError::Unverified) => continue,
                    Err(ReadError::Disk(error)) => Err(KeepError::Disk(error)),
                    Err(ReadError::Redis(error)) => Err(KeepError::Redis(error)),
                };
                match submitted {
                    Ok(kept) => keeps.push((brief.id, kept)),
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            }
            to.engine.wake();
            let mut forgotten = Vec::with_capacity(keeps.len());
            for (id, kept) in keeps {
                let stopped = || Err(KeepError::Redis("it was stopped".into()));
                match kept.await.unwrap_or_else(|_| stopped()) {
                    // Already: as an earlier hand-over was killed.
                    Ok(()) | Err(KeepError::Already) => {
                        forgotten.push(self.note(id, Change::Forgotten));
                    }
                    Err(error) => failed = Some(error),
                }
            }
            handed += forgotten.len();
            for durable in forgotten {
                durable.await;
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(handed)
    }

    /// Keeps a message as it was kept elsewhere.
    fn submit_as(
        &self,
        record: &Record,
    ) -> Result<oneshot::Receiver<Result<(), KeepError>>, KeepError> {
        let Record { message, brief } = record;
        let stage = match &brief.state {
            State::Queued { calling } => Stage::Queued { calling: *calling },
            State::Dead(death) => Stage::Dead(Box::new(death.clone())),
            State::Delivered(receipt) => Stage::Delivered(Box::new(receipt.clone())),
            State::Dropped(at) => Stage::Dropped(Box::new(*at)),
            State::Expired(expired) => Stage::Expired(Box::new(*expired)),
        };
        let destination = self.destination(message);
        let entry = Entry {
            attempts: brief.attempts,
            unknown: brief.unknown,
            doubt: brief.doubt,
            claim: brief.claim.map(Box::new),
            trace: brief.trace.map(Box::new),
            form: message.payload.form(),
            expiry: brief.expiry.map(Box::new),
            urgency: brief.urgency,
            stage,
            ..Entry::new(destination, brief.kept_at)
        };
        // It was accepted already: its topic may have had the other spool to itself.
        self.enqueue(message, entry, Bound::Spool)
    }
}
