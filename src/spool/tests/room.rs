//! What gives way to a new message, what ends with age, and how much one topic may take.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::super::{Change, Death, KeepError, Options, Spool, State};
use super::double::Double;
use super::faults::open;
use super::{claim, death, message, options};
use crate::message::{Message, MessageId};

const DAY: Duration = Duration::from_hours(24);

fn bytes(max_bytes: u64) -> Options {
    Options { max_bytes, ..options("/nowhere".as_ref()) }
}

fn messages(max_messages: usize) -> Options {
    Options { max_messages, ..options("/nowhere".as_ref()) }
}

fn ago(seconds: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_secs(seconds)
}

/// Becomes a dead letter so many seconds ago.
async fn dies(spool: &Spool, id: MessageId, seconds: i64) {
    spool.note(id, Change::Dead(1, Death { at: ago(seconds), ..death() })).await;
}

/// Dead letters of these ages, with a claim or not. They die in this order.
async fn dead(spool: &Spool, claimed: bool, body: usize, ages: &[i64]) -> Vec<MessageId> {
    let mut ids = Vec::new();
    for age in ages {
        let refused = message("bad/x", vec![7; body]);
        spool.keep(&refused, claimed.then(claim)).await.unwrap();
        dies(spool, refused.id, *age).await;
        ids.push(refused.id);
    }
    ids
}

async fn keep(spool: &Spool, topic: &str) -> Result<MessageId, KeepError> {
    let kept = message(topic, "good");
    spool.keep(&kept, None).await.map(|()| kept.id)
}

fn is_dead(spool: &Spool, id: MessageId) -> bool {
    spool.find(id).is_some_and(|brief| matches!(brief.state, State::Dead(_)))
}

fn is_dropped(spool: &Spool, id: MessageId) -> bool {
    spool.find(id).is_some_and(|brief| matches!(brief.state, State::Dropped(_)))
}

/// Bodies that the provider refuses do not end all keeping for other topics, with keys or without, in
/// bytes or in messages.
#[tokio::test]
async fn refused_messages_end_no_keeping() {
    for (options, body, claimed) in [
        (bytes(1 << 20), 48 << 10, false),
        (bytes(1 << 20), 48 << 10, true),
        (messages(20), 1, false),
    ] {
        let disk = Double::default();
        let spool = open(&disk, &options).await;
        let waits = keep(&spool, "good/x").await.unwrap();
        let ids = dead(&spool, claimed, body, &[1; 100]).await;
        keep(&spool, "good/x").await.unwrap();
        let usage = spool.usage();
        let (dead, max) = (usage.dead, usage.max);
        assert!(dead.messages <= max.messages && dead.bytes <= max.bytes);
        let half = dead.messages * 2 >= max.messages || dead.bytes * 2 >= max.bytes - 100_000;
        assert!(half, "no more is dropped than is needed: {usage:?}");
        assert_eq!(usage.dropped_dead, [0, 100 - dead.messages]);
        assert!(usage.last_dropped_for_room.is_some());
        assert!(spool.find(waits).is_some());
        // The oldest are gone, and those with a key leave what became of them.
        let gone = ids.len() - usize::try_from(dead.messages).unwrap();
        assert!(ids[gone..].iter().all(|id| is_dead(&spool, *id)));
        if claimed {
            assert!(ids[..gone].iter().all(|id| is_dropped(&spool, *id)));
            assert_eq!(spool.find(ids[0]).unwrap().claim, Some(claim()));
        }
        assert_eq!(spool.take_given_way().messages, gone);
        assert_eq!(spool.take_given_way().messages, 0);
    }
}

