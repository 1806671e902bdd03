//! Messages with a time to live and an urgency.

use super::*;
use crate::ceiling::WINDOW;
use crate::message::{Expiry, Lifespan, Urgency};
use crate::meter::ExpiredAs;

const WAITS: PublishOptions =
    PublishOptions { patience: Duration::from_mins(1), keep: Keeping::IfNotDelivered, claim: None };

fn until_after(ttl: Duration) -> Lifespan {
    Lifespan::Until(Expiry::after(Instant::now(), ttl))
}

fn living(topic: &str, lifespan: Lifespan) -> Message {
    Message { terms: Terms { lifespan, urgency: Urgency::Normal }, ..message(topic) }
}

fn urgent(topic: &str, urgency: Urgency) -> Message {
    Message { terms: Terms { lifespan: Lifespan::Unlimited, urgency }, ..message(topic) }
}

fn is_expired(spool: &Spool, id: MessageId) -> bool {
    spool.find(id).is_some_and(|brief| matches!(brief.state, State::Expired(_)))
}

fn counted(delivery: &Delivery<Provider>) -> [u64; 2] {
    ExpiredAs::ALL.map(|known| delivery.intake.dispatcher.meter.expired_messages(known))
}

/// A call of each of so many messages takes a permit for a second.
async fn busy(delivery: &Delivery<Provider>, calls: usize) {
    for _ in 0..calls {
        let delivery = delivery.clone();
        tokio::spawn(async move { delivery.publish(message("Busy"), WAITS).await });
    }
    sleep(Duration::from_millis(1)).await;
}

/// With no spool, a message that is not called in time is refused.
fn without_spool(provider: &Provider) -> Delivery<Provider> {
    let config = config(&[]);
    let ceiling = Ceiling::start(&config.ceilings, 1, 1_000, Start::Alone);
    let meter = Meter::new(5, &config.billing, []);
    Delivery::new(&config, provider.clone(), None, ceiling, meter, Traces::off(), 7)
}

/// It waits for a permit when its time to live ends: its caller is answered then, with or without a spool.
#[tokio::test(start_paused = true)]
async fn a_message_that_waits_for_a_permit() {
    for with_spool in [true, false] {
        let (disk, provider) = (Double::default(), Provider::default());
        provider.answers(200);
        let delivery =
            if with_spool { start(&disk, &provider).await.0 } else { without_spool(&provider) };
        // Its turn would come in time, were nothing more urgent.
        busy(&delivery, 12).await;
        let ttl = Duration::from_secs(6);
        let late = living("TopicA", until_after(ttl));
        let id = late.id;
        let asked = tokio::spawn({
            let delivery = delivery.clone();
            async move { (delivery.publish(late, WAITS).await, Instant::now()) }
        });
        let begun = Instant::now();
        sleep(Duration::from_millis(10)).await;
        for _ in 0..200 {
            let delivery = delivery.clone();
            let high = urgent("Busy", Urgency::High);
            tokio::spawn(async move { delivery.publish(high, WAITS).await });
        }
        let (outcome, at) = asked.await.unwrap();
        let expired = Disposition::Expired { id: None, doubt: false };
        assert_eq!(outcome, Outcome::new(0, expired), "{with_spool}");
        assert!(at - begun <= ttl + Duration::from_millis(2), "{:?}", at - begun);
        assert_eq!(counted(&delivery), [1, 0]);
        sleep(Duration::from_mins(2)).await;
        assert!(!provider.called().contains(&id));
    }
}

