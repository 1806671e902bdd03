//! How much there is of everything.

use jiff::{SignedDuration, Timestamp};

use super::super::{Change, Doubt, Spool, State};
use super::double::Double;
use super::faults::open;
use super::{claim, death, message, options, receipt};
use crate::message::MessageId;

async fn keep_many(spool: &Spool, count: usize, len: usize) -> Vec<MessageId> {
    let keeps = (0..count).map(|_| {
        let (spool, message) = (spool.clone(), message("abc/d", vec![5; len]));
        tokio::spawn(async move { spool.keep(&message, None).await.map(|()| message.id) })
    });
    let mut ids = Vec::with_capacity(count);
    for keep in keeps.collect::<Vec<_>>() {
        ids.push(keep.await.unwrap().unwrap());
    }
    ids
}

#[tokio::test]
async fn a_hundred_thousand_messages_come_back() {
    let disk = Double::default();
    let mut options = options("/nowhere".as_ref());
    (options.max_bytes, options.max_messages) = (256 << 20, 100_000);
    let spool = open(&disk, &options).await;
    for _ in 0..50 {
        keep_many(&spool, 2_000, 1_024).await;
    }
    let before = spool.usage();
    assert_eq!(before.queued.messages, 100_000);
    drop(spool);
    let after = open(&disk, &options).await.usage();
    assert_eq!((after.queued, after.oldest, after.damaged), (before.queued, before.oldest, 0));
}

#[tokio::test]
async fn receipts_end_and_do_not_come_back() {
    let disk = Double::default();
    let mut options = options("/nowhere".as_ref());
    let spool = open(&disk, &options).await;
    let ids = keep_many(&spool, 2, 10).await;
    let mut old = receipt();
    old.at = Timestamp::now() - SignedDuration::from_hours(2);
    spool.note(ids[0], Change::Delivered(1, old)).await;
    spool.note(ids[1], Change::Delivered(1, receipt())).await;
    assert_eq!(spool.find(ids[0]), None);
    assert!(spool.find(ids[1]).is_some());
    assert_eq!(spool.usage().receipts.messages, 1);
    drop(spool);
    let spool = open(&disk, &options).await;
    assert_eq!(spool.usage().receipts.messages, 1);
    assert_eq!(spool.usage().queued.messages, 0);
    drop(spool);
    options.keep_receipts = std::time::Duration::ZERO;
    assert_eq!(open(&disk, &options).await.usage().receipts.messages, 0);
}

#[tokio::test]
async fn an_end_is_final_but_for_a_dead_letters() {
    let disk = Double::default();
    let spool = open(&disk, &options("/nowhere".as_ref())).await;
    let ids = keep_many(&spool, 2, 10).await;
    spool.note(ids[0], Change::Delivered(1, receipt())).await;
    let before = spool.find(ids[0]);
    let dropped = Change::Dropped { at: Timestamp::now(), doubt: true };
    for change in [Change::Calling, Change::Tried(9.into()), Change::Dead(9, death()), dropped] {
        spool.note(ids[0], change).await;
        assert_eq!(spool.find(ids[0]), before);
    }
    spool.note(ids[1], Change::Dead(3, death())).await;
    spool.note(ids[1], Change::Tried(9.into())).await;
    assert_eq!(spool.find(ids[1]).unwrap().attempts, 3);
    spool.note(ids[1], Change::Replayed(Timestamp::now())).await;
    assert_eq!(spool.find(ids[1]).unwrap().state, State::Queued { calling: false });
    // Nobody knows it: nothing to wait for.
    spool.note(MessageId::new(), Change::Forgotten).await;
}

#[tokio::test]
async fn little_damage_is_set_aside() {
    let disk = Double::default();
    let options = options("/nowhere".as_ref());
    let aside = |disk: &Double| {
        let files = disk.state().files.clone();
        files.into_iter().filter(|(name, _)| name.starts_with("damaged/")).collect::<Vec<_>>()
    };
    for _ in 0..100 {
        let spool = open(&disk, &options).await;
        let id = keep_many(&spool, 1, 100).await[0];
        let log = disk.state().files.keys().rfind(|name| !name.contains('/')).unwrap().clone();
        disk.state().files.get_mut(&log).unwrap().bytes[100] ^= 1;
        spool.read(id).await.unwrap_err();
        spool.flush().await;
    }
    assert_eq!(aside(&disk).len(), 64);
    assert!(aside(&disk).iter().all(|(_, file)| file.bytes.len() <= 1 << 20));
}

