//! With a disk that does not answer. Time is real: as long as a thread waits for a disk, it does not
//! pause.

mod adversary;
mod fair;
mod held;
pub(super) mod panics;
mod retention;
#[cfg(feature = "redis-tests")]
mod taken_up;
mod terms;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::kept::MAX_WRITE;
use super::{CallOrder, Delivery, Disposition, Keeping, Outcome, PublishOptions, Settled};
use crate::answer::{Answer, HttpAnswer, NextSignature, TransportError};
use crate::ceiling::{Ceiling, Permit, Start};
use crate::config::{self, Config};
use crate::message::{Message, MessageId, Payload, PayloadForm, Terms, Topic};
use crate::meter::Meter;
use crate::spool::tests::{Double, open, options};
use crate::spool::{Brief, Claim, Selection, Spool, State, Which};
use crate::traces::Traces;
use crate::upstream::{SendGate, Upstream};

/// The provider. It takes no connection until [`Self::answers`].
#[derive(Clone, Default)]
struct Provider {
    answers: Arc<Mutex<Option<HttpAnswer>>>,
    /// How long a connection takes, or another key.
    takes: Duration,
    /// Until this is cancelled, a call that has left has no answer.
    thinks: Option<CancellationToken>,
    called: Arc<Mutex<Vec<MessageId>>>,
}

/// Its answer makes us panic.
const BUG: u16 = 0;

impl Provider {
    fn answers(&self, status: u16) {
        let (msg_id, request_id) = (Some("M".into()), Some("R".into()));
        let code = match status {
            400 => Some("ParameterCheckFailed".into()),
            500 => Some("SendMessageFailed".into()),
            403 => Some("InvalidAccessKeyId.NotFound".into()),
            _ => None,
        };
        let answer = HttpAnswer { status, msg_id, request_id, code, ..HttpAnswer::default() };
        *self.answers.lock().unwrap() = Some(answer);
    }

    fn called(&self) -> Vec<MessageId> {
        self.called.lock().unwrap().clone()
    }
}

impl Upstream for Provider {
    async fn send(&self, message: &Message, permit: Permit, gate: &SendGate) -> Answer {
        let Some(answer) = self.answers.lock().unwrap().clone() else {
            permit.unsent();
            return Answer::TransportError(TransportError::Connect);
        };
        if !self.takes.is_zero() {
            sleep(self.takes).await;
        }
        if !gate.leave() {
            permit.unsent();
            return Answer::TransportError(TransportError::TooLate);
        }
        if let Some(thinks) = &self.thinks {
            thinks.cancelled().await;
        }
        assert_ne!(answer.status, BUG);
        permit.answered();
        self.called.lock().unwrap().push(message.id);
        Answer::Http(answer)
    }

    async fn renew_key(&self) -> bool {
        sleep(self.takes).await;
        false
    }
}

impl Provider {
    /// It refuses the key of each call, and the next call has another one.
    fn refuses_new_key(&self) {
        self.answers(403);
        let mut answers = self.answers.lock().unwrap();
        answers.as_mut().unwrap().next = NextSignature::OtherKey;
    }
}

fn config(more: &[(&str, &str)]) -> Config {
    let flags = [
        ("upstream.endpoint", "http://127.0.0.1:1"),
        ("upstream.instance_id", "x"),
        ("ceilings.account", "10"),
        ("retry.base", "10ms"),
        ("retry.cap", "50ms"),
        ("retry.unknown", "park"),
    ];
    let flags = flags.iter().filter(|(key, _)| more.iter().all(|(other, _)| key != other));
    let flags = flags.chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    config::load(None, [], &flags.collect::<Vec<_>>()).unwrap().config
}

async fn start(disk: &Double, provider: &Provider) -> (Delivery<Provider>, Spool) {
    start_with(disk, provider, &[]).await
}

async fn start_with(
    disk: &Double,
    provider: &Provider,
    flags: &[(&str, &str)],
) -> (Delivery<Provider>, Spool) {
    let spool = open(disk, &options(Path::new("/nowhere"))).await;
    let config = config(flags);
    let ceiling = Ceiling::start(&config.ceilings, 1, 1_000, Start::Alone);
    let meter = Meter::new(5, &config.billing, []);
    let kept = Some(spool.clone());
    (Delivery::new(&config, provider.clone(), kept, ceiling, meter, Traces::off(), 7), spool)
}

fn message(topic: &str) -> Message {
    Message {
        id: MessageId::new(),
        instance: "x".into(),
        topic: Topic::parse(topic).unwrap(),
        payload: Payload::kept("marked".into(), PayloadForm::Body),
        caller: None,
        trace: None,
        terms: Terms::default(),
    }
}

/// Until this is dropped, the disk does not answer.
struct Held(Double);