/// The lane is paused until long after the end, or its topic is not allowed: it is dropped at its end, its caller
/// is answered then, and so is the next request with its key.
#[tokio::test(start_paused = true)]
async fn a_stored_message_ends_in_time() {
    let (disk, provider) = (Double::default(), Provider::default());
    let (delivery, spool) = start(&disk, &provider).await;
    for _ in 0..6 {
        assert!(delivery.publish(message("TopicA"), ASYNC).await.is_accepted());
    }
    sleep(Duration::from_secs(5)).await;
    assert_eq!(delivery.paused().len(), 1);
    let ttl = Duration::from_secs(30);
    let end = Instant::now() + ttl;
    // Accepted at once, held, and with a caller who waits.
    let accepted = living("TopicA", until_after(ttl));
    let held = living("Held", until_after(ttl));
    let (accepted_id, held_id) = (accepted.id, held.id);
    let first = Claim { key: 1, print: 1 };
    let asynchronous = PublishOptions { claim: Some(first), ..ASYNC };
    assert!(delivery.publish(accepted, asynchronous).await.is_accepted());
    assert!(delivery.publish(held, ASYNC).await.is_accepted());
    delivery.reload(&config(&[("topics.allow", "TopicA")]));
    sleep(Duration::from_millis(200)).await;
    assert_eq!(delivery.held().not_allowed, 1);
    let waits = PublishOptions { claim: Some(Claim { key: 2, print: 2 }), ..WAITS };
    let waiting = living("TopicA", until_after(end - Instant::now()));
    let waiting_id = waiting.id;
    let outcome = delivery.publish(waiting, waits).await;
    let late = Instant::now().duration_since(end);
    assert!(late < Duration::from_millis(5), "{late:?}");
    let expired = Disposition::Expired { id: Some(waiting_id), doubt: false };
    assert_eq!(outcome.ended, expired);
    sleep(Duration::from_millis(5)).await;
    assert!([accepted_id, held_id, waiting_id].iter().all(|id| is_expired(&spool, *id)));
    assert_eq!((counted(&delivery), delivery.held().not_allowed), ([3, 0], 0));
    let again = async |claim| {
        let wanted = PublishOptions { claim: Some(claim), ..WAITS };
        let again = delivery.publish(message("TopicA"), wanted).await;
        assert!(again.replayed);
        again.ended
    };
    assert_eq!(again(Claim { key: 2, print: 2 }).await, expired);
    assert_eq!(again(first).await, Disposition::Settled(accepted_id, Settled::Expired));
    provider.answers(200);
    until("the others are delivered", || spool.usage().queued.messages == 0).await;
    let sent = provider.called();
    assert!(
        sent.len() >= 6 && ![accepted_id, held_id, waiting_id].iter().any(|id| sent.contains(id))
    );
    // It is a receipt after a restart, too.
    spool.flush().await;
    drop((delivery, spool));
    let again = open(&disk, &options(Path::new("/nowhere"))).await;
    assert!(is_expired(&again, accepted_id) && is_expired(&again, waiting_id));
}

/// A call that has begun before the end goes on, and its outcome counts.
#[tokio::test(start_paused = true)]
async fn a_call_that_has_begun_counts() {
    let keyed = PublishOptions { claim: Some(Claim { key: 1, print: 2 }), ..WAITS };
    for (status, wanted) in [(200, ASYNC), (200, keyed), (500, ASYNC), (500, keyed)] {
        let (disk, thinks) = (Double::default(), CancellationToken::new());
        let provider = Provider { thinks: Some(thinks.clone()), ..Provider::default() };
        provider.answers(status);
        let (delivery, spool) = start_with(&disk, &provider, &[("retry.unknown", "retry")]).await;
        let message = living("TopicA", until_after(Duration::from_secs(1)));
        let id = message.id;
        let asked = tokio::spawn({
            let delivery = delivery.clone();
            async move { delivery.publish(message, wanted).await }
        });
        sleep(Duration::from_secs(3)).await;
        assert_eq!(spool.find(id).unwrap().state, State::Queued { calling: false });
        thinks.cancel();
        let outcome = asked.await.unwrap();
        sleep(Duration::from_secs(1)).await;
        let (state, delivered) = (spool.find(id).unwrap().state, status == 200);
        assert_eq!(matches!(state, State::Delivered(_)), delivered, "{state:?}");
        assert_eq!(matches!(state, State::Expired(_)), !delivered, "{state:?}");
        if wanted.claim.is_some() {
            let expired = Disposition::Expired { id: Some(id), doubt: false };
            assert_eq!(outcome.ended == expired, !delivered, "{outcome:?}");
            assert_eq!(outcome.is_accepted(), delivered);
        }
        assert_eq!(provider.called(), [id]);
    }
}

/// Of one whose last call had an unknown outcome nobody is answered that it was not delivered.
#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_before_the_end() {
    let (disk, provider) = (Double::default(), Provider::default());
    // A 200 that cannot be read.
    let unreadable = HttpAnswer { status: 200, ..HttpAnswer::default() };
    *provider.answers.lock().unwrap() = Some(unreadable);
    let flags = [("retry.unknown", "retry"), ("retry.base", "20s"), ("retry.cap", "20s")];
    let (delivery, spool) = start_with(&disk, &provider, &flags).await;
    let unknown = living("TopicA", until_after(Duration::from_secs(2)));
    let id = unknown.id;
    let waits = PublishOptions { claim: Some(Claim { key: 1, print: 2 }), ..WAITS };
    let outcome = delivery.publish(unknown, waits).await;
    let is_called = provider.called() == [id];
    assert!(is_called, "{outcome:?}");
    assert_eq!(outcome.ended, Disposition::Expired { id: Some(id), doubt: true });
    let brief = spool.find(id).unwrap();
    assert!(brief.doubt && brief.unknown == 1 && matches!(brief.state, State::Expired(_)));
    assert_eq!(counted(&delivery), [0, 1]);
}