/// Dead letters give way oldest first, down to half of the spool, and queued messages never.
#[tokio::test]
async fn the_share_of_dead_letters() {
    let disk = Double::default();
    let options = messages(10);
    let spool = open(&disk, &options).await;
    let ages = [30, 10, 70, 20, 60, 50, 40];
    let ids = dead(&spool, false, 10, &ages).await;
    let mut queued = Vec::new();
    for _ in 0..3 {
        queued.push(keep(&spool, "bad/y").await.unwrap());
    }
    assert_eq!(spool.usage().dropped_dead, [0, 0], "as long as there is room, none is dropped");
    for oldest in [70, 60] {
        let id = ids[ages.iter().position(|age| *age == oldest).unwrap()];
        assert!(is_dead(&spool, id));
        queued.push(keep(&spool, "bad/y").await.unwrap());
        assert_eq!(spool.find(id), None, "its place was needed");
    }
    for _ in 0..3 {
        assert_eq!(keep(&spool, "bad/y").await, Err(KeepError::Full));
    }
    let dead: Vec<_> = ids.iter().filter(|id| is_dead(&spool, **id)).collect();
    assert_eq!(dead.len(), 5, "half of the spool");
    assert!(queued.iter().all(|id| spool.find(*id).is_some()));
    assert_eq!((spool.usage().dropped_dead, spool.usage().refused.full), ([0, 2], 3));
    // The same after a restart.
    drop(spool);
    let spool = open(&disk, &options).await;
    assert_eq!((spool.usage().dead.messages, spool.usage().queued.messages), (5, 5));
    assert_eq!(keep(&spool, "bad/y").await, Err(KeepError::Full));
}

/// What is short counts: dead letters that take more than half of the other are left alone.
#[tokio::test]
async fn the_share_is_of_what_is_short() {
    let small = Options { max_bytes: 100_000, ..messages(10) };
    let spool = open(&Double::default(), &small).await;
    let many = dead(&spool, false, 10, &[9; 6]).await;
    for _ in 0..3 {
        spool.keep(&message("good/x", vec![7; 30_000]), None).await.unwrap();
    }
    let large = message("good/x", vec![7; 30_000]);
    assert_eq!(spool.keep(&large, None).await, Err(KeepError::Full));
    assert!(many.iter().all(|id| is_dead(&spool, *id)), "they have few bytes");

    let few = Options { max_messages: 4, ..small };
    let spool = open(&Double::default(), &few).await;
    let large = dead(&spool, false, 30_000, &[9; 2]).await;
    for _ in 0..2 {
        keep(&spool, "good/x").await.unwrap();
    }
    assert_eq!(keep(&spool, "good/x").await, Err(KeepError::Full));
    assert!(large.iter().all(|id| is_dead(&spool, *id)), "they are few");
}

/// Where the bounds were lowered, more is to give way than is looked at for one message: keeping begins
/// again after some.
#[tokio::test]
async fn far_over_a_lowered_bound() {
    let disk = Double::default();
    let spool = open(&disk, &messages(10_000)).await;
    let queued = keep(&spool, "good/x").await.unwrap();
    let ages: Vec<_> = (1..=3_200).rev().collect();
    dead(&spool, false, 10, &ages).await;
    drop(spool);
    let spool = open(&disk, &messages(500)).await;
    let mut refused = 0;
    let kept = loop {
        match keep(&spool, "good/x").await {
            Ok(id) => break id,
            Err(error) => assert_eq!(error, KeepError::Full),
        }
        refused += 1;
        assert!(refused < 10, "{:?}", spool.usage());
    };
    assert!(refused > 0);
    assert!(spool.find(queued).is_some() && spool.find(kept).is_some());
    let usage = spool.usage();
    assert!(usage.dead.messages >= 250, "no more than need be: {usage:?}");
}

