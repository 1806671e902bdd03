//! The owner that this process is in Redis: one call after the other, each in an epoch of its own.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, FromRedisValue};
use tokio::time::Instant;

use super::connection::{Memory, SpoolConnection, SpoolEndpoint, SpoolRedisError};
use super::peer_state::{PeerState, Scan};
use super::trust::RecordTrust;
use super::{Times, identity};
use crate::log_limiter::LogLimiter;
use crate::message::MessageId;
use crate::spool::Options;
use crate::spool::adoption::HeldCounts;
use crate::spool::entry::Location;
use crate::spool::facts::{Fact, Progress, Reported, Residue, WriteError, WriteResult};
use crate::spool::frame::{PendingRecord, RecordKind};
use crate::spool::ownership::{Durability, Ownership};
use crate::spool::view::IndexView;

/// After a failed connection no new one is tried for so long: the same error answers all.
const PAUSE: Duration = Duration::from_millis(250);
/// Messages of one page.
pub(super) const PAGE: usize = 200;

/// What Redis knows of the owner's last call before this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LastCall {
    /// It was done.
    Done,
    /// It was not, and never will be.
    Undone,
    /// Redis has another epoch, or none.
    Unknown,
}

/// Whether the index has what the owner has in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owned {
    /// It has.
    Known,
    /// The owner may have more: a take-over had no answer.
    More,
    /// Redis lost or rolled back our epoch. No calls start until our pending entries have been
    /// re-read: peers may own them, and their words may be older.
    Fenced,
}

/// An owner of messages: a consumer in the group of the stream.
#[derive(Debug)]
pub(super) struct Owner {
    endpoint: Arc<SpoolEndpoint>,
    options: Options,
    pub(super) times: Times,
    pub(super) ownership: Arc<Ownership>,
    name: String,
    /// The owner that had the folder before, and is certainly dead.
    pub(super) predecessor: Option<(String, Scan)>,
    connection: Option<SpoolConnection>,
    failed: Option<(Instant, String)>,
    /// The number of the last call that is known to be done.
    epoch: u64,
    pub(super) owned: Owned,
    last_call: LastCall,
    /// When Redis's configuration was read last.
    configured: Option<Instant>,
    warned: bool,
    left: bool,
    /// Locked as long as this process lives, so that the next in the folder knows that it is dead.
    _lock: Option<File>,
    pub(super) peers: HashMap<String, PeerState>,
    pub(super) looked: Option<Instant>,
    pub(super) trust: RecordTrust,
    /// What Redis says is ours, and is not taken up: it is not as this sidecar takes it over.
    pub(super) set_aside: HeldCounts,
    /// The rules by which others' messages were looked at.
    pub(super) rules_version: u64,
    /// Lines about messages that are left with dead peers.
    pub(super) left_log: LogLimiter,
    /// Found out, and not reported yet.
    pub(super) facts: Vec<Fact>,
    /// When the call was sent that renews the lease once the reported facts are applied.
    unconfirmed: Option<Instant>,
}

impl Owner {
    /// `folder`: where this machine remembers its owner. Blocks.
    pub(super) fn new(
        endpoint: Arc<SpoolEndpoint>,
        folder: Option<&Path>,
        options: Options,
        times: Times,
        ownership: Arc<Ownership>,
        trust: RecordTrust,
    ) -> Self {
        let name = identity::name();
        let (lock, predecessor) = folder.and_then(|path| identity::register(path, &name)).unzip();
        Self {
            endpoint,
            options,
            times,
            ownership,
            name,
            predecessor: predecessor.flatten().map(|name| (name, Scan::default())),
            connection: None,
            failed: None,
            epoch: 0,
            owned: Owned::Known,
            last_call: LastCall::Unknown,
            configured: None,
            warned: false,
            left: false,
            _lock: lock,
            peers: HashMap::new(),
            looked: None,
            trust,
            set_aside: HeldCounts::default(),
            rules_version: 0,
            left_log: LogLimiter::each_minute(1),
            facts: Vec::new(),
            unconfirmed: None,
        }
    }

    /// Connects, and takes over a page of what the predecessor in the folder has left.
    pub(super) async fn begin(&mut self, view: &IndexView) -> Result<Progress, SpoolRedisError> {
        self.ready(&[], view).await?;
        if self.predecessor.is_some() {
            self.take_over().await?;
        }
        Ok(if self.predecessor.is_some() { Progress::More } else { Progress::Done })
    }

    // === facts, and the lease ===

    pub(super) fn report(&mut self, fact: Fact) {
        self.facts.push(fact);
    }

    /// The end of a call of the writing half, with what it has found out.
    pub(super) fn reported<T>(&mut self, result: Result<T, WriteError>) -> Reported<T> {
        Reported { facts: std::mem::take(&mut self.facts), result }
    }

    /// All facts that were reported are applied: the index has what is ours.
    pub(super) fn confirm(&mut self) {
        if let Some(sent) = self.unconfirmed.take() {
            self.renew(sent);
        }
    }

