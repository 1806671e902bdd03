//! Who writes to Redis: one thing after the other, each under a turn of its own.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, FromRedisValue};
use tokio::time::Instant;

use super::line::Line;
use super::peers::Seen;
use super::{Durability, Fate, Place, Reader, Streams, Times, Trouble, folder};
use crate::config::Fleet;
use crate::message::MessageId;
use crate::spool::commit::Op;
use crate::spool::frame::{Draft, Kind};
use crate::spool::index::Spot;
use crate::spool::log::Failed;
use crate::spool::meta;
use crate::spool::shared::Shared;

/// After a failure nobody tries again for so long: whoever comes is told the same.
const PAUSE: Duration = Duration::from_millis(250);
/// Messages that are asked for at once.
pub(super) const PAGE: usize = 200;

/// What Redis knows of what we asked last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// It was done.
    Done,
    /// It was not, and never will be.
    Undone,
    /// We are not who we were.
    Nothing,
}

/// Whether what is ours in Redis is what we have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ours {
    /// It is.
    Known,
    /// We may have taken over more, without an answer.
    More,
    /// Redis did not know us as we were: until it was asked what is ours, what we have may be others',
    /// and what it knows of it may be older. No calls begin.
    Strange,
}

/// An owner of messages in Redis.
#[derive(Debug)]
pub(in crate::spool) struct Owner {
    pub(super) place: Arc<Place>,
    pub(super) streams: Arc<Streams>,
    pub(super) name: String,
    /// Who had our folder before, and is certainly dead.
    pub(super) predecessor: Option<String>,
    line: Option<Line>,
    failed: Option<(Instant, String)>,
    /// The number of what was asked last and is known to be done.
    turn: u64,
    pub(super) ours: Ours,
    /// What Redis knew when this connection began.
    known: Known,
    /// When it was last asked how it is configured.
    configured: Option<Instant>,
    warned: bool,
    left: bool,
    /// Locked as long as we live: whoever has our folder next knows that we are dead.
    _folder: Option<File>,
    pub(super) others: HashMap<String, Seen>,
    pub(super) looked: Option<Instant>,
}

impl Owner {
    /// `folder`: where this machine remembers us.
    pub(in crate::spool) fn new(
        fleet: &Fleet,
        folder: Option<&Path>,
        times: Times,
    ) -> io::Result<Self> {
        let name = folder::name();
        let (lock, predecessor) = folder.and_then(|path| folder::claim(path, &name)).unzip();
        let place = Arc::new(Place::new(fleet)?);
        let streams = Arc::new(Streams::new(Reader::new(Arc::clone(&place)), times));
        Ok(Self {
            place,
            streams,
            name,
            predecessor: predecessor.flatten(),
            line: None,
            failed: None,
            turn: 0,
            ours: Ours::Known,
            known: Known::Nothing,
            configured: None,
            warned: false,
            left: false,
            _folder: lock,
            others: HashMap::new(),
            looked: None,
        })
    }

    pub(in crate::spool) fn streams(&self) -> Arc<Streams> {
        Arc::clone(&self.streams)
    }

    /// Connects, and takes up what our predecessor in the folder has left.
    pub(in crate::spool) fn begin(&mut self, shared: &Shared) -> Result<(), Trouble> {
        self.ready(shared, &[], &[])?;
        while self.predecessor.is_some() {
            self.take_some(shared)?;
        }
        // Whoever delivers finds them in the index.
        drop(self.streams.take_adopted());
        Ok(())
    }

    // === asking ===

    pub(super) fn ask<T: FromRedisValue>(
        &mut self,
        verb: &str,
        grows: bool,
        with: impl FnOnce(&mut Cmd),
    ) -> Result<T, Trouble> {
        let sent = Instant::now();
        let Some(line) = &mut self.line else { return Err(Trouble::Garbled) };
        let answer = line.ask(&self.place, grows, |command| {
            command.arg(verb).arg(&self.name).arg(self.turn);
            with(command);
        });
        match answer {
            Ok(answer) => {
                self.turn += 1;
                if self.ours != Ours::Strange {
                    self.streams.renewed(sent);
                }
                Ok(answer)
            }
            Err(error) => {
                if error.code() != Some("OOM") {
                    self.line = None;
                }
                Err(error)
            }
        }
    }