/// A key that is taken is answered from what is left of its message: that stays, and where its place is
/// what a new message needs, dropping the dead letter would be of no use.
#[tokio::test]
async fn taken_keys_hold_their_places() {
    let disk = Double::default();
    let spool = open(&disk, &messages(4)).await;
    let ids = dead(&spool, true, 1_000, &[5, 4, 3, 2]).await;
    assert_eq!(keep(&spool, "good/x").await, Err(KeepError::Full));
    assert!(ids.iter().all(|id| is_dead(&spool, *id)));
    // One without a key is younger, and gives way.
    spool.note(ids[3], Change::Forgotten).await;
    let bare = dead(&spool, false, 1_000, &[1]).await;
    keep(&spool, "good/x").await.unwrap();
    assert_eq!(spool.find(bare[0]), None);
    assert!(ids[..3].iter().all(|id| is_dead(&spool, *id)));
    // When their keys are free, they do.
    let spool = open(&Double::default(), &messages(4)).await;
    let ids = dead(&spool, true, 1_000, &[700, 650, 3, 2]).await;
    for gone in 1..=2 {
        keep(&spool, "good/x").await.unwrap();
        let left = ids.iter().map(|id| spool.find(*id).is_some());
        assert_eq!(left.filter(|found| !found).count(), gone);
    }
    assert!(ids[2..].iter().all(|id| is_dead(&spool, *id)));
}

/// What is smaller than its receipt would be makes no room by being dropped.
#[tokio::test]
async fn small_dead_letters_make_room() {
    for claimed in [false, true] {
        let spool = open(&Double::default(), &bytes(100_000)).await;
        let mut ids = dead(&spool, claimed, 0, &[700; 10]).await;
        ids.extend(dead(&spool, claimed, 20_000, &[5; 4]).await);
        let large = message("good/x", vec![7; 30_000]);
        spool.keep(&large, None).await.unwrap();
        let usage = spool.usage();
        assert!(usage.queued.bytes + usage.dead.bytes + usage.receipts.bytes <= 100_000);
        assert!(usage.dropped_dead[1] > 0 && usage.dead.bytes > 30_000, "{usage:?}");
    }
}

/// Nothing is dropped for a message that does not fit all the same.
#[tokio::test]
async fn nothing_is_dropped_in_vain() {
    let spool = open(&Double::default(), &bytes(100_000)).await;
    let ids = dead(&spool, false, 10_000, &[9, 8, 7, 6, 5, 4, 3]).await;
    let large = message("good/x", vec![7; 60_000]);
    assert_eq!(spool.keep(&large, None).await, Err(KeepError::Full));
    assert!(ids.iter().all(|id| is_dead(&spool, *id)));
    assert_eq!(spool.usage().dropped_dead, [0, 0]);
}

/// Old dead letters are dropped, a page at a time, oldest first; younger ones, and queued messages of
/// any age, stay. A receipt says what became of each, also after a restart.
#[tokio::test]
async fn old_dead_letters_end() {
    let disk = Double::default();
    let options = options("/nowhere".as_ref());
    let spool = open(&disk, &options).await;
    let now = Timestamp::now();
    let waits = keep(&spool, "good/x").await.unwrap();
    let old = dead(&spool, false, 100, &[7_200; 501]).await;
    let claimed = dead(&spool, true, 100, &[7_300]).await[0];
    let young = dead(&spool, false, 100, &[3_500]).await[0];
    let keep_dead = Duration::from_hours(1);
    let first = spool.drop_dead_since(keep_dead, now).await;
    assert_eq!((first.messages, first.first[0]), (500, claimed));
    assert_eq!(first.first[1..], old[..first.first.len() - 1]);
    let rest = spool.drop_dead_since(keep_dead, now).await;
    assert_eq!((rest.messages, &rest.first[..]), (2, &old[499..]));
    assert_eq!(spool.drop_dead_since(keep_dead, now).await.messages, 0);
    assert!(is_dead(&spool, young) && spool.find(waits).is_some());
    let usage = spool.usage();
    assert_eq!((usage.dropped_dead, usage.dead.messages, usage.queued.messages), ([502, 0], 1, 1));
    assert_eq!(usage.last_dropped_for_room, None);
    assert_eq!(spool.take_given_way().messages, 0, "its caller records it");
    for id in [claimed, old[0], old[500]] {
        assert!(is_dropped(&spool, id));
    }
    // A second later the young one, too: after a restart.
    drop(spool);
    let spool = open(&disk, &options).await;
    assert!(is_dropped(&spool, claimed) && spool.find(claimed).unwrap().claim == Some(claim()));
    assert_eq!(spool.drop_dead_since(keep_dead, now).await.messages, 0);
    let later = now + SignedDuration::from_secs(101);
    let last = spool.drop_dead_since(keep_dead, later).await;
    assert_eq!(last.first, [young]);
    assert_eq!(spool.usage().queued.messages, 1);
}