/// `TTL: 0`: it is called at most while its caller waits, and never stored.
#[tokio::test(start_paused = true)]
async fn at_once_or_not_at_all() {
    let (disk, provider) = (Double::default(), Provider::default());
    let (delivery, spool) = start(&disk, &provider).await;
    let at_once = || living("TopicA", Lifespan::AtOnce);
    provider.answers(200);
    let outcome = delivery.publish(at_once(), WAITS).await;
    assert!(outcome.is_accepted());
    // No permit within its caller's wait; the caller would rather have had it kept.
    busy(&delivery, 10).await;
    let hasty = PublishOptions {
        patience: Duration::from_millis(300),
        keep: Keeping::Preferred,
        claim: None,
    };
    let outcome = delivery.publish(at_once(), hasty).await;
    assert!(matches!(outcome.ended, Disposition::NoPermit(_)), "{outcome:?}");
    sleep(WINDOW * 3).await;
    // A call that fails is made again while the caller waits.
    provider.answers(500);
    let outcome = delivery.publish(at_once(), WAITS).await;
    assert!(matches!(outcome.ended, Disposition::Answered(_)), "{outcome:?}");
    assert_eq!(outcome.calls, 3);
    // The topic is paused.
    for _ in 0..6 {
        assert!(delivery.publish(message("TopicA"), ASYNC).await.is_accepted());
    }
    sleep(Duration::from_secs(5)).await;
    let before = spool.usage().queued.messages;
    let outcome =
        delivery.publish(at_once(), PublishOptions { keep: Keeping::Preferred, ..WAITS }).await;
    assert_eq!(outcome.ended, Disposition::Expired { id: None, doubt: false });
    // Behind a message of its lane that is stored first.
    let mut order = CallOrder::default();
    let claimed = PublishOptions { claim: Some(Claim { key: 1, print: 2 }), ..ASYNC };
    let keyed = delivery.begin(message("Other"), claimed, &mut order);
    let behind = delivery.begin(living("Other", Lifespan::AtOnce), ASYNC, &mut order);
    assert!(keyed.outcome().await.is_accepted() && !behind.outcome().await.is_accepted());
    assert_eq!(spool.usage().queued.messages, before + 1);
}

/// An operator who replays dead letters has those sent whose time to live has not ended, and learns of the rest.
#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_has_expired_is_not_sent() {
    let (disk, provider) = (Double::default(), Provider::default());
    let (delivery, spool) = start(&disk, &provider).await;
    provider.answers(400);
    let mut ids = Vec::new();
    for lifespan in [until_after(Duration::from_secs(20)), Lifespan::Unlimited] {
        let message = living("TopicA", lifespan);
        ids.push(message.id);
        assert!(delivery.publish(message, ASYNC).await.is_accepted());
    }
    until("both are dead letters", || spool.usage().dead.messages == 2).await;
    sleep(Duration::from_secs(30)).await;
    provider.answers(200);
    let all = Selection { all: true, ..Selection::default() }.pick().unwrap();
    let replayed = delivery.replay(&all).await;
    assert_eq!((replayed.messages, replayed.expired, &replayed.first[..]), (1, 1, &ids[1..]));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(provider.called()[2..], ids[1..]);
    assert!(matches!(spool.find(ids[0]).unwrap().state, State::Dead(_)));
}

/// The next process sends nothing whose time to live has ended, and the rest before it ends.
#[tokio::test(start_paused = true)]
async fn over_restarts() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut disk, provider) = (Double::default(), Provider::default());
        let mut ends = Vec::new();
        for _ in 0..4 {
            let (delivery, spool) = start(&disk, &provider).await;
            for _ in 0..10 {
                let ttl = Duration::from_millis(random.u64(1_000..40_000));
                let mut message = living("TopicA", until_after(ttl));
                message.terms.urgency = Urgency::ALL[random.usize(..4)];
                ends.push((message.id, Instant::now() + ttl));
                assert!(delivery.publish(message, ASYNC).await.is_accepted());
            }
            sleep(Duration::from_millis(random.u64(..15_000))).await;
            spool.flush().await;
            delivery.drain(Duration::ZERO).await;
            delivery.close(Duration::from_secs(1)).await;
            disk = if random.bool() {
                disk.crash(&mut random);
                disk
            } else {
                disk.mount();
                disk
            };
            sleep(Duration::from_millis(random.u64(..10_000))).await;
        }
        let up = Instant::now();
        let (delivery, spool) = start(&disk, &provider).await;
        provider.answers(200);
        sleep(Duration::from_mins(1)).await;
        let called = provider.called();
        for (id, end) in ends {
            let is_sent = called.contains(&id);
            // The first probe of a lane may take some seconds.
            assert!(!is_sent || end > up, "{seed}: sent after its end");
            assert!(is_sent || end < up + Duration::from_secs(15), "{seed}: not sent");
            let state = spool.find(id).map(|brief| brief.state);
            let fits = match state {
                Some(State::Delivered(_)) => is_sent,
                Some(State::Expired(_)) => !is_sent,
                _ => false,
            };
            assert!(fits, "{seed}: {is_sent} {state:?}");
        }
        drop(delivery);
    }
}

