//! On a real disk.

use super::super::{Change, KeepError, OpenError, ReadError, Share, Spool, State};
use super::{claim, death, message, options, receipt, reopen};
use jiff::Timestamp;

#[tokio::test]
async fn what_is_kept_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder.path().join("spool"));
    let spool = Spool::open(options.clone()).await.unwrap();
    let [queued, calling, tried, delivered, dead, replayed, forgotten] =
        std::array::from_fn(|i| message("abc/d", format!("body {i}")));
    for kept in [&queued, &calling, &tried, &delivered, &dead, &replayed, &forgotten] {
        spool.keep(kept, Some(claim())).await.unwrap();
    }
    let again: Timestamp = "2031-01-01T00:00:00.123456789Z".parse().unwrap();
    spool.note(calling.id, Change::Calling).await;
    spool.note(tried.id, Change::Calling).await;
    spool.note(tried.id, Change::Tried(3.into())).await;
    spool.note(delivered.id, Change::Delivered(2, receipt())).await;
    spool.note(dead.id, Change::Dead(9, death())).await;
    spool.note(replayed.id, Change::Dead(9, death())).await;
    spool.note(replayed.id, Change::Replayed(again)).await;
    spool.note(forgotten.id, Change::Forgotten).await;
    let before = spool.list(None, 100, &mut |_| true);
    let usage = spool.usage();
    assert_eq!(before.len(), 6);
    assert_eq!(
        (usage.queued.messages, usage.dead.messages, usage.receipts.messages),
        (4, 1, 1),
        "{usage:?}"
    );
    assert_eq!(spool.find(calling.id).unwrap().state, State::Queued { calling: true });
    assert_eq!(spool.find(replayed.id).unwrap().kept_at, again);
    spool.flush().await;
    drop(spool);

    let spool = reopen(&options).await;
    assert_eq!(spool.list(None, 100, &mut |_| true), before);
    assert_eq!(format!("{:?}", spool.usage()), format!("{usage:?}"));
    let read = spool.read(replayed.id).await.unwrap();
    assert_eq!(read.message.payload, replayed.payload);
    assert_eq!(read.message.topic, replayed.topic);
    assert!(spool.read(delivered.id).await.unwrap().message.payload.as_bytes().is_empty());
    assert_eq!(spool.read(forgotten.id).await.unwrap_err(), ReadError::Absent);
    let two = spool.list(Some(calling.id), 2, &mut |brief| brief.attempts > 0);
    assert_eq!(two, [before[2].clone(), before[3].clone()]);
}

#[tokio::test]
async fn one_process_holds_it() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(options(folder.path())).await.unwrap();
    let second = Spool::open(options(folder.path())).await;
    assert!(matches!(second, Err(OpenError::Taken(_))));
    drop(spool);
}

#[tokio::test]
async fn a_full_spool_refuses_and_receipts_give_way() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    options.max_messages = 3;
    let spool = Spool::open(options).await.unwrap();
    let [first, second, third, late, later] = std::array::from_fn(|_| message("abc", "x"));
    for kept in [&first, &second, &third] {
        spool.keep(kept, None).await.unwrap();
    }
    assert_eq!(spool.keep(&late, None).await, Err(KeepError::Full));
    spool.note(second.id, Change::Delivered(1, receipt())).await;
    spool.keep(&late, None).await.unwrap();
    assert_eq!(spool.find(second.id), None);
    assert_eq!(spool.usage().receipts, Share::default());
    assert_eq!(spool.keep(&later, None).await, Err(KeepError::Full));
}