/// One that an operator replays at the same moment is delivered, and not dropped.
#[tokio::test]
async fn a_replayed_message_is_not_dropped() {
    let spool = open(&Double::default(), &options("/nowhere".as_ref())).await;
    let id = dead(&spool, true, 10, &[7_200]).await[0];
    spool.note(id, Change::Replayed(Timestamp::now())).await;
    assert_eq!(spool.drop_dead_since(Duration::ZERO, Timestamp::now()).await.messages, 0);
    assert_eq!(spool.find(id).unwrap().state, State::Queued { calling: false });
    dies(&spool, id, 1).await;
    assert_eq!(spool.drop_dead_since(Duration::ZERO, Timestamp::now()).await.first, [id]);
    assert!(!spool.note(id, Change::Replayed(Timestamp::now())).changed);
}

/// A process that dies while it drops loses no message but those, and the next one drops the rest once.
#[tokio::test(start_paused = true)]
async fn a_crash_between() {
    for seed in 0..50 {
        let disk = Double::default();
        let options = options("/nowhere".as_ref());
        let spool = open(&disk, &options).await;
        let waits = keep(&spool, "good/x").await.unwrap();
        let ids = dead(&spool, seed % 2 == 0, 100, &[7_200; 20]).await;
        disk.state().fail_in = Some(seed % 3);
        let mut dropping = Box::pin(spool.drop_dead_since(DAY / 24, Timestamp::now()));
        // It writes what it can, and does not end.
        let soon = tokio::time::timeout(Duration::from_millis(1), &mut dropping).await;
        drop(dropping);
        disk.crash(&mut fastrand::Rng::with_seed(seed));
        drop(spool);
        let spool = open(&disk, &options).await;
        let before = ids.iter().filter(|id| is_dropped(&spool, **id)).count();
        assert!(ids.iter().all(|id| is_dead(&spool, *id) || is_dropped(&spool, *id)));
        if let Ok(dropped) = soon {
            assert_eq!(dropped.messages, before);
        }
        let rest = spool.drop_dead_since(DAY / 24, Timestamp::now()).await;
        assert_eq!(before + rest.messages, ids.len());
        assert!(spool.find(waits).is_some() && spool.usage().damaged == 0);
    }
}

/// A topic that takes all it can leaves room to others while they are in use, and gets all where it is
/// alone.
#[tokio::test(start_paused = true)]
async fn the_share_of_a_topic() {
    let disk = Double::default();
    let options = messages(90);
    let spool = open(&disk, &options).await;
    // Alone, under two topics of one parent.
    let mut alone = Vec::new();
    while let Ok(kept) = keep(&spool, if alone.len() % 2 == 0 { "aaa/x" } else { "aaa/y" }).await {
        spool.published(&message("aaa/x", "").lane());
        alone.push(kept);
    }
    assert_eq!((alone.len(), spool.usage().refused.topic_share), (90, 0));
    for id in alone.drain(10..) {
        spool.note(id, Change::Forgotten).await;
    }
    // Another one is published to, and all of its messages are delivered at once.
    let other = message("bbb/x", "y");
    spool.published(&other.lane());
    let mut refused = KeepError::Full;
    for _ in 0..200 {
        match keep(&spool, "aaa/x").await {
            Ok(kept) => alone.push(kept),
            Err(error) => refused = error,
        }
    }
    assert_eq!((alone.len(), refused), (81, KeepError::TopicShare), "8 of 9 parts");
    assert_eq!(spool.usage().refused.topic_share, 200 - 71);
    // Its outage: it has its own share of what is free.
    let mut others = Vec::new();
    while let Ok(kept) = keep(&spool, "bbb/x").await {
        others.push(kept);
    }
    assert_eq!(others.len(), 9);
    assert_eq!(keep(&spool, "bbb/x").await, Err(KeepError::Full));
    for id in others {
        spool.note(id, Change::Forgotten).await;
    }
    // Not in use for an hour.
    assert_eq!(keep(&spool, "aaa/x").await, Err(KeepError::TopicShare));
    tokio::time::advance(Duration::from_mins(61)).await;
    for _ in 81..90 {
        keep(&spool, "aaa/x").await.unwrap();
    }
    assert_eq!(keep(&spool, "aaa/x").await, Err(KeepError::Full));
    // Of others that hold something a restart knows.
    for id in alone.drain(..20) {
        spool.note(id, Change::Forgotten).await;
    }
    keep(&spool, "bbb/x").await.unwrap();
    drop(spool);
    let spool = open(&disk, &options).await;
    while keep(&spool, "aaa/x").await.is_ok() {}
    assert_eq!(keep(&spool, "aaa/x").await, Err(KeepError::TopicShare));
    keep(&spool, "bbb/x").await.unwrap();
    keep(&spool, "ccc/x").await.unwrap();
}

