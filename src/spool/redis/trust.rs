//! Which records of others this sidecar takes over, and the MACs of those that it writes.

use std::borrow::Cow;

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
pub(super) enum Takes {
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
            log: LogLimiter::each_minute(1),
            failed: false,
        })
    }

    /// Reads the keys again. Returns whether they have changed. Those that hold stay where the file cannot
    /// be used.
    pub(super) async fn read_again(&mut self) -> bool {
        let Some((MacFile { path, .. }, keys)) = &mut self.mac else { return false };
        let file = path.clone();
        let read = tokio::task::spawn_blocking(move || MacKeys::read(&file)).await;
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

    /// Whether a record of a dead owner is taken over. Receipts are not counted as left: nothing of
    /// them is to be sent.
    pub(super) fn judges(
        &self,
        message: &StoredMessage,
        rules: &AdoptionRules,
        left: &mut HeldCounts,
    ) -> Takes {
        if !self.verifies(message) {
            left.unverified += 1;
            self.log_unverified(message.id);
            return Takes::Unverified;
        }
        // What cannot be read is taken over, and reported as lost.
        let Some(words) = meta::summary(&message.meta) else { return Takes::Yes };
        if rules.allow(&words.instance, &words.topic) {
            return Takes::Yes;
        }
        left.not_allowed += u64::from(!words.is_receipt);
        Takes::NotAllowed
    }

    /// At most once a minute.
    pub(super) fn log_unverified(&self, id: MessageId) {
        if let Some(suppressed) = self.log.next() {
            tracing::error!(message = %id, suppressed, "a record in Redis has no valid MAC: it is neither sent nor deleted; find out who can write to Redis (docs/shared-spool.md)");
        }
    }
}
