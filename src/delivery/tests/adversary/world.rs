//! What is outside: the provider, what callers asked and were answered, and what must be true of it all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::super::super::{Outcome, PublishOptions};
use super::BOUND;
use crate::answer::{Answer, HttpAnswer, TransportError, Verdict};
use crate::ceiling::{Permit, Read};
use crate::message::{Message, MessageId};
use crate::meter::Meter;
use crate::spool::{Brief, State as Kept};
use crate::upstream::{SendGate, Upstream};

pub(super) use super::super::super::Disposition as End;

/// One request.
pub(super) struct Request {
    pub(super) id: MessageId,
    pub(super) parked: bool,
    pub(super) wanted: PublishOptions,
    pub(super) process: usize,
    pub(super) asked: Duration,
    pub(super) ttl: Option<Duration>,
    pub(super) answered: Option<(Duration, Outcome)>,
}

impl Request {
    /// From when on it is not sent.
    fn ends(&self) -> Duration {
        match self.ttl {
            None => FOREVER,
            Some(Duration::ZERO) => self.asked + self.wanted.patience,
            Some(ttl) => self.asked + ttl,
        }
    }
}

/// What became of a call that has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Delivered,
    Not,
    Unclear,
}

#[derive(Debug, Clone)]
struct Called {
    number: usize,
    at: Duration,
    process: usize,
    taken: bool,
    /// When its process knew, and what.
    ended: Option<(Duration, Known)>,
}

/// How the provider answers for a while.
#[derive(Debug, Clone, Copy)]
struct Mood {
    /// Of a hundred calls.
    fail: u8,
    /// All in one way; 0: in any.
    way: u8,
    slow: u64,
}

const GOOD: Mood = Mood { fail: 0, way: 0, slow: 50 };

#[derive(Default)]
struct State {
    requests: Vec<Request>,
    calls: Vec<Called>,
    ended: BTreeMap<usize, Duration>,
    stopped: BTreeMap<usize, Duration>,
    faults: Vec<(Duration, Duration)>,
    replayed: Vec<(Duration, Duration)>,
    dropped: BTreeSet<MessageId>,
    /// Dead letters that gave way to new messages, in all processes.
    given_way: u64,
}

pub(super) struct World {
    seed: u64,
    start: Instant,
    mood: Mutex<Mood>,
    state: Mutex<State>,
}