    /// What was sent at this moment has raised our epoch.
    fn renew(&mut self, sent: Instant) {
        if self.facts.is_empty() {
            let lease = self.times.lease_timeout.saturating_sub(self.times.longest_call);
            self.ownership.set_owned_until(Some(sent + lease));
        } else {
            self.unconfirmed = Some(sent);
        }
    }

    fn lapse(&mut self) {
        self.unconfirmed = None;
        self.ownership.set_owned_until(None);
    }

    // === calls ===

    /// Runs a verb of the script that raises our epoch.
    pub(super) async fn call<T: FromRedisValue>(
        &mut self,
        verb: &str,
        memory: Memory,
        arguments: impl FnOnce(&mut Cmd),
    ) -> Result<T, SpoolRedisError> {
        let sent = Instant::now();
        let Some(connection) = &mut self.connection else { return Err(SpoolRedisError::Malformed) };
        let answer = connection.call(&self.endpoint, memory, |command| {
            command.arg(verb).arg(&self.name).arg(self.epoch);
            arguments(command);
        });
        match answer.await {
            Ok(answer) => {
                self.epoch += 1;
                if self.owned != Owned::Fenced {
                    self.renew(sent);
                }
                Ok(answer)
            }
            Err(error) => {
                if error.code() != Some("OOM") {
                    self.connection = None;
                }
                Err(error)
            }
        }
    }

    /// Runs a verb that changes nothing, and needs no epoch.
    pub(super) async fn query<T: FromRedisValue>(
        &mut self,
        verb: &str,
        arguments: impl FnOnce(&mut Cmd),
    ) -> Result<T, SpoolRedisError> {
        let Some(connection) = &mut self.connection else { return Err(SpoolRedisError::Malformed) };
        let answer = connection.call(&self.endpoint, Memory::Shrinks, |command| {
            command.arg(verb).arg("").arg(0);
            arguments(command);
        });
        answer.await.inspect_err(|_| self.connection = None)
    }

    /// Connects if needed and reconciles ownership, skipping messages that `batch` or the queue is
    /// about to create or delete.
    pub(super) async fn ready(
        &mut self,
        batch: &[PendingRecord],
        view: &IndexView,
    ) -> Result<(), SpoolRedisError> {
        if self.connection.is_some() {
            return Ok(());
        }
        if let Some((at, error)) = &self.failed
            && at.elapsed() < PAUSE
        {
            return Err(SpoolRedisError::NotSent(error.clone()));
        }
        let mut skipped = view.pending_deletions();
        let skips = |record: &&PendingRecord| {
            matches!(record.kind, RecordKind::Forgotten | RecordKind::Kept)
        };
        skipped.extend(batch.iter().filter(skips).map(|record| record.id));
        let connected = self.connect(&skipped, view).await;
        self.failed = match &connected {
            Ok(()) => None,
            Err(error) => Some((Instant::now(), error.to_string())),
        };
        connected
    }

    async fn connect(
        &mut self,
        skipped: &HashSet<MessageId>,
        view: &IndexView,
    ) -> Result<(), SpoolRedisError> {
        let mut connection = SpoolConnection::open(&self.endpoint).await?;
        let durability = connection.durability().await?;
        self.configured(durability);
        if !self.warned && connection.evicts {
            self.warned = true;
            tracing::warn!(
                "Redis deletes keys when its memory is full, so kept messages may be lost; set maxmemory-policy noeviction"
            );
        }
        let sent = Instant::now();
        let hello = connection.call::<String>(&self.endpoint, Memory::Shrinks, |command| {
            command.arg("hello").arg(&self.name).arg(self.epoch);
        });
        let known = hello.await?;
        self.epoch += 2;
        self.connection = Some(connection);
        let is_new = self.epoch == 2;
        self.last_call = match &*known {
            "undone" => LastCall::Undone,
            "done" => LastCall::Done,
            _ => LastCall::Unknown,
        };
        if self.last_call == LastCall::Unknown && !is_new {
            self.owned = Owned::Fenced;
            self.lapse();
        }
        if self.owned != Owned::Known {
            // After a failure the next connection begins with the same.
            self.reconcile(skipped, view).await.inspect_err(|_| self.connection = None)?;
            self.owned = Owned::Known;
        }
        self.renew(sent);
        Ok(())
    }