    /// What changes nothing needs no turn.
    pub(super) fn look<T: FromRedisValue>(
        &mut self,
        verb: &str,
        with: impl FnOnce(&mut Cmd),
    ) -> Result<T, Trouble> {
        let Some(line) = &mut self.line else { return Err(Trouble::Garbled) };
        let answer = line.ask(&self.place, false, |command| {
            command.arg(verb).arg("").arg(0);
            with(command);
        });
        if answer.is_err() {
            self.line = None;
        }
        answer
    }

    /// Sees to a connection, and that we know what is ours. Messages whose beginning or end is among
    /// these, or whose end waits to be written, are not taken up.
    pub(super) fn ready(
        &mut self,
        shared: &Shared,
        regrets: &[MessageId],
        drafts: &[&Draft],
    ) -> Result<(), Trouble> {
        if self.line.is_some() {
            return Ok(());
        }
        if let Some((at, error)) = &self.failed
            && at.elapsed() < PAUSE
        {
            return Err(Trouble::Again(error.clone()));
        }
        let mut but: HashSet<MessageId> = regrets.iter().copied().collect();
        // Whoever keeps these hears of a failure.
        let ends = |draft: &&&Draft| matches!(draft.kind, Kind::Forgotten | Kind::Kept);
        but.extend(drafts.iter().filter(ends).map(|draft| draft.id));
        but.extend(shared.queue().forgotten());
        let connected = self.connect(shared, &but);
        self.failed = match &connected {
            Ok(()) => None,
            Err(error) => Some((Instant::now(), error.to_string())),
        };
        connected
    }

    fn connect(&mut self, shared: &Shared, but: &HashSet<MessageId>) -> Result<(), Trouble> {
        let mut line = Line::open(&self.place)?;
        let durability = line.durability(&self.place)?;
        self.configured(durability);
        if !self.warned && line.evicts() {
            self.warned = true;
            tracing::warn!(
                "Redis throws keys away when its memory is full: what is kept may be lost; set maxmemory-policy noeviction"
            );
        }
        let sent = Instant::now();
        let known: String = line.ask(&self.place, false, |command| {
            command.arg("hello").arg(&self.name).arg(self.turn);
        })?;
        self.turn += 2;
        self.line = Some(line);
        let is_new = self.turn == 2;
        self.known = match &*known {
            "undone" => Known::Undone,
            "done" => Known::Done,
            _ => Known::Nothing,
        };
        if self.known == Known::Nothing && !is_new {
            self.ours = Ours::Strange;
            self.streams.lapsed();
        }
        if self.ours != Ours::Known {
            // After a failure the next connection begins with the same.
            self.sort_out(shared, but).inspect_err(|_| self.line = None)?;
            self.ours = Ours::Known;
        }
        self.streams.renewed(sent);
        Ok(())
    }

    /// Asks anew how durable Redis is, if it was long ago.
    pub(super) fn look_at_configuration(&mut self) -> Result<(), Trouble> {
        let Some(line) = &mut self.line else { return Ok(()) };
        if self.configured.is_some_and(|at| at.elapsed() < self.streams.times.config) {
            return Ok(());
        }
        let durability = line.durability(&self.place).inspect_err(|_| self.line = None)?;
        self.configured(durability);
        Ok(())
    }

    fn configured(&mut self, durability: Durability) {
        let before = std::mem::replace(&mut self.streams.state().durability, durability);
        if self.configured.replace(Instant::now()).is_some() && before != durability {
            tracing::warn!(
                before = before.as_str(),
                now = durability.as_str(),
                "Redis keeps messages in another way"
            );
        }
    }

    /// Redis does not know us as we were, or has done what we do not know of: asks what is ours.
    fn sort_out(&mut self, shared: &Shared, but: &HashSet<MessageId>) -> Result<(), Trouble> {
        let mut mine = HashSet::new();
        let mut from = "0-0".to_owned();
        loop {
            let page: Vec<redis::Value> = self.ask("mine", false, |command| {
                command.arg(&from).arg(PAGE);
            })?;
            let (next, claimed) = super::told::page(page)?;
            let fresh = claimed.into_iter().filter(|one| {
                mine.insert(one.id)
                    && !but.contains(&one.id)
                    && shared.index().get(one.id).is_none()
            });
            let fresh: Vec<_> = fresh.collect();
            self.adopt(shared, fresh);
            if next.is_empty() {
                break;
            }
            from = next;
        }
        // Those that we have and that are not ours: somebody took them, or they are nowhere.
        let (held, gone): (Vec<_>, Vec<_>) = {
            let index = shared.index();
            let all = index.after(None).map(|(id, entry)| (*id, entry.is_receipt()));
            all.partition(|(id, _)| mine.contains(id))
        };
        let (mut taken, mut lost) = (0_usize, 0_usize);
        for few in gone.chunks(PAGE) {
            let exist: Vec<bool> = self.look("look", |command| {
                for (id, _) in few {
                    command.arg(id.to_string());
                }
            })?;
            let mut index = shared.index();
            for ((id, delivered), exists) in few.iter().zip(exist) {
                index.remove(*id);
                taken += usize::from(exists && !delivered);
                if !exists && !delivered {
                    lost += 1;
                    index.damaged += 1;
                }
            }
        }
        if taken > 0 {
            tracing::warn!(messages = taken, "other sidecars have taken over what was kept here");
        }
        if lost > 0 {
            tracing::error!(
                messages = lost,
                "accepted messages are gone from Redis: they are lost"
            );
        }
        if self.ours == Ours::Strange {
            // What Redis knows of them may be older.
            let index = shared.index();
            let mut queue = shared.queue();
            for (id, _) in held {
                if let Some(entry) = index.get(id) {
                    let draft = meta::now(id, entry);
                    queue.ops.push_back(Op::Note { draft, done: None });
                }
            }
        }
        Ok(())
    }