const FOREVER: Duration = Duration::MAX;

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let (start, mood) = (Instant::now(), Mutex::new(GOOD));
        Self { seed, start, mood, state: Mutex::default() }
    }

    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(super) fn asks(&self, request: Request) -> usize {
        let mut state = self.state.lock().unwrap();
        state.requests.push(request);
        state.requests.len() - 1
    }

    pub(super) fn answered(&self, number: usize, outcome: Outcome) {
        let now = self.now();
        let request = &mut self.state.lock().unwrap().requests[number];
        let took = now.checked_sub(request.asked).unwrap();
        assert!(took <= request.wanted.patience + BOUND, "{number} waited {took:?}: {outcome:?}");
        request.answered = Some((now, outcome));
    }

    /// All dead letters are, from now on.
    pub(super) fn replays(&self) -> usize {
        let mut state = self.state.lock().unwrap();
        state.replayed.push((self.now(), FOREVER));
        state.replayed.len() - 1
    }

    pub(super) fn replayed(&self, replay: usize) {
        self.state.lock().unwrap().replayed[replay].1 = self.now();
    }

    pub(super) fn dropped(&self, ids: Vec<MessageId>) {
        self.state.lock().unwrap().dropped.extend(ids);
    }

    pub(super) fn gave_way(&self, messages: u64) {
        self.state.lock().unwrap().given_way += messages;
    }

    pub(super) fn disk_fails(&self, fails: bool) {
        let now = self.now();
        let faults = &mut self.state.lock().unwrap().faults;
        let open = faults.last_mut().filter(|(_, to)| *to == FOREVER);
        match open {
            // What failed is written within a second.
            Some((_, to)) if !fails => *to = now + Duration::from_millis(1_500),
            None if fails => faults.push((now, FOREVER)),
            _ => {}
        }
    }

    pub(super) fn ends(&self, process: usize) {
        self.state.lock().unwrap().ended.insert(process, self.now());
    }

    pub(super) fn stops(&self, process: usize) {
        self.state.lock().unwrap().stopped.insert(process, self.now());
    }

    pub(super) fn good_mood(&self) {
        *self.mood.lock().unwrap() = GOOD;
    }

    pub(super) fn another_mood(&self, random: &mut fastrand::Rng) {
        let fail = [0, 30, 100][random.usize(..3)];
        let way = if random.bool() { 0 } else { random.u8(1..=WAYS) };
        let slow = [2, 50, 1_500, 4_000][random.usize(..4)];
        *self.mood.lock().unwrap() = Mood { fail, way, slow };
    }

    /// A caller that waits when its process stops is answered, unless its call is on its way or the disk does
    /// not work.
    pub(super) fn all_were_answered(&self, process: usize) {
        let state = self.state.lock().unwrap();
        if state.forgets(process, self.now().saturating_sub(Duration::from_secs(6)), self.now()) {
            return;
        }
        for (number, request) in state.requests.iter().enumerate() {
            let calls = || state.calls.iter().any(|c| c.number == number && c.ended.is_none());
            if request.process == process && request.answered.is_none() && !calls() {
                let calls: Vec<_> = state.calls.iter().filter(|c| c.number == number).collect();
                panic!(
                    "{number} was not answered: {:?} {:?} {calls:?} {:?} {:?}",
                    request.wanted,
                    request.asked,
                    state.stopped,
                    self.now()
                );
            }
        }
    }

    pub(super) fn worst_second(&self) -> usize {
        let state = self.state.lock().unwrap();
        let mut times: Vec<_> = state.calls.iter().map(|call| call.at).collect();
        times.sort();
        let end = |at: Duration| times.partition_point(|t| *t < at + Duration::from_secs(1));
        times.iter().enumerate().map(|(n, at)| end(*at) - n).max().unwrap_or(0)
    }

    pub(super) fn is_counted(&self, process: usize, meter: &Meter) {
        let state = self.state.lock().unwrap();
        let calls = state.calls.iter().filter(|call| call.process == process);
        let [mut billable, mut uncertain] = [0, 0];
        for call in calls {
            match call.ended.unwrap().1 {
                Known::Delivered => billable += 1,
                Known::Not => {}
                Known::Unclear => uncertain += 1,
            }
        }
        let counted = meter.snapshot().messages;
        let counted = counted.values().flat_map(BTreeMap::values);
        let counted = counted.fold((0, 0), |a, b| (a.0 + b.billable, a.1 + b.uncertain));
        assert_eq!(counted, (billable, uncertain), "billable, uncertain");
    }

    /// All promises. `find` knows what is kept.
    pub(super) fn holds(&self, find: impl Fn(MessageId) -> Option<Brief>) {
        let state = self.state.lock().unwrap();
        let mut missing = Vec::new();
        for (number, request) in state.requests.iter().enumerate() {
            let calls: Vec<_> = state.calls.iter().filter(|call| call.number == number).collect();
            let about = || {
                let Request { wanted, answered, parked, process, asked, .. } = request;
                format!("{number} {parked} {process} {asked:?} {wanted:?} {answered:?} {calls:?}")
            };
            for pair in calls.windows(2) {
                assert!(state.may_follow(request, pair[0], pair[1]), "called twice: {}", about());
            }
            // The count of a process that ended before the disk knew is not the next one's.
            for (n, call) in calls.iter().enumerate() {
                let unknown = |c: &&&Called| {
                    c.process == call.process && matches!(c.ended, Some((_, Known::Unclear)))
                };
                let same = calls[n..].iter().filter(unknown);
                let same = same.take_while(|c| !state.replays_between(call.at, c.at));
                assert!(same.count() <= 3, "too many unknown outcomes: {}", about());
            }
            for call in &calls {
                let late = |stopped: &Duration| call.at > *stopped;
                let stopped = state.stopped.get(&call.process);
                assert!(!stopped.is_some_and(late), "called after {stopped:?}: {}", about());
            }
            let late = calls.iter().any(|call| call.at >= request.ends());
            assert!(!late, "called after {:?}: {}", request.ends(), about());
            let taken = calls.iter().any(|call| call.taken);
            let kept = find(request.id);
            if let Some(Brief { state: Kept::Expired(_), doubt, .. }) = kept {
                assert!(request.ends() <= self.now(), "too soon: {}", about());
                assert!(doubt || !taken, "delivered after all: {}", about());
            }
            assert!(request.ttl != Some(Duration::ZERO) || kept.is_none(), "stored: {}", about());
            let Some((answered_at, answered)) = &request.answered else { continue };
            // The receipt of one that has expired gives way like any other.
            let is_over = request.ends() <= self.now();
            let is_there = kept.is_some() || is_over || state.dropped.contains(&request.id);
            // A dead letter's place may have been needed.
            let mut is_kept = |id: MessageId| {
                if !taken && !is_there {
                    missing.push(about());
                }
                assert!(id == request.id, "another one: {}", about());
            };
            let later = |c: &&Called| c.process == request.process && c.at > *answered_at;
            if answered.replayed {
                assert!(calls.is_empty(), "a second call for a key: {}", about());
            } else if let End::Kept(id) | End::Settled(id, _) = answered.ended {
                is_kept(id);
            } else if let End::Unresolved(id) = answered.ended {
                is_kept(id);
                let later = calls.iter().copied().filter(later);
                let unasked = later.filter(|c| !state.replays_between(*answered_at, c.at)).count();
                assert_eq!(unasked, 0, "a dead letter is sent: {}", about());
            } else if let End::Dropped { id, doubt } = answered.ended {
                assert!(id == request.id && state.dropped.contains(&id), "kept: {}", about());
                assert!(doubt || !taken, "delivered after all: {}", about());
                assert!(!calls.iter().any(later), "a dropped message is sent: {}", about());
            } else if let End::Expired { id, doubt } = answered.ended {
                assert!(id.is_none_or(|id| id == request.id), "another one: {}", about());
                // One that is to be delivered at once does not wait for a probe.
                let is_at_once = request.ttl == Some(Duration::ZERO);
                assert!(is_at_once || request.ends() <= *answered_at, "too soon: {}", about());
                assert!(doubt || !taken, "delivered after all: {}", about());
                assert!(!calls.iter().any(later), "an expired message is sent: {}", about());
            } else if answered.is_accepted() {
                assert!(taken, "not delivered: {}", about());
            } else if is_unknown(answered) {
                assert!(!calls.iter().any(later), "it is not ours: {}", about());
            } else {
                assert!(!taken, "delivered after all: {}", about());
            }
        }
        let (lost, given_way) = (missing.len() as u64, state.given_way);
        assert!(lost <= given_way, "lost, and {given_way} gave way: {missing:#?}");
        state.keys_hold();
    }
}

