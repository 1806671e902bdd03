//! Any sequence of calls, failures and crashes, beside a model that says what must be true then.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use tokio::time::timeout;

use super::super::{Change, KeepError, Options, Spool, State, Usage};
use super::double::Double;
use super::faults::open;
use super::{claim, death, message, options, receipt};
use crate::message::{Message, MessageId};

#[derive(Debug, Clone)]
enum Step {
    /// So many messages at once, of this length.
    Keep(usize, usize),
    /// One of the messages there are, and what becomes of it.
    Note(usize, u8),
    /// Messages as with `Keep`, which then become dead letters.
    Refuse(usize, usize),
    /// Dead letters of this age, in hours, are old.
    DropDead(u64),
    Read(usize),
    /// The n-th operation from now fails.
    FailIn(u64),
    Break,
    Fill(usize),
    /// The disk works again.
    Mend,
    Crash(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..5_usize, 0..20_000_usize).prop_map(|(n, len)| Step::Keep(n, len)),
        8 => (any::<usize>(), 0..6_u8).prop_map(|(which, what)| Step::Note(which, what)),
        3 => (1..5_usize, 0..20_000_usize).prop_map(|(n, len)| Step::Refuse(n, len)),
        1 => (0..2_u64).prop_map(Step::DropDead),
        2 => any::<usize>().prop_map(Step::Read),
        1 => (0..8_u64).prop_map(Step::FailIn),
        1 => Just(Step::Break),
        1 => (0..40_000_usize).prop_map(Step::Fill),
        2 => Just(Step::Mend),
        1 => any::<u64>().prop_map(Step::Crash),
        1 => Just(Step::Reopen),
    ]
}

/// What may be found of a message after a crash: the last entry is what is known without one.
type Histories = BTreeMap<MessageId, Vec<Option<State>>>;

struct Run {
    disk: Double,
    options: Options,
    spool: Option<Spool>,
    messages: BTreeMap<MessageId, Message>,
    known: Histories,
    /// Keeps that failed while the disk could not even take that back, and has not worked since.
    unsure: Vec<MessageId>,
    ill: bool,
}

impl Run {
    fn spool(&self) -> &Spool {
        self.spool.as_ref().unwrap()
    }

    fn pick(&self, which: usize) -> Option<MessageId> {
        let there: Vec<_> =
            self.known.iter().filter(|(_, states)| states.last() != Some(&None)).collect();
        (!there.is_empty()).then(|| *there[which % there.len()].0)
    }

    /// Returns those that are kept.
    async fn keep(&mut self, n: usize, len: usize) -> Vec<MessageId> {
        let new: Vec<_> = (0..n).map(|_| message("abc/d", vec![7; len])).collect();
        let spool = self.spool().clone();
        let claims = [None, Some(claim())].into_iter().cycle();
        let keeps = new.iter().zip(claims).map(|(message, claim)| {
            let (spool, message) = (spool.clone(), message.clone());
            tokio::spawn(async move { (message.id, spool.keep(&message, claim).await) })
        });
        let mut done = Vec::new();
        for keep in keeps.collect::<Vec<_>>() {
            let (id, kept) = keep.await.unwrap();
            match kept {
                Ok(()) => {
                    self.known.insert(id, vec![Some(State::Queued { calling: false })]);
                    done.push(id);
                }
                Err(KeepError::Full) => {
                    let usage = self.spool().usage();
                    let bytes = usage.queued.bytes + usage.dead.bytes + usage.receipts.bytes;
                    assert!(bytes + (n * (len + 1_000)) as u64 > self.options.max_bytes);
                }
                Err(error @ (KeepError::Redis(_) | KeepError::Already)) => {
                    panic!("no disk: {error}")
                }
                Err(KeepError::TopicShare | KeepError::CallerShare) => {
                    panic!("no other topic, and no callers")
                }
                Err(KeepError::Disk(_)) => assert!(self.ill),
                Err(KeepError::Unsure(_)) => {
                    assert!(self.ill);
                    self.unsure.push(id);
                }
            }
        }
        self.messages.extend(new.into_iter().map(|message| (message.id, message)));
        self.dead_letters_end().await;
        done
    }

    /// Dead letters may have been dropped, and nothing else.
    async fn dead_letters_end(&mut self) {
        let spool = self.spool().clone();
        for (id, states) in &mut self.known {
            let now = spool.find(*id).map(|brief| brief.state);
            if matches!(states.last(), Some(Some(State::Dead(_)))) && states.last() != Some(&now) {
                assert!(matches!(now, None | Some(State::Dropped(_))), "{id}: {now:?}");
                states.push(now);
            }
        }
        if !self.ill {
            spool.flush().await;
            self.known.values_mut().for_each(collapse);
        }
    }

    async fn note(&mut self, id: MessageId, what: u8) {
        let change = match what {
            0 => Change::Calling,
            1 => Change::Tried(3.into()),
            2 => Change::Delivered(4, receipt()),
            3 => Change::Dead(5, death()),
            4 => Change::Replayed(death().at),
            _ => Change::Forgotten,
        };
        let noted = self.spool().note(id, change);
        let now = self.spool().find(id).map(|brief| brief.state);
        let states = self.known.get_mut(&id).unwrap();
        states.push(now);
        if self.ill {
            drop(timeout(Duration::from_millis(300), noted).await);
        } else {
            noted.await;
            collapse(states);
        }
    }

