//! Any sequence of what sidecars of an account do, live through and die of, beside a model of what
//! each message must be: kept by one, and as whoever kept it said last.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::super::{Change, KeepError, ReadError, Record, Spool, State};
use super::shared::{QUICK, share};
use super::{BOUND, claim, death, message, receipt};
use crate::message::{Message, MessageId};
use crate::redis_client::server::Redis;

const SIDECARS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    /// A sidecar keeps so many at once.
    Keep(usize, usize),
    /// One of the messages there are, and what becomes of it.
    Note(usize, u8),
    Read(usize),
    /// A sidecar dies, and another one begins.
    Crash(usize),
    /// A sidecar ends in order, and another one begins.
    Leave(usize),
    /// All connections break.
    Cut,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..SIDECARS, 1..8_usize).prop_map(|(who, n)| Step::Keep(who, n)),
        12 => (any::<usize>(), 0..6_u8).prop_map(|(which, what)| Step::Note(which, what)),
        3 => any::<usize>().prop_map(Step::Read),
        1 => (0..SIDECARS).prop_map(Step::Crash),
        1 => (0..SIDECARS).prop_map(Step::Leave),
        1 => Just(Step::Cut),
    ]
}

struct Sidecar {
    spool: Spool,
    adopting: JoinHandle<()>,
}

impl Sidecar {
    async fn start(redis: &Redis, account: &str) -> Self {
        let spool = share(redis, account, QUICK).await;
        let mut adoptions = spool.adoptions().unwrap();
        let adopting = tokio::spawn(async move { while adoptions.next().await.is_some() {} });
        Self { spool, adopting }
    }
}

struct Run<'a> {
    redis: &'a Redis,
    account: String,
    sidecars: Vec<Sidecar>,
    messages: BTreeMap<MessageId, Message>,
    /// What each may be: more than one state where a sidecar was cut off before it was told.
    known: BTreeMap<MessageId, Vec<Option<State>>>,
}

impl Run<'_> {
    /// Who has it now. Between two owners nobody knows it for a while.
    async fn owner(&self, id: MessageId) -> &Spool {
        let found = async {
            loop {
                let owners: Vec<_> =
                    self.sidecars.iter().filter(|s| s.spool.find(id).is_some()).collect();
                // Two know it as long as a slow one has not learnt that it was taken for dead.
                if let [one] = owners[..]
                    && one.spool.is_ours().is_ok()
                {
                    return &one.spool;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let found = timeout(BOUND, found).await;
        found.unwrap_or_else(|_| panic!("{id} is nobody's, or of two: {:?}", self.known[&id]))
    }

    /// What whoever has it keeps.
    async fn read(&self, id: MessageId) -> Record {
        let read = async {
            loop {
                match self.owner(id).await.read(id).await {
                    Ok(record) => return record,
                    // Somebody else has taken it over since we asked who has it.
                    Err(ReadError::Absent) => {}
                    Err(error) => panic!("{id}: {error}"),
                }
            }
        };
        timeout(BOUND, read).await.unwrap_or_else(|_| panic!("nobody can read {id}"))
    }

    fn pick(&self, which: usize) -> Option<MessageId> {
        let there: Vec<_> = self.known.iter().filter(|(_, s)| !s.contains(&None)).collect();
        (!there.is_empty()).then(|| *there[which % there.len()].0)
    }

    async fn keep(&mut self, who: usize, n: usize) {
        for _ in 0..n {
            let message = message("abc/d", vec![7; 100]);
            match self.sidecars[who].spool.keep(&message, Some(claim())).await {
                Ok(()) => {
                    let state = Some(State::Queued { calling: false });
                    self.known.insert(message.id, vec![state]);
                    self.messages.insert(message.id, message);
                }
                // Cut off: it is taken back, unless its sidecar dies before.
                Err(KeepError::Unsure(_)) => {
                    let state = Some(State::Queued { calling: false });
                    self.known.insert(message.id, vec![None, state]);
                }
                // Taken for dead in this moment.
                Err(KeepError::Redis(_)) => drop(self.known.insert(message.id, vec![None])),
                Err(error) => panic!("{error}"),
            }
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
        let owner = self.owner(id).await.clone();
        let noted = owner.note(id, change);
        let now = owner.find(id).map(|brief| brief.state);
        timeout(BOUND, noted).await.expect("it is noted");
        // Taken for dead meanwhile, on a machine that stood still: then it did not count. Of what is
        // forgotten only Redis knows that.
        let counts = if now.is_some() {
            owner.find(id).map(|brief| brief.state) == now
        } else {
            let words = format!("HEXISTS tollgate:{{{}}}:spool:words {id}", self.account);
            !self.redis.tell::<bool>(&words)
        };
        let states = self.known.get_mut(&id).unwrap();
        if counts {
            *states = vec![now];
        } else {
            states.push(now);
        }
    }

    /// Every message is with one sidecar that lives, as it was last said to be.
    async fn check(&mut self) {
        for (id, states) in &self.known {
            if states.contains(&None) {
                continue;
            }
            let record = self.read(*id).await;
            let state = record.brief.state;
            assert!(states.contains(&Some(state.clone())), "{id}: {state:?} is none of {states:?}");
            if !matches!(state, State::Delivered(_)) {
                assert_eq!(record.message.payload, self.messages[id].payload);
            }
        }
        for sidecar in &self.sidecars {
            for brief in sidecar.spool.list(None, usize::MAX, &mut |_| true) {
                let states = self.known.get(&brief.id);
                assert!(states.is_some_and(|s| s != &[None]), "{brief:?} is there");
            }
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Keep(who, n) => self.keep(who, n).await,
            Step::Note(which, what) => {
                if let Some(id) = self.pick(which) {
                    self.note(id, what).await;
                }
            }
            Step::Read(which) => {
                if let Some(id) = self.pick(which) {
                    self.read(id).await;
                }
            }
            Step::Crash(who) => {
                let new = Sidecar::start(self.redis, &self.account).await;
                let old = std::mem::replace(&mut self.sidecars[who], new);
                old.adopting.abort();
                drop(old);
                self.check().await;
            }
            Step::Leave(who) => {
                let new = Sidecar::start(self.redis, &self.account).await;
                let old = std::mem::replace(&mut self.sidecars[who], new);
                old.spool.close().await;
                self.check().await;
            }
            Step::Cut => {
                let mut command = redis::cmd("CLIENT");
                command.arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes");
                command.exec(&mut self.redis.connection()).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn sidecars_do_as_the_model(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let redis = Redis::start();
            let account = "a".to_owned();
            let mut sidecars = Vec::new();
            for _ in 0..SIDECARS {
                sidecars.push(Sidecar::start(&redis, &account).await);
            }
            let (messages, known) = (BTreeMap::new(), BTreeMap::new());
            let mut run = Run { redis: &redis, account, sidecars, messages, known };
            for step in steps {
                run.step(step).await;
            }
            run.check().await;
        });
    }
}