fn hold(disk: &Double) -> Held {
    disk.state().held = true;
    Held(disk.clone())
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.release();
    }
}

const ASYNC: PublishOptions =
    PublishOptions { patience: Duration::ZERO, keep: Keeping::Preferred, claim: None };

async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !so() {
        assert!(Instant::now() < end, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// No caller is kept waiting; a message that may or may not be durable is not ours, and its key is free
/// once that is certain.
#[tokio::test]
async fn a_disk_that_hangs_delays_no_caller() {
    let (disk, provider) = (Double::default(), Provider::default());
    let (delivery, spool) = start(&disk, &provider).await;
    let claimed = PublishOptions { claim: Some(Claim { key: 1, print: 2 }), ..ASYNC };
    let held = hold(&disk);
    let begun = Instant::now();
    let outcome = delivery.publish(message("TopicA"), claimed).await;
    assert_eq!(outcome, Outcome::new(0, Disposition::Unanswered));
    assert!(begun.elapsed() >= MAX_WRITE);
    assert!(spool.usage().failure.is_some(), "the usage shows the failure");
    assert_eq!(delivery.publish(message("TopicA"), claimed).await.ended, Disposition::SameUnderWay);
    drop(held);
    let mut outcome = Outcome::new(0, Disposition::SameUnderWay);
    while outcome.ended == Disposition::SameUnderWay {
        sleep(Duration::from_millis(5)).await;
        outcome = delivery.publish(message("TopicA"), claimed).await;
    }
    let Disposition::Kept(id) = outcome.ended else { panic!("{outcome:?}") };
    assert_eq!(spool.usage().queued.messages, 1);
    provider.answers(200);
    until("it is delivered", || spool.usage().queued.messages == 0).await;
    assert_eq!(provider.called(), [id]);
    assert!(spool.usage().failure.is_none());
}

/// Calls that have to be noted first do not keep others from being made.
#[tokio::test]
async fn a_disk_that_hangs_holds_no_permits() {
    let (disk, provider) = (Double::default(), Provider::default());
    let (delivery, spool) = start(&disk, &provider).await;
    let mut kept = Vec::new();
    for lane in 0..30 {
        let message = message(&format!("Topic{lane}"));
        kept.push(message.id);
        assert!(delivery.publish(message, ASYNC).await.is_accepted());
    }
    let held = hold(&disk);
    provider.answers(200);
    until("it hangs", || spool.usage().failure.is_some()).await;
    let patient = PublishOptions { patience: Duration::from_secs(20), ..ASYNC };
    let direct = PublishOptions { keep: Keeping::IfNotDelivered, ..patient };
    for _ in 0..5 {
        let outcome = delivery.publish(message("Other"), direct).await;
        assert!(matches!(outcome.ended, Disposition::Answered(_)), "{outcome:?}");
    }
    drop(held);
    until("all are delivered", || spool.usage().queued.messages == 0).await;
    let mut taken = provider.called();
    taken.retain(|id| kept.contains(id));
    taken.sort_unstable();
    kept.sort_unstable();
    assert_eq!(taken, kept);
}

const PATIENT: PublishOptions = PublishOptions {
    patience: Duration::from_secs(20),
    keep: Keeping::IfNotDelivered,
    claim: Some(Claim { key: 1, print: 2 }),
};

/// What still waits for its connection when the grace ends is not called any more.
#[tokio::test(start_paused = true)]
async fn a_stop_while_a_connection_opens() {
    let takes = Duration::from_millis(500);
    let (disk, provider) = (Double::default(), Provider { takes, ..Provider::default() });
    let (delivery, spool) = start(&disk, &provider).await;
    provider.answers(200);
    let wanted = [ASYNC, PATIENT, PublishOptions { claim: None, ..PATIENT }];
    let asked = wanted.map(|wanted| {
        let delivery = delivery.clone();
        tokio::spawn(async move { delivery.publish(message("TopicA"), wanted).await })
    });
    sleep(Duration::from_millis(100)).await;
    delivery.drain(Duration::ZERO).await;
    for outcome in asked {
        let outcome = outcome.await.unwrap();
        assert!(matches!(outcome.ended, Disposition::Kept(_)), "{outcome:?}");
    }
    assert_eq!(delivery.close(Duration::from_secs(1)).await, 0);
    assert_eq!((provider.called(), spool.usage().queued.messages), (vec![], 3));
}

/// A caller whose message a hung disk may have is answered when we stop, long before its own wait ends.
#[tokio::test]
async fn a_stop_while_a_disk_hangs() {
    let (disk, provider) = (Double::default(), Provider::default());
    let (delivery, spool) = start(&disk, &provider).await;
    let _held = hold(&disk);
    let asked = tokio::spawn({
        let delivery = delivery.clone();
        let wanted = PublishOptions { patience: Duration::from_mins(5), ..PATIENT };
        async move { delivery.publish(message("TopicA"), wanted).await }
    });
    until("it hangs", || spool.usage().failure.is_some()).await;
    let stopped = Instant::now();
    delivery.drain(Duration::ZERO).await;
    assert_eq!(asked.await.unwrap().ended, Disposition::Unanswered);
    assert!(stopped.elapsed() < Duration::from_mins(1), "{:?}", stopped.elapsed());
}

/// A key that is long in coming delays no waiting caller when the grace ends.
#[tokio::test(start_paused = true)]
async fn a_stop_while_a_key_is_looked_for() {
    let takes = Duration::from_millis(500);
    let (disk, provider) = (Double::default(), Provider { takes, ..Provider::default() });
    let (delivery, _spool) = start(&disk, &provider).await;
    provider.answers(403);
    let asked = tokio::spawn({
        let delivery = delivery.clone();
        let wanted = PublishOptions { claim: None, ..PATIENT };
        async move { delivery.publish(message("TopicA"), wanted).await }
    });
    until("it is refused", || !provider.called().is_empty()).await;
    sleep(takes / 4).await;
    let stopped = Instant::now();
    delivery.drain(Duration::ZERO).await;
    let outcome = asked.await.unwrap();
    assert!(
        matches!(outcome.ended, Disposition::Answered(_)) && !outcome.is_accepted(),
        "{outcome:?}"
    );
    assert!(stopped.elapsed() < takes / 2, "{:?} {outcome:?}", stopped.elapsed());
}

/// What became of eight messages whose callers wait 200 ms.
async fn eight_at_once(delivery: &Delivery<Provider>) -> Vec<Outcome> {
    let wanted = PublishOptions { patience: Duration::from_millis(200), claim: None, ..PATIENT };
    let mut asked = JoinSet::new();
    for _ in 0..8 {
        let delivery = delivery.clone();
        asked.spawn(async move { delivery.publish(message("TopicA"), wanted).await });
    }
    asked.join_all().await
}

/// A call that was refused for a new key on trial is made again with the old one. If the ceiling has no room for
/// it while its caller waits, that is no refusal: the message is kept, and delivered.
#[tokio::test(start_paused = true)]
async fn no_room_for_the_call_after_a_refused_key() {
    // All are called before the first is answered.
    let takes = Duration::from_millis(50);
    let (disk, provider) = (Double::default(), Provider { takes, ..Provider::default() });
    let (delivery, spool) = start(&disk, &provider).await;
    provider.refuses_new_key();
    let mut called = 0;
    for outcome in eight_at_once(&delivery).await {
        // Some have no room for their first call.
        let is_uncalled = outcome.calls == 0 && matches!(outcome.ended, Disposition::NoPermit(_));
        assert!(is_uncalled || matches!(outcome.ended, Disposition::Kept(_)), "{outcome:?}");
        called += u32::from(!is_uncalled);
    }
    assert!(called > 0);
    assert!(delivery.paused().is_empty());
    provider.answers(200);
    until("all are delivered", || spool.usage().queued.messages == 0).await;
}

/// Without a spool its caller is answered that there was no room, and when there is some: not that its key is
/// refused.
#[tokio::test(start_paused = true)]
async fn no_room_for_the_call_after_a_refused_key_and_no_spool() {
    let takes = Duration::from_millis(50);
    let (config, provider) = (config(&[]), Provider { takes, ..Provider::default() });
    let ceiling = Ceiling::start(&config.ceilings, 1, 1_000, Start::Alone);
    let meter = Meter::new(5, &config.billing, []);
    let delivery = Delivery::new(&config, provider.clone(), None, ceiling, meter, Traces::off(), 7);
    provider.refuses_new_key();
    for outcome in eight_at_once(&delivery).await {
        assert!(matches!(outcome.ended, Disposition::NoPermit(_)), "{outcome:?}");
    }
    assert!(!provider.called().is_empty());
}

/// Nor does it make the outcome of a refused call unknown.
#[tokio::test(start_paused = true)]
async fn a_crash_while_a_key_is_looked_for() {
    let takes = Duration::from_millis(500);
    let (disk, provider) = (Double::default(), Provider { takes, ..Provider::default() });
    let (delivery, spool) = start(&disk, &provider).await;
    provider.answers(403);
    let outcome = delivery.publish(message("TopicA"), ASYNC).await;
    let Disposition::Kept(id) = outcome.ended else { panic!("{outcome:?}") };
    until("it is refused", || !provider.called().is_empty()).await;
    sleep(takes / 4).await;
    spool.flush().await;
    disk.crash(&mut fastrand::Rng::with_seed(1));
    let again = open(&disk, &options(Path::new("/nowhere"))).await;
    let found = again.find(id).map(|brief| (brief.attempts, brief.state));
    assert_eq!(found, Some((1, State::Queued { calling: false })));
}

/// A message whose caller was answered that it is refused is not there after a crash.
#[tokio::test]
async fn a_refused_message_does_not_come_back() {
    let (disk, provider) = (Double::default(), Provider::default());
    let (delivery, spool) = start(&disk, &provider).await;
    provider.answers(400);
    let outcome = delivery.publish(message("TopicA"), PATIENT).await;
    assert!(
        matches!(outcome.ended, Disposition::Answered(_)) && !outcome.is_accepted(),
        "{outcome:?}"
    );
    disk.crash(&mut fastrand::Rng::with_seed(1));
    drop((delivery, spool));
    let again = open(&disk, &options(Path::new("/nowhere"))).await;
    assert!(again.list(None, 10, &mut |_| true).is_empty());
}

/// A refused message that the disk does not forget may be delivered by the next process: no
/// caller is answered that it never will be.
#[tokio::test(start_paused = true)]
async fn a_refused_message_that_is_not_forgotten() {
    let takes = Duration::from_millis(500);
    let (disk, provider) = (Double::default(), Provider { takes, ..Provider::default() });
    let (delivery, spool) = start(&disk, &provider).await;
    provider.answers(400);
    let asked = tokio::spawn({
        let delivery = delivery.clone();
        async move { delivery.publish(message("TopicA"), PATIENT).await }
    });
    let mut calls = |brief: &Brief| brief.state == State::Queued { calling: true };
    until("it is called", || !spool.list(None, 1, &mut calls).is_empty()).await;
    spool.flush().await;
    disk.state().broken = true;
    assert_eq!(asked.await.unwrap().ended, Disposition::Unanswered);
    assert_eq!(provider.called().len(), 1);
}

/// What a disk neither took nor took back may be found by the next process: no caller is answered that it
/// is not kept.
#[tokio::test(start_paused = true)]
async fn a_message_that_a_disk_may_have() {
    let (disk, provider) = (Double::default(), Provider::default());
    let (delivery, spool) = start(&disk, &provider).await;
    assert!(delivery.publish(message("TopicA"), ASYNC).await.is_accepted());
    disk.state().broken = true;
    let outcome = delivery.publish(message("TopicA"), ASYNC).await;
    assert_eq!(outcome, Outcome::new(0, Disposition::Unanswered));
    drop((delivery, spool));
    drop(disk.mount());
    disk.state().broken = false;
    let again = open(&disk, &options(Path::new("/nowhere"))).await;
    assert_eq!(again.usage().queued.messages, 2);
}

/// A message whose bytes change on the disk while its caller waits was lost, and its caller is not
/// answered that it is kept.
#[tokio::test]
async fn a_damaged_message_is_not_answered_as_kept() {
    let (disk, provider) = (Double::default(), Provider::default());
    let (delivery, spool) = start(&disk, &provider).await;
    let asked = tokio::spawn({
        let delivery = delivery.clone();
        async move { delivery.publish(message("TopicA"), PATIENT).await }
    });
    // One that was never tried is answered that it is not kept.
    let mut tried = |brief: &Brief| brief.attempts > 0;
    until("it was tried", || !spool.list(None, 1, &mut tried).is_empty()).await;
    // A byte of its body.
    for file in disk.state().files.values_mut() {
        if let Some(at) = file.bytes.windows(6).position(|bytes| bytes == b"marked") {
            file.bytes[at] ^= 1;
        }
    }
    let outcome = asked.await.unwrap();
    assert_eq!(outcome.ended, Disposition::Unanswered);
    assert_eq!(spool.usage().damaged, 1);
}

/// A dead letter that is replayed twice at once, and again while it is queued, is one message.
#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_is_replayed_more_than_once() {
    let (disk, provider) = (Double::default(), Provider::default());
    let (delivery, spool) = start(&disk, &provider).await;
    provider.answers(400);
    assert!(delivery.publish(message("TopicA"), ASYNC).await.is_accepted());
    until("it is a dead letter", || spool.usage().dead.messages == 1).await;
    // Nothing gets through: it stays queued.
    *provider.answers.lock().unwrap() = None;
    let all = Selection::default().pick().unwrap();
    let (one, other) = tokio::join!(delivery.replay(&all), delivery.replay(&all));
    assert_eq!((one.messages + other.messages, delivery.replay(&all).await.messages), (1, 0));
    let kept = delivery.intake.kept.as_ref().unwrap();
    assert_eq!((kept.queue.len(), provider.called().len()), (1, 1));
    provider.answers(200);
    until("it is delivered", || spool.usage().queued.messages == 0).await;
    assert_eq!(provider.called().len(), 2);
}