fn is_unknown(answered: &Outcome) -> bool {
    match &answered.ended {
        End::Unanswered => true,
        End::Answered(answer) => answer.verdict() == Verdict::Unknown,
        _ => false,
    }
}

impl State {
    /// Whether a process did not write what it knew: the disk failed between.
    fn forgets(&self, process: usize, from: Duration, to: Duration) -> bool {
        let end = self.ended.get(&process).copied().unwrap_or(FOREVER).min(to);
        self.faults.iter().any(|(begun, ended)| *begun <= end && *ended >= from)
    }

    /// Whether an operator has dead letters sent again then.
    fn replays_between(&self, from: Duration, to: Duration) -> bool {
        self.replayed.iter().any(|(begun, ended)| *begun <= to && *ended >= from)
    }

    fn may_follow(&self, request: &Request, first: &Called, second: &Called) -> bool {
        let replayed = self.replays_between(first.at, second.at);
        match first.ended {
            Some((_, Known::Not)) => true,
            Some((at, Known::Delivered)) => {
                // It ended before the disk knew.
                let end = self.ended.get(&first.process).copied().unwrap_or(FOREVER);
                let forgotten = end <= at || self.forgets(first.process, at, end);
                first.process != second.process && forgotten && (!request.parked || replayed)
            }
            Some((_, Known::Unclear)) | None => !request.parked || replayed,
        }
    }

    fn keys_hold(&self) {
        let mut keys = BTreeMap::<_, Vec<_>>::new();
        for (number, request) in self.requests.iter().enumerate() {
            let (Some(claim), Some((_, answered))) = (request.wanted.claim, &request.answered)
            else {
                continue;
            };
            if !answered.holds_key() {
                continue;
            }
            let meant = match &answered.ended {
                _ if answered.id().is_some() => answered.id().unwrap(),
                End::Answered(answer) => {
                    let name = answer.http().and_then(|http| http.msg_id.as_deref());
                    name.unwrap().parse().unwrap()
                }
                _ => unreachable!(),
            };
            keys.entry((claim.key, claim.print)).or_default().push((number, request, meant));
        }
        for requests in keys.into_values() {
            for pair in requests.windows(2) {
                let [(n, first, one), (m, second, other)] = [pair[0], pair[1]];
                let (from, to) = (first.asked, second.asked);
                let forgotten =
                    first.process != second.process && self.forgets(first.process, from, to);
                let about = || {
                    let their = self.requests.iter().enumerate();
                    let their = their.filter(|(_, r)| r.id == one || r.id == other);
                    let both: Vec<_> = their.chain([(n, first), (m, second)]).collect();
                    eprintln!("{:?} {:?} {:?}", self.faults, self.ended, self.dropped);
                    both.into_iter()
                        .map(|(n, request)| {
                            let Request { wanted, answered, process, asked, .. } = request;
                            let calls = self.calls.iter().filter(|c| c.number == n);
                            let calls: Vec<_> = calls.collect();
                            format!("{n} {process} {asked:?} {wanted:?} {answered:?} {calls:?}")
                        })
                        .collect::<Vec<_>>()
                };
                assert!(one == other || forgotten, "two messages of a key: {:#?}", about());
            }
        }
    }
}

