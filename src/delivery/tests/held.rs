//! Stored messages that this sidecar may not send: they stay, and delay no others.

use super::*;
use crate::spool::{Change, HeldCounts};

async fn keep(spool: &Spool, topic: &str) -> MessageId {
    let message = message(topic);
    spool.keep(&message, None).await.unwrap();
    message.id
}

fn delivers(spool: &Spool, provider: &Provider, allow: &str) -> Delivery<Provider> {
    let config = config(&[("topics.allow", allow)]);
    let ceiling = Ceiling::start(&config.ceilings, 1, 1_000, Start::Alone);
    let meter = Meter::new(5, &config.billing, []);
    Delivery::new(&config, provider.clone(), Some(spool.clone()), ceiling, meter, Traces::off(), 7)
}

fn not_allowed(not_allowed: u64) -> HeldCounts {
    HeldCounts { not_allowed, unverified: 0 }
}

/// What the process before had accepted by wider rules.
#[tokio::test(start_paused = true)]
async fn a_start_with_narrower_rules() {
    let (disk, provider) = (Double::default(), Provider::default());
    provider.answers(200);
    let spool = open(&disk, &options(Path::new("/nowhere"))).await;
    let payments = [keep(&spool, "Payment").await, keep(&spool, "Payment/x").await];
    let alarm = keep(&spool, "Alarm/fire").await;
    let delivery = delivers(&spool, &provider, "Alarm/*");
    until("the alarm is delivered", || provider.called() == [alarm]).await;
    // Longer than any wait of a lane, and longer than messages are tried.
    sleep(Duration::from_hours(100)).await;
    assert_eq!((provider.called(), delivery.held()), (vec![alarm], not_allowed(2)));
    let queued = |id| matches!(spool.find(id).unwrap().state, State::Queued { calling: false });
    assert!(payments.iter().all(|id| queued(*id)));
    // A stop does not wait for them.
    let begun = Instant::now();
    delivery.drain(Duration::from_mins(1)).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_reload_that_allows_them() {
    let (disk, provider) = (Double::default(), Provider::default());
    provider.answers(200);
    let spool = open(&disk, &options(Path::new("/nowhere"))).await;
    let [payment, other] = [keep(&spool, "Payment").await, keep(&spool, "Other").await];
    let delivery = delivers(&spool, &provider, "Alarm/*");
    assert_eq!(delivery.held(), not_allowed(2));
    delivery.reload(&config(&[("topics.allow", "Payment")]));
    until("it is delivered", || provider.called() == [payment]).await;
    until("it is held no more", || delivery.held() == not_allowed(1)).await;
    // An operator decides about the rest.
    let selection = Selection { ids: vec![other.to_string()], ..Selection::default() };
    let dropped = delivery.discard(&selection.pick().unwrap()).await;
    assert_eq!((dropped.messages, delivery.held()), (1, not_allowed(0)));
}

/// Messages of one lane that waits for the provider: the one that is held does not become its probe.
#[tokio::test(start_paused = true)]
async fn a_reload_that_forbids_what_waits() {
    let (disk, provider) = (Double::default(), Provider::default());
    let spool = open(&disk, &options(Path::new("/nowhere"))).await;
    let (mut fires, mut tests) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        tests.push(keep(&spool, "Alarm/test").await);
        fires.push(keep(&spool, "Alarm/fire").await);
    }
    let delivery = delivers(&spool, &provider, "Alarm/*");
    until("the lane is paused", || !delivery.paused().is_empty()).await;
    delivery.reload(&config(&[("topics.allow", "Alarm/fire")]));
    // A probe is not chosen among all before its time; those that are held go first.
    provider.answers(200);
    until("all that may are delivered", || provider.called().len() == 10).await;
    until("the others are held", || delivery.held() == not_allowed(10)).await;
    let mut called = provider.called();
    called.sort_unstable();
    assert_eq!(called, fires);
    // A message that is kept now and may not be sent any more is held, too.
    let late = message("Alarm/test");
    assert!(delivery.publish(late, ASYNC).await.is_accepted());
    assert_eq!(delivery.held(), not_allowed(11));
    delivery.reload(&config(&[("topics.allow", "Alarm/*")]));
    until("all are delivered", || spool.usage().queued.messages == 0).await;
    assert_eq!((provider.called().len(), delivery.held()), (21, not_allowed(0)));
}

/// A replayed dead letter is queued again, and held.
#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_is_replayed() {
    let (disk, provider) = (Double::default(), Provider::default());
    let spool = open(&disk, &options(Path::new("/nowhere"))).await;
    let payment = keep(&spool, "Payment").await;
    provider.answers(400);
    let delivery = delivers(&spool, &provider, "*");
    until("it is a dead letter", || spool.usage().dead.messages == 1).await;
    delivery.reload(&config(&[("topics.allow", "Alarm/*")]));
    provider.answers(200);
    let all = Selection { ids: vec![payment.to_string()], ..Selection::default() };
    assert_eq!(delivery.replay(&all.pick().unwrap()).await.messages, 1);
    sleep(Duration::from_mins(10)).await;
    assert_eq!((provider.called().len(), delivery.held()), (1, not_allowed(1)));
}

/// More than are looked at together, of which peers have taken over some: a look at the count does not
/// find that out, and the next pass does.
#[tokio::test(start_paused = true)]
async fn what_is_gone_is_held_no_more() {
    let (disk, provider) = (Double::default(), Provider::default());
    let spool = open(&disk, &options(Path::new("/nowhere"))).await;
    let mut kept = Vec::new();
    for _ in 0..300 {
        kept.push(keep(&spool, "Payment").await);
    }
    let delivery = delivers(&spool, &provider, "Alarm/*");
    until("all are held", || delivery.held() == not_allowed(300)).await;
    sleep(Duration::from_secs(1)).await;
    for id in [kept[0], kept[299]] {
        spool.note(id, Change::Forgotten).await;
    }
    assert_eq!(delivery.held(), not_allowed(300));
    sleep(crate::delivery::retention::PAUSE).await;
    until("the others are held", || delivery.held() == not_allowed(298)).await;
}
