//! With a real Redis that hands messages over more than once: each is delivered once.

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::{MacFile, Unsigned};
use crate::redis_client::lossy::loses_an_answer;
use crate::redis_client::server::Redis;
use crate::spool::tests::{receipt, shared_at, shared_with};
use crate::spool::{AdoptionRules, Change, Options};

/// A provider that takes every message, and answers for one of them only when it is let go.
#[derive(Clone)]
struct Slow {
    held: MessageId,
    let_go: CancellationToken,
    called: Arc<Mutex<Vec<MessageId>>>,
}

impl Slow {
    fn new(held: MessageId) -> Self {
        Self { held, let_go: CancellationToken::new(), called: Arc::default() }
    }

    fn calls(&self, id: MessageId) -> usize {
        self.called.lock().unwrap().iter().filter(|called| **called == id).count()
    }
}

impl Upstream for Slow {
    async fn send(&self, message: &Message, permit: Permit, gate: &SendGate) -> Answer {
        if !gate.leave() {
            permit.unsent();
            return Answer::TransportError(TransportError::TooLate);
        }
        self.called.lock().unwrap().push(message.id);
        if message.id == self.held {
            self.let_go.cancelled().await;
        }
        permit.answered();
        let (msg_id, request_id) = (Some("M".into()), Some("R".into()));
        Answer::Http(HttpAnswer { status: 200, msg_id, request_id, ..HttpAnswer::default() })
    }

    async fn renew_key(&self) -> bool {
        false
    }
}

fn delivers(spool: &Spool, provider: &Slow, unknown: &str) -> Delivery<Slow> {
    delivers_by(&config(&[("retry.unknown", unknown)]), spool, provider)
}

fn delivers_by(config: &Config, spool: &Spool, provider: &Slow) -> Delivery<Slow> {
    let ceiling = Ceiling::start(&config.ceilings, 1, 1_000, Start::Alone);
    let meter = Meter::new(5, &config.billing, []);
    Delivery::new(config, provider.clone(), Some(spool.clone()), ceiling, meter, Traces::off(), 7)
}

fn in_lanes<U: Upstream>(delivery: &Delivery<U>) -> usize {
    delivery.intake.kept.as_ref().unwrap().queue.len()
}

async fn keep(spool: &Spool, messages: usize) -> Vec<MessageId> {
    let mut kept = Vec::new();
    for _ in 0..messages {
        let message = message("TopicA");
        spool.keep(&message, None).await.unwrap();
        kept.push(message.id);
    }
    kept
}

#[tokio::test]
async fn an_answer_that_is_lost_at_the_start() {
    let (redis, folder) = (Redis::start(), tempfile::tempdir().unwrap());
    let before = shared_at(redis.port, Some(folder.path())).await;
    let kept = keep(&before, 150).await;
    drop(before);
    let is_free = || {
        let file = std::fs::File::open(folder.path().join("owner")).unwrap();
        file.try_lock().is_ok()
    };
    until("the folder is free", is_free).await;

    let (port, _) = loses_an_answer(redis.port).await;
    let spool = shared_at(port, Some(folder.path())).await;
    until("it knows its own", || spool.usage().queued.messages == 150).await;
    // The last one's call is under way when all the others have ended.
    let last = *kept.iter().max().unwrap();
    let provider = Slow::new(last);
    let delivery = delivers(&spool, &provider, "retry");
    until("its call is under way", || provider.calls(last) > 0).await;
    until("all others have ended", || provider.calls(last) > 1 || in_lanes(&delivery) == 1).await;
    provider.let_go.cancel();
    until("all have ended", || in_lanes(&delivery) == 0).await;
    let twice = kept.iter().filter(|id| provider.calls(**id) != 1).count();
    assert_eq!(twice, 0, "of {} messages are not delivered once", kept.len());
    assert_eq!(spool.usage().queued.messages, 0);
}