/// Bytes count like messages, dead letters like queued ones, and what is being written like what is.
#[tokio::test]
async fn all_that_a_topic_holds_counts() {
    let spool = open(&Double::default(), &bytes(900_000)).await;
    spool.published(&message("bbb/x", "y").lane());
    let keeps = (0..200).map(|_| {
        let (spool, large) = (spool.clone(), message("aaa/x", vec![7; 10_000]));
        tokio::spawn(async move { spool.keep(&large, None).await.map(|()| large.id) })
    });
    let mut kept = Vec::new();
    for keep in keeps.collect::<Vec<_>>() {
        kept.extend(keep.await.unwrap().ok());
    }
    let used = spool.usage().queued.bytes;
    assert!((790_000..820_000).contains(&used), "{used}");
    for id in &kept[..30] {
        dies(&spool, *id, 5).await;
    }
    let large = message("aaa/x", vec![7; 10_000]);
    assert_eq!(spool.keep(&large, None).await, Err(KeepError::TopicShare));
    assert_eq!(spool.usage().dropped_dead, [0, 0]);
    for id in &kept[..30] {
        spool.note(*id, Change::Forgotten).await;
    }
    spool.keep(&large, None).await.unwrap();
}

/// A caller fills no more of the spool than its part, be it alone or not; a caller without a part may fill all.
/// What it holds counts after a restart, too, and dead letters count like queued ones.
#[tokio::test]
async fn the_part_of_a_caller() {
    let disk = Double::default();
    let caller_shares = Arc::new([("batch".into(), 0.1)].into());
    let options = Options { caller_shares, ..messages(100) };
    let spool = open(&disk, &options).await;
    let of = |caller: &str| Message { caller: Some(caller.into()), ..message("aaa/x", "y") };
    let mut kept = Vec::new();
    for _ in 0..10 {
        let message = of("batch");
        spool.keep(&message, None).await.unwrap();
        kept.push(message.id);
    }
    assert_eq!(spool.keep(&of("batch"), None).await, Err(KeepError::CallerShare));
    dies(&spool, kept[0], 5).await;
    assert_eq!(spool.keep(&of("batch"), None).await, Err(KeepError::CallerShare));
    spool.keep(&of("orders"), None).await.unwrap();
    spool.keep(&message("aaa/x", "y"), None).await.unwrap();
    assert_eq!(spool.usage().refused.caller_share, 2);
    drop(spool);
    let spool = open(&disk, &options).await;
    assert_eq!(spool.keep(&of("batch"), None).await, Err(KeepError::CallerShare));
    spool.note(kept[1], Change::Forgotten).await;
    spool.keep(&of("batch"), None).await.unwrap();
    assert_eq!(spool.find(kept[2]).unwrap().caller.as_deref(), Some("batch"));
    for _ in 0..80 {
        spool.keep(&of("orders"), None).await.unwrap();
    }
}