/// What a failing provider answers, and whether it took the message.
const WAYS: u8 = 13;

#[derive(Clone)]
pub(super) struct Provider {
    pub(super) world: std::sync::Arc<World>,
    pub(super) process: usize,
    pub(super) dead: CancellationToken,
}

fn http(status: u16, code: &str) -> Answer {
    let code = Some(code.into());
    Answer::Http(HttpAnswer { status, code, ..HttpAnswer::default() })
}

fn fails(way: u8, random: &mut fastrand::Rng) -> (Answer, bool) {
    let taken = random.bool();
    let bare = |status| Answer::Http(HttpAnswer { status, ..HttpAnswer::default() });
    match way {
        1 => (Answer::TransportError(TransportError::Connect), false),
        2 => (Answer::TransportError(TransportError::Unwritten), false),
        3 => (http(500, "SendMessageFailed"), false),
        4 => (http(500, "SystemOverFlow"), false),
        5 => {
            let Answer::Http(answer) = http(400, "Throttling.User") else { unreachable!() };
            let retry_after = Some(Duration::from_millis(random.u64(1..3_000)));
            (Answer::Http(HttpAnswer { retry_after, ..answer }), false)
        }
        6 => (http(400, "ParameterCheckFailed"), false),
        7 => (http(403, "InvalidAccessKeyId.NotFound"), false),
        8 => (http(400, "IllegalTimestamp"), false),
        9 => (http(403, "PermissionCheckFailed"), false),
        10 => (Answer::TransportError(TransportError::Closed), taken),
        11 => (Answer::TransportError(TransportError::Timeout), taken),
        12 => (bare(200), taken),
        _ => (bare(502), taken),
    }
}

impl Upstream for Provider {
    async fn send(&self, message: &Message, permit: Permit, gate: &SendGate) -> Answer {
        let world = &*self.world;
        let body = std::str::from_utf8(message.payload.as_bytes()).unwrap();
        let number: usize = body.split(' ').next().unwrap().parse().unwrap();
        let nth = world.state.lock().unwrap().calls.len() as u64;
        let mut random = fastrand::Rng::with_seed(world.seed ^ (number as u64) << 20 ^ nth << 40);
        let mood = *world.mood.lock().unwrap();
        let (answer, taken) = if random.u8(..100) < mood.fail {
            let way = if mood.way == 0 { random.u8(1..=WAYS) } else { mood.way };
            fails(way, &mut random)
        } else {
            let msg_id = Some(message.id.to_string().into());
            let request_id = Some("R".into());
            let http = HttpAnswer { status: 200, msg_id, request_id, ..HttpAnswer::default() };
            (Answer::Http(http), true)
        };
        if random.u8(..8) == 0 {
            // A connection is opened first.
            let opened = Instant::now() + Duration::from_millis(random.u64(..1_200));
            tokio::select! {
                () = sleep_until(opened.min(gate.closes())) => {}
                () = gate.stopped() => {}
            }
        }
        if self.dead.is_cancelled()
            || matches!(&answer, Answer::TransportError(lost) if lost.nothing_sent())
        {
            permit.lost(Read::Never);
            return Answer::TransportError(TransportError::Connect);
        }
        if !gate.leave() {
            permit.unsent();
            return Answer::TransportError(TransportError::TooLate);
        }
        let (at, process) = (world.now(), self.process);
        let place = {
            let mut state = world.state.lock().unwrap();
            state.calls.push(Called { number, at, process, taken, ended: None });
            state.calls.len() - 1
        };
        let latency = match &answer {
            Answer::TransportError(TransportError::Timeout) => Duration::from_secs(3),
            _ => Duration::from_millis(random.u64(..mood.slow)),
        };
        if self.dead.run_until_cancelled(sleep(latency)).await.is_none() {
            return Answer::TransportError(TransportError::Closed);
        }
        let verdict = answer.verdict();
        let known = match verdict {
            Verdict::Delivered => Known::Delivered,
            Verdict::Unknown => Known::Unclear,
            _ => Known::Not,
        };
        world.state.lock().unwrap().calls[place].ended = Some((world.now(), known));
        match (&answer, verdict) {
            (_, Verdict::Throttled { .. }) => permit.throttled(),
            (Answer::TransportError(TransportError::Closed), _) => permit.lost(Read::Over),
            (Answer::TransportError(_), _) => drop(permit.unanswered()),
            _ => permit.answered(),
        }
        answer
    }

    async fn renew_key(&self) -> bool {
        sleep(Duration::from_secs(1)).await;
        self.world.now().as_millis().is_multiple_of(2)
    }
}