/// All that is pending becomes this owner's, and its former owners learn that they were taken for dead.
fn taken_by(redis: &Redis, other: &str) {
    let take = "local S, O = KEYS[1], KEYS[2]
        for _, owner in ipairs(redis.call('HKEYS', O)) do redis.call('HSET', O, owner, '-') end
        redis.call('HSET', O, ARGV[1], '7')
        for _, one in ipairs(redis.call('XPENDING', S, 'tollgate', '-', '+', 10000)) do
            redis.call('XCLAIM', S, 'tollgate', ARGV[1], 0, one[1], 'JUSTID')
        end";
    let mut command = redis::cmd("EVAL");
    command.arg(take).arg(2).arg("tollgate:{a}:spool").arg("tollgate:{a}:spool:owners");
    command.arg(other).exec(&mut redis.connection()).unwrap();
}

/// A peer takes all messages of a sidecar that it takes for dead, does what it does, and leaves them to
/// the sidecar, which lives.
async fn taken_and_given_back(redis: &Redis, spool: &Spool, peer_does: impl AsyncFnOnce(&Spool)) {
    spool.retire();
    let queued: Vec<_> = spool.list(None, 99, &mut is_queued).iter().map(|b| b.id).collect();
    taken_by(redis, "other");
    until("it knows that", || queued.iter().all(|id| spool.find(*id).is_none())).await;
    redis.tell::<()>("HSET tollgate:{a}:spool:owners other -");
    let peer = shared_at(redis.port, None).await;
    let mut adoptions = peer.adoptions().unwrap();
    let adopting = tokio::spawn(async move { while adoptions.next().await.is_some() {} });
    until("the peer has them", || queued.iter().all(|id| peer.find(*id).is_some())).await;
    peer_does(&peer).await;
    peer.close().await;
    adopting.abort();
    // Adopts again.
    let mut again = spool.adoptions().unwrap();
    drop(timeout(Duration::ZERO, again.next()).await);
    until("it has them again", || queued.iter().all(|id| spool.find(*id).is_some())).await;
}

fn is_queued(brief: &Brief) -> bool {
    matches!(brief.state, State::Queued { .. })
}

/// A sidecar that was taken for dead takes its messages over again: one that a peer has delivered, and one
/// whose call is still under way.
#[tokio::test]
async fn a_sidecar_that_was_taken_for_dead() {
    for unknown in ["retry", "park"] {
        let redis = Redis::start();
        let spool = shared_at(redis.port, None).await;
        // As many as let a lane hand out some together.
        let before = keep(&spool, 10).await;
        let under_way = keep(&spool, 1).await[0];
        let provider = Slow::new(under_way);
        let delivery = delivers(&spool, &provider, unknown);
        let lanes = delivery.intake.kept.as_ref().unwrap();
        until("its call is under way", || provider.calls(under_way) > 0).await;
        until("it is alone", || in_lanes(&delivery) == 1).await;
        spool.flush().await;
        // Waits after a failed call.
        let delivered = keep(&spool, 1).await[0];
        let tried = Brief { attempts: 1, ..spool.find(delivered).unwrap() };
        lanes.enqueue_after(&tried, Duration::from_secs(2));

        taken_and_given_back(&redis, &spool, async |peer| {
            peer.note(delivered, Change::Delivered(1, receipt())).await;
        })
        .await;
        // A second handing-out would come before this one.
        let later = keep(&spool, 1).await[0];
        lanes.enqueue(&spool.find(later).unwrap());
        until("a later one is called", || provider.calls(later) > 0).await;
        assert_eq!(spool.usage().dead.messages, 0, "{unknown}");
        provider.let_go.cancel();
        until("all have ended", || in_lanes(&delivery) == 0).await;
        let calls = [under_way, delivered, later].map(|id| provider.calls(id));
        assert_eq!(calls, [1, 0, 1], "{unknown}");
        assert!(before.iter().all(|id| provider.calls(*id) == 1), "{unknown}");
        let usage = spool.usage();
        let kept = [usage.queued, usage.dead, usage.receipts].map(|share| share.messages);
        assert_eq!(kept, [0, 0, 3 + before.len() as u64], "{unknown}");
    }
}