/// Calls for a ceiling that is too low for all: a message is overtaken only by those that came within the difference
/// of their handicaps after it. So none starves, however many are more urgent.
#[tokio::test(start_paused = true)]
async fn the_order_of_calls_for_a_permit() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let provider = Provider::default();
        let delivery = without_spool(&provider);
        provider.answers(200);
        let mut asked = std::collections::HashMap::new();
        let mut low = None;
        for n in 0..1_200 {
            // Half more than the ceiling, and nearly all of it more urgent.
            sleep(Duration::from_millis(random.u64(..133))).await;
            let urgency = match random.u8(..20) {
                _ if n == 100 => Urgency::VeryLow,
                0 => Urgency::ALL[random.usize(..4)],
                _ => Urgency::High,
            };
            let message = urgent("TopicA", urgency);
            if n == 100 {
                low = Some(message.id);
            }
            asked.insert(message.id, (Instant::now(), urgency));
            let (delivery, patient) =
                (delivery.clone(), PublishOptions { keep: Keeping::IfNotDelivered, ..WAITS });
            tokio::spawn(async move { delivery.publish(message, patient).await });
        }
        sleep(Duration::from_mins(2)).await;
        let called = provider.called();
        assert!(called.contains(&low.unwrap()), "{seed}: it starves");
        for (n, id) in called.iter().enumerate() {
            let (at, urgency) = asked[id];
            for before in &called[..n] {
                let (before_at, before_urgency) = asked[before];
                let ahead = urgency.handicap().saturating_sub(before_urgency.handicap());
                // Calls that go at the same moment have no order.
                let bound = at + ahead + Duration::from_millis(2);
                assert!(before_at <= bound, "{seed}: {urgency:?} after {before_urgency:?}");
            }
        }
    }
}

/// A stored message of low urgency among an endless flood of urgent ones is overtaken only by those that came within
/// a minute after it.
#[tokio::test(start_paused = true)]
async fn a_stored_message_does_not_starve() {
    let (disk, provider) = (Double::default(), Provider::default());
    let (delivery, _spool) = start(&disk, &provider).await;
    provider.answers(200);
    let low = urgent("TopicA", Urgency::VeryLow);
    let (id, mut kept_at) = (low.id, None);
    let mut low = Some(low);
    let mut asked = std::collections::HashMap::new();
    for n in 0..4_000 {
        sleep(Duration::from_millis(60)).await;
        let topics = ["TopicA", "TopicB"];
        let high = urgent(topics[n % 2], Urgency::High);
        asked.insert(high.id, Instant::now());
        assert!(delivery.publish(high, ASYNC).await.is_accepted());
        if n == 500 {
            kept_at = Some(Instant::now());
            assert!(delivery.publish(low.take().unwrap(), ASYNC).await.is_accepted());
        }
    }
    let called = provider.called();
    let place = called.iter().position(|called| *called == id).expect("it starves");
    let latest = called[..place].iter().map(|before| asked[before]).max().unwrap();
    assert!(latest <= kept_at.unwrap() + Duration::from_mins(1));
    assert!(called.len() > place + 100, "the flood goes on");
}

/// Messages of one request that wait for a permit keep their order, whatever their urgency.
#[tokio::test(start_paused = true)]
async fn the_lines_of_a_topic_keep_their_order() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (disk, provider) = (Double::default(), Provider::default());
        let (delivery, _spool) = start(&disk, &provider).await;
        provider.answers(200);
        busy(&delivery, 10).await;
        let mut order = CallOrder::default();
        let (mut ids, mut begun) = (Vec::new(), Vec::new());
        let keyed = seed % 2 == 0;
        for n in 0..40 {
            let message = urgent("TopicA/x", Urgency::ALL[random.usize(..4)]);
            ids.push(message.id);
            let claim = keyed.then_some(Claim { key: n, print: 0 });
            let wanted = PublishOptions { claim, ..WAITS };
            begun.push(delivery.begin(message, wanted, &mut order));
        }
        for begun in begun {
            assert!(begun.outcome().await.is_accepted());
        }
        let mut called = provider.called();
        called.retain(|id| ids.contains(id));
        assert_eq!(called, ids, "{seed}");
    }
}
