//! A panic costs its message time, and nothing else.

use std::cell::Cell;

use super::super::kept::AFTER_PANIC;
use super::super::retry_queue::RetryQueue;
use super::*;
use crate::ceiling::WINDOW;

thread_local! {
    static NEXT: Cell<&'static str> = const { Cell::new("") };
}

/// Panics once, if a test wants a panic in this place.
pub(in crate::delivery) fn at(place: &'static str) {
    if NEXT.get() == place {
        NEXT.set("");
        panic!("as the test wants it: {place}");
    }
}

/// A call outlasts it.
const SHORT: PublishOptions =
    PublishOptions { patience: Duration::from_secs(1), keep: Keeping::IfNotDelivered, claim: None };

/// Topics may be delivered twice, where a call's outcome is unknown.
async fn start_repeating(disk: &Double, provider: &Provider) -> (Delivery<Provider>, Spool) {
    start_with(disk, provider, &[("retry.unknown", "retry"), ("retry.unknown_tries", "2")]).await
}

/// A call of it panics when the token is cancelled.
fn thinking() -> (Provider, CancellationToken) {
    let thinks = CancellationToken::new();
    let provider = Provider { thinks: Some(thinks.clone()), ..Provider::default() };
    provider.answers(BUG);
    (provider, thinks)
}

fn queue(delivery: &Delivery<Provider>) -> &RetryQueue {
    &delivery.intake.kept.as_ref().unwrap().queue
}

fn uncertain(delivery: &Delivery<Provider>) -> u64 {
    delivery.intake.dispatcher.meter.uncertain()
}

/// A fresh call that panics after its message was stored: the message comes back to its lane, and its
/// call may have arrived. Its entry in the meter and its permit are settled.
#[tokio::test(start_paused = true)]
async fn a_fresh_call_that_panics_after_the_store() {
    let (disk, (provider, thinks)) = (Double::default(), thinking());
    let (delivery, spool) = start_repeating(&disk, &provider).await;
    let message = message("TopicA");
    let id = message.id;
    assert_eq!(delivery.publish(message, SHORT).await.ended, Disposition::Kept(id));
    assert_eq!(spool.find(id).map(|brief| (brief.attempts, brief.doubt)), Some((0, false)));
    thinks.cancel();
    until("its task ends", || delivery.intake.dispatcher.tasks.is_empty()).await;
    let found = spool.find(id).unwrap();
    assert_eq!((found.attempts, found.unknown, found.doubt), (1, 1, true));
    assert_eq!((queue(&delivery).len(), found.state), (1, State::Queued { calling: false }));
    assert_eq!(uncertain(&delivery), 1);
    sleep(WINDOW * 2).await;
    let status = delivery.intake.dispatcher.ceiling.status();
    assert!(status.ceilings.iter().all(|ceiling| ceiling.used == 0), "{status:?}");
    provider.answers(200);
    sleep(AFTER_PANIC).await;
    until("it is delivered", || spool.usage().queued.messages == 0).await;
    assert_eq!(provider.called(), [id]);
}

/// The same while the disk has not stored it yet: the caller is answered, and the message comes back once
/// the disk has it. Time is real.
#[tokio::test]
async fn a_fresh_call_that_panics_during_the_store() {
    let (disk, (provider, thinks)) = (Double::default(), thinking());
    let (delivery, spool) = start_repeating(&disk, &provider).await;
    let held = hold(&disk);
    let message = message("TopicA");
    let id = message.id;
    let asked = tokio::spawn({
        let delivery = delivery.clone();
        async move { delivery.publish(message, SHORT).await }
    });
    until("its store begins", || queue(&delivery).is_calling(id)).await;
    thinks.cancel();
    until("its call panics", || uncertain(&delivery) == 1).await;
    drop(held);
    assert_eq!(asked.await.unwrap().ended, Disposition::Kept(id));
    assert!(queue(&delivery).len() == 1 && spool.find(id).unwrap().doubt);
}

/// What the disk stores only after the caller was answered that its message may not be accepted is not
/// kept, as without a panic. Time is real.
#[tokio::test]
async fn a_panic_during_a_store_that_hangs() {
    let (disk, (provider, thinks)) = (Double::default(), thinking());
    let (delivery, spool) = start_repeating(&disk, &provider).await;
    let held = hold(&disk);
    let message = message("TopicA");
    let id = message.id;
    let asked = tokio::spawn({
        let delivery = delivery.clone();
        async move { delivery.publish(message, SHORT).await }
    });
    until("its store begins", || queue(&delivery).is_calling(id)).await;
    thinks.cancel();
    assert_eq!(asked.await.unwrap(), Outcome::new(1, Disposition::Unanswered));
    drop(held);
    until("its task ends", || delivery.intake.dispatcher.tasks.is_empty()).await;
    spool.flush().await;
    assert_eq!((queue(&delivery).len(), spool.usage().queued.messages), (0, 0));
}

/// A panic between the store and the lane: the caller is answered, the key stays with the message, and
/// the message is delivered once.
#[tokio::test(start_paused = true)]
async fn a_panic_between_the_claim_and_the_lane() {
    let (disk, provider) = (Double::default(), Provider::default());
    let (delivery, spool) = start(&disk, &provider).await;
    NEXT.set("has stored");
    let first = message("TopicA");
    let id = first.id;
    assert_eq!(delivery.publish(first, PATIENT).await.ended, Disposition::Kept(id));
    let again = delivery.publish(message("TopicA"), PATIENT).await;
    assert_eq!((again.ended, again.replayed), (Disposition::Kept(id), true));
    provider.answers(200);
    until("it is delivered", || spool.usage().queued.messages == 0).await;
    assert_eq!(provider.called(), [id]);
    assert!(queue(&delivery).is_quiet());
}