/// Whoever reads does not notice that a message is moved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_copes_with_moving() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    options.max_bytes = 1 << 20;
    let spool = Spool::open(options).await.unwrap();
    let pinned = message("abc", vec![3; 500]);
    spool.keep(&pinned, Some(claim())).await.unwrap();
    let writer = {
        let spool = spool.clone();
        tokio::spawn(async move {
            for _ in 0..100 {
                for id in keep_many(&spool, 20, 1_000).await {
                    drop(spool.note(id, Change::Forgotten));
                }
            }
        })
    };
    let mut reads = 0;
    while !writer.is_finished() || reads == 0 {
        let read = spool.read(pinned.id).await.unwrap();
        assert_eq!(read.message.payload, pinned.payload);
        reads += 1;
    }
    writer.await.unwrap();
}

/// Receipts of messages with a claim give way only when their keys are no longer to be known.
#[tokio::test]
async fn receipts_with_a_claim_do_not_give_way() {
    let ago = |seconds| Timestamp::now() - SignedDuration::from_secs(seconds);
    let dropped = Change::Dropped { at: ago(1), doubt: false };
    let delivered = |seconds| {
        let at = ago(seconds);
        Change::Delivered(1, crate::spool::Receipt { at, ..receipt() })
    };
    for (change, has_claim, gives_way) in [
        (delivered(1), true, false),
        (dropped, true, false),
        (delivered(601), true, true),
        (delivered(1), false, true),
    ] {
        let disk = Double::default();
        let mut options = options("/nowhere".as_ref());
        options.max_messages = 2;
        let spool = open(&disk, &options).await;
        let ended = message("abc", "x");
        spool.keep(&ended, has_claim.then(claim)).await.unwrap();
        spool.note(ended.id, change.clone()).await;
        keep_many(&spool, 1, 10).await;
        // The same after a restart.
        drop(spool);
        let spool = open(&disk, &options).await;
        let before = spool.find(ended.id);
        let kept = spool.keep(&message("abc", "y"), None).await;
        assert_eq!(kept.is_ok(), gives_way, "{change:?}");
        let after = if gives_way { None } else { before };
        assert_eq!(spool.find(ended.id), after);
    }
}

/// A message that was dropped leaves its claim, and a call that was under way decides after all.
#[tokio::test]
async fn what_is_left_of_a_dropped_message() {
    let disk = Double::default();
    let options = options("/nowhere".as_ref());
    let spool = open(&disk, &options).await;
    let [kept, called, taken] = std::array::from_fn(|_| message("abc", vec![3; 500]));
    for message in [&kept, &called, &taken] {
        spool.keep(message, Some(claim())).await.unwrap();
        spool.note(message.id, Spool::dropped(Doubt::None)).await;
    }
    spool.note(called.id, Change::Decided { doubt: false }).await;
    spool.note(called.id, Change::Decided { doubt: true }).await;
    spool.note(taken.id, Change::Delivered(1, receipt())).await;
    for change in [Change::Calling, Change::Tried(9.into()), Change::Dead(9, death())] {
        assert!(!spool.note(kept.id, change).changed);
    }
    assert!(spool.usage().receipts.bytes < 1_500);
    let before = spool.list(None, 9, &mut |_| true);
    let seen: Vec<_> = before.iter().map(|b| (b.state.is_final(), b.doubt, b.claim)).collect();
    let claim = Some(claim());
    assert_eq!(seen, [(true, false, claim), (true, true, claim), (true, false, claim)]);
    assert!(matches!(spool.find(taken.id).unwrap().state, State::Delivered(_)));
    let usage = spool.usage();
    drop(spool);
    let again = open(&disk, &options).await;
    assert_eq!(again.list(None, 9, &mut |_| true), before);
    assert_eq!(again.usage().receipts, usage.receipts);
}
