//! Which records of others this sidecar takes over, and the MACs of those that it writes.

use std::borrow::Cow;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Instant;

use crate::config::{MacFile, Unsigned};
use crate::log_limiter::LogLimiter;
use crate::message::MessageId;
use crate::spool::adoption::{AdoptionRules, HeldCounts};
use crate::spool::facts::StoredMessage;
use crate::spool::frame::PendingRecord;
use crate::spool::mac::{MacCheck, MacFileError, MacKeys};
use crate::spool::{OpenError, meta};

/// What is done with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TakeOver {
    Yes,
    /// It is for a sidecar that may send it.
    NotAllowed,
    Unverified,
}

/// The keys, and how records are judged.
#[derive(Debug)]
pub(super) struct RecordTrust {
    account: String,
    mac: Option<(MacFile, MacKeys)>,
    /// The one read of the file that is under way, and when the last one began: a volume that hangs
    /// keeps one thread, and delays nothing.
    reading: Option<JoinHandle<Result<MacKeys, MacFileError>>>,
    began: Option<Instant>,
    log: LogLimiter,
    /// The file could not be read again.
    failed: bool,
}

impl RecordTrust {
    /// Reads the keys. Blocks.
    pub(super) fn open(account: &str, file: Option<&MacFile>) -> Result<Self, OpenError> {
        let read = |file: &MacFile| match MacKeys::read(&file.path) {
            Ok(keys) => Ok((file.clone(), keys)),
            Err(error) => Err(OpenError::MacFile { path: file.path.clone(), error }),
        };
        let mac = file.map(read).transpose()?;
        Ok(Self {
            account: account.to_owned(),
            mac,
            reading: None,
            began: None,
            log: LogLimiter::each_minute(1),
            failed: false,
        })
    }

    /// Has the file read again so often, and takes up what a read that has ended has found: it waits for
    /// none. Returns whether the keys have changed. Those that hold stay where the file cannot be used.
    pub(super) async fn read_again(&mut self, every: Duration) -> bool {
        let Some((MacFile { path, .. }, keys)) = &mut self.mac else { return false };
        let Some(ended) = self.reading.take_if(|reading| reading.is_finished()) else {
            if self.reading.is_none() && self.began.is_none_or(|began| began.elapsed() >= every) {
                self.began = Some(Instant::now());
                let file = path.clone();
                self.reading = Some(spawn_blocking(move || MacKeys::read(&file)));
            }
            return false;
        };
        let read = ended.await;
        match read.map_err(std::io::Error::from).map_err(MacFileError::from).flatten() {
            Ok(newer) => {
                self.failed = false;
                let changed = newer.differs(keys);
                if changed {
                    *keys = newer;
                    tracing::info!("the keys in spool.mac_file have changed");
                }
                changed
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    let path = path.display();
                    tracing::warn!(%path, %error, "spool.mac_file cannot be used: the keys that were read before stay in use");
                }
                false
            }
        }
    }

    /// The words of a record as they are written.
    pub(super) fn signed<'a>(&self, record: &'a PendingRecord) -> Cow<'a, [u8]> {
        match &self.mac {
            Some((_, keys)) if !record.meta.is_empty() => {
                keys.sign(&self.account, record.id, &record.meta).into()
            }
            _ => Cow::Borrowed(&record.meta),
        }
    }

    /// Whether a record is as a sidecar with a key has written it, or may be without a MAC.
    pub(super) fn verifies(&self, message: &StoredMessage) -> bool {
        let Some((file, keys)) = &self.mac else { return true };
        match keys.verify(&self.account, message.id, &message.meta) {
            MacCheck::Wrong => false,
            MacCheck::Absent => file.unsigned == Unsigned::Sent,
            // A sidecar signs the words of what it took over unsigned, and knows nothing of its body.
            MacCheck::Valid => {
                let summary = meta::summary(&message.meta);
                file.unsigned == Unsigned::Sent
                    || summary.is_some_and(|words| words.is_receipt || words.has_digest)
            }
        }
    }

    /// Whether a record that this sidecar does not have yet is taken over. What is left counts if there
    /// is something of it to be sent: no receipt, and no dead letter that verifies.
    pub(super) fn judges(
        &self,
        message: &StoredMessage,
        rules: &AdoptionRules,
        left: &mut HeldCounts,
    ) -> TakeOver {
        let words = meta::summary(&message.meta);
        if !self.verifies(message) {
            let is_receipt = words.is_some_and(|words| words.is_receipt);
            left.unverified += u64::from(!is_receipt);
            self.log_unverified(message.id);
            return TakeOver::Unverified;
        }
        // What cannot be read is taken over, and reported as lost.
        let Some(words) = words else { return TakeOver::Yes };
        if rules.allow(&words.instance, &words.topic) {
            return TakeOver::Yes;
        }
        left.not_allowed += u64::from(words.is_queued);
        TakeOver::NotAllowed
    }

    /// Records of a page whose id or size no sidecar has written.
    pub(super) fn leaves_unreadable(&self, records: u64, left: &mut HeldCounts) {
        left.unverified += records;
        if records > 0
            && let Some(suppressed) = self.log.next()
        {
            tracing::error!(
                records,
                suppressed,
                "records in Redis have an id or a size that no sidecar writes: they are neither sent nor deleted; find out who can write to Redis (docs/shared-spool.md)"
            );
        }
    }

    /// At most once a minute.
    fn log_unverified(&self, id: MessageId) {
        if let Some(suppressed) = self.log.next() {
            tracing::error!(message = %id, suppressed, "a record in Redis has no valid MAC: it is neither sent nor deleted; find out who can write to Redis (docs/shared-spool.md)");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use tokio::time::{advance, timeout};

    use super::*;

    const EVERY: Duration = Duration::from_secs(30);

    /// A read of a volume that hangs ends never: one is under way, and no look at it waits.
    #[tokio::test(start_paused = true)]
    async fn a_volume_that_hangs_delays_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n").unwrap();
        let file = MacFile { path, unsigned: Unsigned::SetAside };
        let mut trust = RecordTrust::open("a", Some(&file)).unwrap();
        let hangs = tokio::spawn(pending());
        let id = hangs.id();
        trust.reading = Some(hangs);
        for _ in 0..3 {
            advance(EVERY).await;
            let looked = timeout(Duration::from_secs(1), trust.read_again(EVERY)).await;
            assert_eq!(looked, Ok(false));
            assert_eq!(trust.reading.as_ref().map(JoinHandle::id), Some(id));
        }
    }
}