/// A try that panics costs time, not the message, and holds up no others. Its call may have left: what is
/// parked is not called again.
#[tokio::test(start_paused = true)]
async fn a_try_that_panics() {
    let (disk, provider) = (Double::default(), Provider::default());
    let (delivery, spool) = start(&disk, &provider).await;
    provider.answers(BUG);
    let parked = message("TopicA");
    let id = parked.id;
    assert!(delivery.publish(parked, ASYNC).await.is_accepted());
    sleep(Duration::from_secs(1)).await;
    provider.answers(200);
    assert!(delivery.publish(message("TopicA"), ASYNC).await.is_accepted());
    sleep(Duration::from_secs(5)).await;
    assert_eq!((provider.called().len(), spool.usage().dead.messages), (1, 1));
    sleep(AFTER_PANIC).await;
    let usage = spool.usage();
    let left = (usage.queued.messages, usage.dead.messages);
    assert_eq!((provider.called().len(), left), (1, (0, 1)));
    assert!(spool.find(id).unwrap().doubt && queue(&delivery).len() == 0);
}

/// Calls that panic are calls of unknown outcome: no more than `retry.unknown_tries` follow the first.
#[tokio::test(start_paused = true)]
async fn tries_that_all_panic() {
    let (disk, provider) = (Double::default(), Provider::default());
    let (delivery, spool) = start_repeating(&disk, &provider).await;
    provider.answers(BUG);
    let message = message("TopicA");
    let id = message.id;
    assert!(delivery.publish(message, ASYNC).await.is_accepted());
    sleep(Duration::from_mins(10)).await;
    let found = spool.find(id).unwrap();
    assert!(matches!(found.state, State::Dead(_)), "{found:?}");
    assert_eq!((found.attempts, queue(&delivery).len()), (3, 0));
}

/// The same of a probe: the lane goes on with another one.
#[tokio::test(start_paused = true)]
async fn a_probe_that_panics() {
    let (disk, provider) = (Double::default(), Provider::default());
    let (delivery, spool) = start_repeating(&disk, &provider).await;
    provider.answers(403);
    for _ in 0..10 {
        assert!(delivery.publish(message("TopicA"), ASYNC).await.is_accepted());
    }
    until("the lane waits for a probe", || !delivery.paused().is_empty()).await;
    provider.answers(BUG);
    let mut unknown = |brief: &Brief| brief.unknown > 0;
    until("a probe panics", || !spool.list(None, 1, &mut unknown).is_empty()).await;
    provider.answers(200);
    sleep(AFTER_PANIC).await;
    until("all are delivered", || spool.usage().queued.messages == 0).await;
    assert_eq!(queue(&delivery).len(), 0);
}

/// A message that was dropped during a call that panics may have been delivered, and its key says so for
/// ever.
#[tokio::test(start_paused = true)]
async fn a_drop_during_a_call_that_panics() {
    let (disk, (provider, thinks)) = (Double::default(), thinking());
    let (delivery, spool) = start(&disk, &provider).await;
    let asked = tokio::spawn({
        let delivery = delivery.clone();
        async move { delivery.publish(message("TopicA"), PATIENT).await }
    });
    let mut calls = |brief: &Brief| brief.state == State::Queued { calling: true };
    until("it is called", || !spool.list(None, 1, &mut calls).is_empty()).await;
    let selection = Selection { state: Some(Which::Queued), ..Selection::default() };
    assert_eq!(delivery.discard(&selection.pick().unwrap()).await.messages, 1);
    thinks.cancel();
    let outcome = asked.await.unwrap();
    let Disposition::Dropped { id, doubt: true } = outcome.ended else { panic!("{outcome:?}") };
    sleep(Duration::from_mins(3)).await;
    assert!(spool.find(id).unwrap().doubt);
    assert_eq!(queue(&delivery).len(), 0);
}

/// The pump goes on, and what it was about to hand out comes back.
#[tokio::test(start_paused = true)]
async fn a_pump_that_panics() {
    let (disk, provider) = (Double::default(), Provider::default());
    let (delivery, spool) = start(&disk, &provider).await;
    provider.answers(200);
    NEXT.set("hands out");
    for _ in 0..2 {
        assert!(delivery.publish(message("TopicA"), ASYNC).await.is_accepted());
    }
    sleep(AFTER_PANIC).await;
    until("all are delivered", || spool.usage().queued.messages == 0).await;
    assert_eq!((NEXT.get(), queue(&delivery).len()), ("", 0));
}

/// What a peer left is taken up, although a panic ended the first time.
#[tokio::test(start_paused = true)]
async fn a_take_up_that_panics() {
    let (disk, provider) = (Double::default(), Provider::default());
    let (delivery, spool) = start(&disk, &provider).await;
    let mut found = Vec::new();
    for _ in 0..3 {
        let message = message("TopicA");
        spool.keep(&message, None).await.unwrap();
        found.extend(spool.find(message.id));
    }
    NEXT.set("takes up");
    delivery.intake.kept.as_ref().unwrap().adopt(&found).await;
    assert_eq!((NEXT.get(), queue(&delivery).len()), ("", 3));
}