    // === writing ===

    /// Writes what belongs together, all or none. Each may be refused for itself.
    pub(in crate::spool) fn commit(
        &mut self,
        shared: &Shared,
        regrets: &[MessageId],
        drafts: &[&Draft],
    ) -> Result<Vec<Fate>, Failed> {
        let failed = |error: Trouble, sent: bool| Failed {
            traces: sent && !error.is_refused(),
            error: io::Error::other(error.to_string()),
        };
        if self.left {
            return Err(failed(Trouble::Again("it has been left to others".to_owned()), false));
        }
        let mut dropped = None;
        for last in [false, true] {
            if let Err(error) = self.ready(shared, regrets, drafts) {
                return Err(failed(dropped.take().unwrap_or(error), last));
            }
            if let Some(error) = dropped.take_if(|_| self.known != Known::Undone) {
                return Err(failed(error, true));
            }
            let written: Result<Vec<String>, _> = self.ask("commit", grows(drafts), |command| {
                let options = &shared.options;
                command.arg(options.keep_receipts.as_millis().to_string());
                command.arg(options.max_messages).arg(options.max_bytes);
                command.arg(options.keep_claims.as_millis().to_string());
                for draft in drafts {
                    let op = match draft.kind {
                        Kind::Kept => "keep",
                        Kind::Forgotten => "forget",
                        Kind::Delivered => "receipt",
                        Kind::Calling | Kind::Tried | Kind::Dead | Kind::Replayed => "note",
                    };
                    command.arg(op).arg(draft.id.to_string()).arg(draft.len());
                    command.arg(&draft.meta).arg(&draft.body[..]);
                }
            });
            match written {
                Ok(fates) if fates.len() == drafts.len() => {
                    let fates = fates.iter().zip(drafts);
                    return Ok(fates.map(|(fate, draft)| self::fate(fate, draft.len())).collect());
                }
                Ok(_) => return Err(failed(Trouble::Garbled, true)),
                // Somebody thought that we were dead: once more, under a name that counts.
                Err(error) if error.code() == Some("STALE") && !last => {}
                // A connection that has ended while nobody looked says nothing of Redis.
                Err(error) if error.is_dropped() && !last => dropped = Some(error),
                Err(error) => return Err(failed(error, true)),
            }
        }
        Err(failed(Trouble::Garbled, true))
    }

    /// Gives everything up, for whoever comes. Nothing more is written.
    pub(in crate::spool) fn leave(&mut self, shared: &Shared) -> Result<(), Trouble> {
        self.streams.lapsed();
        if std::mem::replace(&mut self.left, true) {
            return Ok(());
        }
        self.ready(shared, &[], &[])?;
        self.ask::<i64>("leave", false, |_| ()).map(drop)?;
        self.streams.lapsed();
        Ok(())
    }

    pub(super) fn has_left(&self) -> bool {
        self.left
    }
}

/// Whether it takes memory, or asks whether there is some: then a full Redis is to refuse it.
pub(in crate::spool) fn grows(drafts: &[&Draft]) -> bool {
    let grows = |draft: &&Draft| draft.kind == Kind::Kept || draft.id.as_u128() == 0;
    drafts.iter().any(grows)
}

fn fate(word: &str, len: u32) -> Fate {
    match word {
        "done" => Fate::At(Spot { segment: 0, offset: 0, len }),
        "full" => Fate::Full,
        _ => Fate::TransportError,
    }
}