/// The same with a fresh message that was kept because its call outlasts its caller's patience.
#[tokio::test]
async fn a_fresh_call_that_is_under_way_meanwhile() {
    let redis = Redis::start();
    let spool = shared_at(redis.port, None).await;
    let fresh = message("TopicA");
    let id = fresh.id;
    let provider = Slow::new(id);
    let delivery = delivers(&spool, &provider, "retry");
    let wanted = PublishOptions { patience: Duration::from_millis(200), ..ASYNC };
    let outcome = delivery.publish(fresh, wanted).await;
    assert_eq!((outcome.ended, provider.calls(id)), (Disposition::Kept(id), 1));
    taken_and_given_back(&redis, &spool, async |_| {}).await;
    let later = keep(&spool, 1).await[0];
    delivery.intake.kept.as_ref().unwrap().enqueue(&spool.find(later).unwrap());
    let called = || provider.calls(later) > 0 || provider.calls(id) > 1;
    until("a later one is called", called).await;
    provider.let_go.cancel();
    until("all have ended", || spool.usage().queued.messages == 0).await;
    assert_eq!([id, later].map(|id| provider.calls(id)), [1, 1]);
}

fn options_of(config: &Config) -> Options {
    Options { adopts: AdoptionRules::of(config), ..options(Path::new("/nowhere")) }
}

/// A sidecar that has stopped leaves messages of two topics to one that may send one of them.
#[tokio::test]
async fn a_peer_sends_what_its_own_rules_allow() {
    let redis = Redis::start();
    let owner = shared_at(redis.port, None).await;
    let mut kept = Vec::new();
    for topic in ["Payment", "Alarm/x", "Payment"] {
        let message = message(topic);
        owner.keep(&message, None).await.unwrap();
        kept.push(message.id);
    }
    owner.close().await;
    let rules = config(&[("topics.allow", "Alarm/*")]);
    let spool = shared_with(redis.port, options_of(&rules)).await;
    let provider = Slow::new(MessageId::new());
    let delivery = delivers_by(&rules, &spool, &provider);
    until("the rest is left", || spool.usage().left.not_allowed == 2).await;
    until("the alarm is delivered", || spool.usage().receipts.messages == 1).await;
    assert_eq!(kept.iter().map(|id| provider.calls(*id)).collect::<Vec<_>>(), [0, 1, 0]);
    delivery.reload(&config(&[]));
    until("all are delivered", || spool.usage().receipts.messages == 3).await;
    assert!(kept.iter().all(|id| provider.calls(*id) == 1));
    assert_eq!(spool.usage().left.not_allowed, 0);
}

/// A client of Redis puts another body in the place of a stored one.
#[tokio::test]
async fn a_body_that_was_changed_is_not_sent() {
    let (redis, folder) = (Redis::start(), tempfile::tempdir().unwrap());
    let path = folder.path().join("keys");
    std::fs::write(&path, "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=").unwrap();
    let mac = Some(MacFile { path, unsigned: Unsigned::SetAside });
    let spool = shared_with(redis.port, Options { mac, ..options_of(&config(&[])) }).await;
    let [changed, other] = [keep(&spool, 1).await[0], keep(&spool, 1).await[0]];
    let script = "local S, W = KEYS[1], KEYS[2]
        local words = redis.call('HGET', W, ARGV[1])
        local entry, rest = string.match(words, '^(%S+) (.*)$')
        local owner = redis.call('XPENDING', S, 'tollgate', entry, entry, 1)[1][2]
        local new = redis.call('XADD', S, '0-*', 'id', ARGV[1], 'body', 'forged')
        redis.call('XCLAIM', S, 'tollgate', owner, 0, new, 'FORCE', 'JUSTID', 'LASTID', new)
        redis.call('HSET', W, ARGV[1], new .. ' ' .. rest)";
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(2).arg("tollgate:{a}:spool").arg("tollgate:{a}:spool:words");
    command.arg(changed.to_string()).exec(&mut redis.connection()).unwrap();
    let provider = Slow::new(MessageId::new());
    let delivery = delivers(&spool, &provider, "retry");
    until("the other is delivered", || spool.usage().receipts.messages == 1).await;
    until("it is held", || delivery.held().unverified == 1).await;
    delivery.reload(&config(&[]));
    until("it is looked at again", || in_lanes(&delivery) == 0).await;
    assert_eq!([changed, other].map(|id| provider.calls(id)), [0, 1]);
    assert_eq!(spool.find(changed).unwrap().state, State::Queued { calling: false });
    // An operator decides what becomes of it.
    let selection = Selection { ids: vec![changed.to_string()], ..Selection::default() };
    assert_eq!(delivery.discard(&selection.pick().unwrap()).await.messages, 1);
    assert_eq!(delivery.held().unverified, 0);
}