    fn mend(&mut self) {
        let mut state = self.disk.state();
        (state.broken, state.fail_in, state.room) = (false, None, None);
        self.ill = false;
    }

    /// Everything noted is durable.
    async fn settle(&mut self) {
        self.mend();
        self.spool().flush().await;
        // A write that succeeds, if there was nothing to flush.
        self.keep(1, 0).await;
        assert_eq!(self.spool().usage().failure, None);
        self.unsure.clear();
        self.known.values_mut().for_each(collapse);
    }

    async fn check(&mut self) {
        let found: BTreeMap<_, _> = self
            .spool()
            .list(None, usize::MAX, &mut |_| true)
            .into_iter()
            .map(|brief| (brief.id, brief))
            .collect();
        for (id, states) in &mut self.known {
            let state = found.get(id).map(|brief| brief.state.clone());
            let torn = states.len() > 1 && torn(states, state.as_ref());
            assert!(torn || states.contains(&state), "{id}: {state:?} is none of {states:?}");
            *states = vec![state];
        }
        for (id, brief) in &found {
            if !self.known.contains_key(id) {
                // A keep that a crash cut off, or that failed on a disk that takes nothing back.
                assert!(self.unsure.contains(id), "{id} is there: {brief:?}");
                self.known.insert(*id, vec![Some(brief.state.clone())]);
            }
            let record = self.spool().read(*id).await.unwrap();
            if !record.brief.state.is_final() {
                assert_eq!(record.message.payload, self.messages[id].payload);
            }
        }
    }

    async fn reopen(&mut self) {
        self.spool = None;
        self.spool = Some(open(&self.disk, &self.options).await);
        self.check().await;
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Keep(n, len) => drop(self.keep(n, len).await),
            Step::Refuse(n, len) => {
                for id in self.keep(n, len).await {
                    self.note(id, 3).await;
                }
            }
            Step::DropDead(hours) => {
                let keep = Duration::from_hours(hours);
                let spool = self.spool().clone();
                let dropped = spool.drop_dead_since(keep, Timestamp::now());
                if self.ill {
                    drop(timeout(Duration::from_millis(300), dropped).await);
                } else {
                    let dead = spool.usage().dead.messages;
                    let due = if hours == 0 { dead } else { 0 };
                    assert_eq!(dropped.await.messages as u64, due);
                }
                self.dead_letters_end().await;
            }
            Step::Note(which, what) => {
                if let Some(id) = self.pick(which) {
                    self.note(id, what).await;
                }
            }
            Step::Read(which) => {
                if let Some(id) = self.pick(which) {
                    self.spool().read(id).await.unwrap();
                }
            }
            Step::FailIn(n) => {
                self.ill = true;
                self.disk.state().fail_in = Some(n);
            }
            Step::Break => {
                self.ill = true;
                self.disk.state().broken = true;
            }
            Step::Fill(more) => {
                self.ill = true;
                self.disk.fill(more);
            }
            Step::Mend => self.settle().await,
            Step::Crash(seed) => {
                self.disk.crash(&mut fastrand::Rng::with_seed(seed));
                self.spool = None;
                self.mend();
                self.reopen().await;
                self.unsure.clear();
            }
            Step::Reopen => {
                self.settle().await;
                let usage = self.spool().usage();
                self.reopen().await;
                assert_eq!(counted(&self.spool().usage()), counted(&usage));
            }
        }
    }
}

/// Only what is known last is left.
fn collapse(states: &mut Vec<Option<State>>) {
    let last = states.pop();
    *states = last.into_iter().collect();
}

/// Of a note that nobody was told of only the head was written: what it was about still counts.
fn torn(states: &[Option<State>], found: Option<&State>) -> bool {
    let said = |state: &Option<State>| match (state, found) {
        (Some(State::Delivered(_) | State::Dropped(_)), Some(State::Delivered(found))) => {
            &*found.msg_id == "damaged"
        }
        (Some(State::Dead(_)), Some(State::Dead(found))) => {
            found.code.as_deref() == Some("damaged")
        }
        _ => false,
    };
    states.iter().any(said)
}

fn counted(usage: &Usage) -> String {
    let Usage { queued, dead, receipts, oldest, .. } = usage;
    format!("{queued:?} {dead:?} {receipts:?} {oldest:?}")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_spool_does_as_the_model(steps in proptest::collection::vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut options = options("/nowhere".as_ref());
            options.max_bytes = 1 << 20;
            let disk = Double::default();
            let spool = Some(open(&disk, &options).await);
            let mut run = Run {
                disk,
                options,
                spool,
                messages: BTreeMap::new(),
                known: BTreeMap::new(),
                unsure: Vec::new(),
                ill: false,
            };
            for step in steps {
                run.step(step).await;
            }
            run.settle().await;
            run.reopen().await;
        });
    }
}

/// Nothing else is in these files, so their sum is what is counted.
#[tokio::test]
async fn bytes_are_what_lies_on_the_disk() {
    let disk = Double::default();
    let spool = open(&disk, &options("/nowhere".as_ref())).await;
    for _ in 0..10 {
        spool.keep(&message("abc", "x"), None).await.unwrap();
    }
    let used: usize = disk.state().files.values().map(|file| file.bytes.len()).sum();
    assert_eq!(spool.usage().queued.bytes, used as u64);
}