    /// Re-reads how durable Redis is, if that was long ago.
    pub(super) async fn check_configuration(&mut self) -> Result<(), SpoolRedisError> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        if self.configured.is_some_and(|at| at.elapsed() < self.times.config) {
            return Ok(());
        }
        let durability = connection.durability().await.inspect_err(|_| self.connection = None)?;
        self.configured(durability);
        Ok(())
    }

    /// Where the rules or the keys have changed, what was left or set aside is looked at again.
    pub(super) async fn check_trust(&mut self) {
        let rules = self.ownership.rules_version();
        let have_rules_changed = std::mem::replace(&mut self.rules_version, rules) != rules;
        if !self.trust.read_again(self.times.config).await && !have_rules_changed {
            return;
        }
        self.peers.values_mut().for_each(|peer| peer.scan.begin_anew());
        // The next connection begins with reading what is ours.
        if self.set_aside != HeldCounts::default() && self.owned == Owned::Known {
            (self.owned, self.connection) = (Owned::More, None);
        }
    }

    fn configured(&mut self, durability: Durability) {
        let before = self.ownership.set_durability(durability);
        if self.configured.replace(Instant::now()).is_some() && before != durability {
            tracing::warn!(
                before = before.as_str(),
                now = durability.as_str(),
                "the persistence settings of Redis have changed: 202 answers state the new durability"
            );
        }
    }

    // === writing ===

    /// Writes what belongs together, all or none. Redis may refuse a record for itself.
    pub(super) async fn commit(
        &mut self,
        batch: &[PendingRecord],
        view: &IndexView,
    ) -> Result<Vec<WriteResult>, WriteError> {
        if self.left {
            return Err(failed(
                &SpoolRedisError::NotSent("its messages were left to peers".into()),
                BatchSent::No,
            ));
        }
        let begun = Instant::now();
        let mut dropped = None;
        for before in [BatchSent::No, BatchSent::Yes] {
            if let Err(error) = self.ready(batch, view).await {
                return Err(failed(&dropped.take().unwrap_or(error), before));
            }
            if let Some(error) = dropped.take_if(|_| self.last_call != LastCall::Undone) {
                return Err(failed(&error, BatchSent::Yes));
            }
            match self.send(batch).await {
                Ok(results) if results.len() == batch.len() => {
                    // A full Redis that takes what makes it emptier need not take the rest.
                    if memory(batch) == Memory::Grows {
                        self.report(Fact::Wrote(begun.elapsed()));
                    }
                    let results = results.iter().zip(batch);
                    return Ok(results.map(|(word, record)| result(word, record.len())).collect());
                }
                Ok(_) => return Err(failed(&SpoolRedisError::Malformed, BatchSent::Yes)),
                // A peer took us for dead: once more, in an epoch that counts.
                Err(error) if error.code() == Some("STALE") && before == BatchSent::No => {}
                // A connection that ended while it was idle says nothing about Redis.
                Err(error) if error.is_dropped() && before == BatchSent::No => {
                    dropped = Some(error);
                }
                Err(error) => return Err(failed(&error, BatchSent::Yes)),
            }
        }
        Err(failed(&SpoolRedisError::Malformed, BatchSent::Yes))
    }

    async fn send(&mut self, batch: &[PendingRecord]) -> Result<Vec<String>, SpoolRedisError> {
        let options = &self.options;
        let keep_receipts = options.keep_receipts.as_millis().to_string();
        let keep_claims = options.keep_claims.as_millis().to_string();
        let (messages, bytes) = (options.max_messages, options.max_bytes);
        let signed: Vec<_> = batch.iter().map(|record| self.trust.signed(record)).collect();
        let sent = self.call("commit", memory(batch), |command| {
            command.arg(keep_receipts).arg(messages).arg(bytes).arg(keep_claims);
            for (record, words) in batch.iter().zip(&signed) {
                let op = match record.kind {
                    RecordKind::Kept => "keep",
                    RecordKind::Forgotten => "forget",
                    RecordKind::Delivered => "receipt",
                    RecordKind::Calling
                    | RecordKind::Tried
                    | RecordKind::Dead
                    | RecordKind::Replayed => "note",
                };
                command.arg(op).arg(record.id.to_string()).arg(record.len());
                command.arg(&**words).arg(&record.body[..]);
            }
        });
        sent.await
    }

    /// Leaves all messages to the peers. Nothing more is written.
    pub(super) async fn leave(&mut self, view: &IndexView) -> Result<(), SpoolRedisError> {
        self.lapse();
        if std::mem::replace(&mut self.left, true) {
            return Ok(());
        }
        self.ready(&[], view).await?;
        let left = self.call::<i64>("leave", Memory::Shrinks, |_| ()).await;
        self.lapse();
        left.map(drop)
    }

    pub(super) fn has_left(&self) -> bool {
        self.left
    }
}

/// Whether the batch was sent before the failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BatchSent {
    No,
    Yes,
}

fn failed(error: &SpoolRedisError, sent: BatchSent) -> WriteError {
    let possible = sent == BatchSent::Yes && !error.is_refused();
    WriteError::new(error, if possible { Residue::Possible } else { Residue::None })
}

/// A batch takes memory if it has a new message, or finds out whether there is some.
fn memory(batch: &[PendingRecord]) -> Memory {
    let grows =
        |record: &PendingRecord| record.kind == RecordKind::Kept || record.id.as_u128() == 0;
    if batch.iter().any(grows) { Memory::Grows } else { Memory::Shrinks }
}

fn result(word: &str, len: u32) -> WriteResult {
    match word {
        "done" => WriteResult::Stored(Location { segment: 0, offset: 0, len }),
        "full" => WriteResult::Full,
        _ => WriteResult::NotOwned,
    }
}
