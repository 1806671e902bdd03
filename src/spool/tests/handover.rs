//! From a disk to a real Redis.

use std::time::Duration;

use tokio::time::Instant;

use super::super::{Change, KeepError, OpenError, Options, Spool, State};
use super::shared::{CALM, fleet, share, share_of};
use super::{claim, death, message, options, receipt, reopen};
use crate::message::Payload;
use crate::redis_client::server::Redis;

fn later() -> Instant {
    Instant::now() + Duration::from_mins(1)
}

#[tokio::test]
async fn a_disk_hands_its_rest_over() {
    let redis = Redis::start();
    let folder = tempfile::tempdir().unwrap();
    let disk = Spool::open(options(folder.path())).await.unwrap();
    let mut kept: Vec<_> = (0..250).map(|i| message("abc/d", format!("body {i}"))).collect();
    kept[5].payload = Payload::encoded("Ym9keQ==".into()).unwrap();
    for message in &kept {
        disk.keep(message, Some(claim())).await.unwrap();
    }
    disk.note(kept[1].id, Change::Calling).await;
    disk.note(kept[2].id, Change::Tried(3.into())).await;
    disk.note(kept[3].id, Change::Dead(4, death())).await;
    disk.note(kept[4].id, Change::Delivered(1, receipt())).await;
    let mut before = disk.list(None, usize::MAX, &mut |_| true);
    before.retain(|brief| !matches!(brief.state, State::Delivered(_)));

    // Too late, nothing begins.
    let late = share(&redis, "a", CALM).await;
    assert_eq!(disk.hand_over(&late, Instant::now()).await, Ok(0));
    assert_eq!(disk.list(None, usize::MAX, &mut |_| true).len(), 250);

    let full = Options { max_messages: 120, ..options("/nowhere".as_ref()) };
    let small = share_of(&redis, "small", CALM, None, full).await;
    assert_eq!(disk.hand_over(&small, later()).await, Err(KeepError::Full));
    let there = small.list(None, usize::MAX, &mut |_| true);
    let here =
        disk.list(None, usize::MAX, &mut |brief| !matches!(brief.state, State::Delivered(_)));
    assert_eq!((there.len(), here.len()), (120, 129), "each is in one place");
    assert_eq!([there, here.clone()].concat(), before);

    let shared = share(&redis, "a", CALM).await;
    assert_eq!(disk.hand_over(&shared, later()).await, Ok(129));
    assert_eq!(shared.list(None, usize::MAX, &mut |_| true), here);
    for message in kept.iter().filter(|message| here.iter().any(|brief| brief.id == message.id)) {
        assert_eq!(shared.read(message.id).await.unwrap().message.payload, message.payload);
    }
    drop(disk);
    let disk = reopen(&options(folder.path())).await;
    assert_eq!(disk.list(None, usize::MAX, &mut |_| true).len(), 1, "the receipt");
}

/// What is on a disk is not left there unseen.
#[tokio::test]
async fn a_disk_that_still_holds_messages_is_not_passed_over() {
    let redis = Redis::start();
    let folder = tempfile::tempdir().unwrap();
    let disk = Spool::open(options(folder.path())).await.unwrap();
    let [queued, dead] = std::array::from_fn(|_| message("abc", "x"));
    for message in [&queued, &dead] {
        disk.keep(message, Some(claim())).await.unwrap();
    }
    disk.note(dead.id, Change::Dead(4, death())).await;
    drop(disk);
    let open = async || {
        let options = options(folder.path());
        Spool::share(&fleet(&redis, "a"), Some(folder.path()), options).await
    };
    drop(reopen(&options(folder.path())).await);
    let Err(OpenError::Left { messages: 2, path }) = open().await else { panic!("it opened") };
    assert_eq!(path, folder.path());

    let disk = reopen(&options(folder.path())).await;
    disk.note(queued.id, Change::Delivered(1, receipt())).await;
    disk.note(dead.id, Change::Forgotten).await;
    drop(disk);
    drop(reopen(&options(folder.path())).await);
    drop(open().await.expect("a receipt is nothing to deliver"));
    open().await.expect("and again");
}

/// As after a kill -9 in the middle of a hand-over: what is in both places is forgotten on the disk.
#[tokio::test]
async fn what_was_handed_over_before_is_not_in_the_way() {
    let redis = Redis::start();
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk = Spool::open(options(folder.path())).await.unwrap();
    let kept = message("abc", "x");
    disk.keep(&kept, None).await.unwrap();
    for file in std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap) {
        if file.metadata().unwrap().is_file() {
            std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
    }
    let first = share(&redis, "a", CALM).await;
    assert_eq!(disk.hand_over(&first, later()).await, Ok(1));

    let disk = Spool::open(options(copy.path())).await.unwrap();
    assert!(disk.find(kept.id).is_some());
    disk.keep(&message("abc", "y"), None).await.unwrap();
    let second = share(&redis, "a", CALM).await;
    assert_eq!(disk.hand_over(&second, later()).await, Ok(2));
    assert_eq!(disk.list(None, usize::MAX, &mut |_| true), []);
    let (first, second) = (first.usage().queued.messages, second.usage().queued.messages);
    assert_eq!((first, second), (1, 1), "each has one owner");
}
