//! On a disk that fails as told.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::super::facts::Reported;
use super::super::frame::{PendingRecord, RecordKind};
use super::super::open::on_disk;
use super::super::{Brief, Change, KeepError, Options, ReadError, Spool, State};
use super::double::Double;
use super::{claim, death, message, options, receipt};
use crate::message::MessageId;

pub(crate) async fn open(disk: &Double, options: &Options) -> Spool {
    let opened = on_disk(Arc::new(disk.mount()), options.clone()).await;
    let spool = Spool { engine: opened.unwrap() };
    spool.flush().await;
    spool
}

/// Whether nothing goes on that will not wait for the disk.
pub(crate) fn settled(spool: &Spool, disk: &Double) -> bool {
    disk.waits() || !spool.engine.core.queue().writing
}

fn small() -> Options {
    let mut options = options("/nowhere".as_ref());
    options.max_bytes = 1 << 20;
    options
}

fn all(spool: &Spool) -> Vec<Brief> {
    spool.list(None, usize::MAX, &mut |_| true)
}

/// A spool with every kind of frame, in two segments.
async fn one_of_each(disk: &Double) -> Vec<MessageId> {
    let mut ids = Vec::new();
    for half in 0..2 {
        let spool = open(disk, &small()).await;
        for i in 0..4 {
            let kept = message("abc/d", vec![b'a' + half; 40]);
            ids.push(kept.id);
            spool.keep(&kept, Some(claim())).await.unwrap();
            spool.note(kept.id, Change::Calling).await;
            spool.note(kept.id, Change::Tried(1.into())).await;
            match i {
                0 => drop(spool.note(kept.id, Change::Delivered(2, receipt())).await),
                1 => {
                    spool.note(kept.id, Change::Dead(1, death())).await;
                    spool.note(kept.id, Change::Replayed(death().at)).await;
                }
                2 => drop(spool.note(kept.id, Change::Forgotten).await),
                _ => drop(spool.note(kept.id, Change::Dead(1, death())).await),
            }
        }
        spool.flush().await;
    }
    ids
}

#[tokio::test]
async fn a_damaged_byte_costs_at_most_its_record() {
    let disk = Double::default();
    one_of_each(&disk).await;
    let before = all(&open(&disk, &small()).await);
    assert_eq!(before.len(), 6);
    let files: Vec<_> = disk.state().files.clone().into_iter().collect();
    let mut places = 0;
    for (name, file) in &files {
        for at in 0..file.bytes.len() {
            let disk = Double::default();
            disk.state().files = files.iter().cloned().collect();
            disk.state().files.get_mut(name).unwrap().bytes[at] ^= 0x41;
            disk.sync_all();
            let spool = open(&disk, &small()).await;
            let after = all(&spool);
            assert_eq!(spool.usage().damaged, 1, "{name} {at}");
            // Ids that are known now, and are or were something else.
            let differ = before
                .iter()
                .map(|brief| brief.id)
                .chain(after.iter().map(|brief| brief.id))
                .filter(|id| {
                    before.iter().find(|brief| brief.id == *id)
                        != after.iter().find(|brief| brief.id == *id)
                })
                .collect::<std::collections::BTreeSet<_>>();
            assert!(differ.len() <= 1, "{name} {at}: {differ:?}");
            for brief in &after {
                spool.read(brief.id).await.unwrap();
            }
            // It is found once.
            spool.flush().await;
            let again = open(&disk, &small()).await;
            assert_eq!((again.usage().damaged, all(&again)), (0, after), "{name} {at}");
            places += 1;
        }
    }
    assert!(places > 2_000, "{places}");
}

#[tokio::test]
async fn a_torn_tail_is_no_message() {
    let disk = Double::default();
    let spool = open(&disk, &small()).await;
    let (first, second) = (message("abc", vec![1; 300]), message("abc", vec![2; 300]));
    spool.keep(&first, None).await.unwrap();
    let whole = disk.state().files.values().next().unwrap().bytes.len();
    spool.keep(&second, None).await.unwrap();
    drop(spool);
    let files = disk.state().files.clone();
    let (name, file) = files.iter().next().unwrap();
    for end in whole + 1..file.bytes.len() {
        let disk = Double::default();
        disk.state().files = files.clone();
        disk.state().files.get_mut(name).unwrap().bytes.truncate(end);
        disk.sync_all();
        let spool = open(&disk, &small()).await;
        assert_eq!(all(&spool).len(), 1, "{end}");
        assert_eq!(spool.usage().damaged, 1);
        assert_eq!(spool.read(first.id).await.unwrap().message.payload, first.payload);
        spool.keep(&second, None).await.unwrap();
        spool.read(second.id).await.unwrap();
    }
}

#[tokio::test]
async fn a_frame_in_a_payload_is_not_taken_for_one() {
    let disk = Double::default();
    let spool = open(&disk, &small()).await;
    // What a stranger can make: all but the salt. And a true frame, copied from elsewhere.
    let mut body = Vec::new();
    for salt in 0..20 {
        for offset in 0..20 {
            let forged = PendingRecord::bare(RecordKind::Forgotten, MessageId::new());
            forged.encode(salt, offset, &mut body);
        }
    }
    let first = message("abc", "first");
    spool.keep(&first, None).await.unwrap();
    body.extend_from_slice(&disk.state().files.values().next().unwrap().bytes);
    let second = message("abc", body);
    spool.keep(&second, None).await.unwrap();
    spool.note(first.id, Change::Forgotten).await;
    let third = message("abc", "third");
    spool.keep(&third, None).await.unwrap();
    drop(spool);
    let name = disk.state().files.keys().next().unwrap().clone();
    let head = {
        let state = disk.state();
        let bytes = &state.files[&name].bytes;
        let magic = super::super::frame::MAGIC;
        bytes.windows(4).enumerate().skip(1).find(|(_, four)| *four == magic).unwrap().0
    };
    disk.state().files.get_mut(&name).unwrap().bytes[head + 9] ^= 1;
    disk.sync_all();
    let spool = open(&disk, &small()).await;
    let left: Vec<_> = all(&spool).into_iter().map(|brief| brief.id).collect();
    assert_eq!(left, [third.id]);
    assert_eq!(spool.usage().damaged, 1);
}

#[tokio::test]
async fn damage_under_our_hands_is_found_on_reading() {
    let disk = Double::default();
    let spool = open(&disk, &small()).await;
    let (first, second) = (message("abc", "first"), message("abc", "second"));
    spool.keep(&first, None).await.unwrap();
    spool.keep(&second, None).await.unwrap();
    disk.state().files.values_mut().next().unwrap().bytes[60] ^= 1;
    assert_eq!(spool.read(first.id).await.unwrap_err(), ReadError::Damaged);
    assert_eq!(spool.read(first.id).await.unwrap_err(), ReadError::Absent);
    spool.read(second.id).await.unwrap();
    assert_eq!(spool.usage().damaged, 1);
    spool.flush().await;
    drop(spool);
    let spool = open(&disk, &small()).await;
    assert_eq!((spool.usage().damaged, all(&spool).len()), (0, 1));
    assert_eq!(disk.state().files.keys().filter(|name| name.starts_with("damaged/")).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_keep_is_not_kept_and_a_note_is_tried_again() {
    // Every operation of a write fails once: appending, syncing, and what undoes these.
    for fail_in in 0..4 {
        for broken in [false, true] {
            let disk = Double::default();
            let spool = open(&disk, &small()).await;
            let (good, bad) = (message("abc", "good"), message("abc", "bad"));
            spool.keep(&good, None).await.unwrap();
            disk.state().fail_in = Some(fail_in);
            disk.state().broken = broken;
            let kept = spool.keep(&bad, None).await;
            assert_eq!(kept.is_err(), broken || fail_in < 2, "{fail_in}");
            let failure = spool.usage().failure;
            assert_eq!(failure.is_some(), kept.is_err(), "{failure:?}");
            let noted = spool.note(good.id, Change::Tried(7.into()));
            assert_eq!(spool.find(good.id).unwrap().attempts, 7);
            if broken {
                assert!(tokio::time::timeout(Duration::from_mins(1), spool.flush()).await.is_err());
            }
            disk.state().broken = false;
            disk.state().fail_in = None;
            noted.await;
            spool.flush().await;
            assert_eq!(spool.usage().failure, None);
            drop(spool);
            disk.crash(&mut fastrand::Rng::with_seed(fail_in));
            let spool = open(&disk, &small()).await;
            assert_eq!(all(&spool).len(), if kept.is_ok() { 2 } else { 1 }, "{fail_in} {broken}");
            assert_eq!(spool.find(good.id).unwrap().attempts, 7);
        }
    }
}

/// What a killed process has written and not synced is found; then it is durable.
#[tokio::test]
async fn what_is_found_is_durable() {
    let disk = Double::default();
    let spool = open(&disk, &small()).await;
    let (first, second) = (message("abc", "first"), message("abc", "second"));
    spool.keep(&first, None).await.unwrap();
    disk.state().held = true;
    let noted = spool.note(first.id, Change::Delivered(1, receipt()));
    let kept = tokio::spawn({
        let (spool, second) = (spool.clone(), second.clone());
        async move { spool.keep(&second, None).await }
    });
    while !disk.waits() {
        tokio::task::yield_now().await;
    }
    drop(disk.mount());
    disk.release();
    assert!(kept.await.unwrap().is_err());
    drop(noted);
    let found = all(&open(&disk, &small()).await);
    assert!(matches!(found[0].state, State::Delivered(_)), "{found:?}");
    for seed in 0..20 {
        disk.crash(&mut fastrand::Rng::with_seed(seed));
        assert_eq!(all(&open(&disk, &small()).await), found, "{seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_recovers_by_itself() {
    let disk = Double::default();
    let mut options = small();
    options.max_bytes = 1 << 30;
    let spool = open(&disk, &options).await;
    disk.state().room = Some(50_000);
    let mut kept = Vec::new();
    let failed = loop {
        let next = message("abc", vec![7; 1_000]);
        match spool.keep(&next, None).await {
            Ok(()) => kept.push(next.id),
            Err(error) => break error,
        }
    };
    assert!(matches!(failed, KeepError::Disk(_)), "{failed}");
    assert!(kept.len() > 40);
    for id in kept {
        drop(spool.note(id, Change::Forgotten));
    }
    spool.flush().await;
    // Now everything in the only segment is superfluous: it can go although nothing fits.
    for _ in 0..200 {
        let next = message("abc", vec![7; 1_000]);
        spool.keep(&next, None).await.unwrap();
        spool.note(next.id, Change::Forgotten).await;
    }
    assert_eq!(spool.usage().failure, None);
}

/// Nobody keeps anything while the disk is said to fail: it must be found out that it works.
#[tokio::test(start_paused = true)]
async fn a_failure_ends_by_itself() {
    let disk = Double::default();
    let spool = open(&disk, &small()).await;
    disk.state().broken = true;
    spool.keep(&message("abc", "x"), None).await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(spool.usage().failure.is_some());
    disk.state().broken = false;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(spool.usage().failure, None);
}

/// What is tried again and again while the disk takes nothing does not fill the memory, and is known
/// after a crash.
#[tokio::test(start_paused = true)]
async fn of_many_tries_the_last_is_noted() {
    let disk = Double::default();
    let spool = open(&disk, &small()).await;
    let (tried, ended) = (message("abc", "tried"), message("abc", "ended"));
    spool.keep(&tried, None).await.unwrap();
    spool.keep(&ended, None).await.unwrap();
    disk.state().broken = true;
    for n in 1..=1_000 {
        drop(spool.note(tried.id, Change::Calling));
        drop(spool.note(tried.id, Change::Tried(n.into())));
        drop(spool.note(ended.id, Change::Tried(n.into())));
        drop(spool.flush());
    }
    drop(spool.note(ended.id, Change::Dead(1_000, death())));
    drop(spool.note(ended.id, Change::Replayed(Timestamp::now())));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(spool.engine.core.queue().ops.len() <= 4);
    disk.state().broken = false;
    spool.flush().await;
    drop(spool);
    disk.crash(&mut fastrand::Rng::with_seed(1));
    let spool = open(&disk, &small()).await;
    assert_eq!(spool.find(tried.id).unwrap().attempts, 1_000);
    let ended = spool.find(ended.id).unwrap();
    assert_eq!((ended.attempts, ended.state), (1_000, State::Queued { calling: false }));
}

#[tokio::test]
async fn a_dead_letter_does_not_pin_the_disk() {
    let disk = Double::default();
    let spool = open(&disk, &small()).await;
    let dead = message("abc", vec![3; 500]);
    spool.keep(&dead, Some(claim())).await.unwrap();
    spool.note(dead.id, Change::Dead(1, death())).await;
    let mut most = 0;
    for _ in 0..10_000 {
        let next = message("abc", vec![4; 500]);
        spool.keep(&next, None).await.unwrap();
        drop(spool.note(next.id, Change::Delivered(1, receipt())));
        let used: usize = disk.state().files.values().map(|file| file.bytes.len()).sum();
        most = most.max(used);
    }
    assert!(most < (2 << 20) + 6 * (64 << 10), "{most}");
    spool.flush().await;
    let (before, usage) = (all(&spool), spool.usage());
    assert_eq!(spool.read(dead.id).await.unwrap().message.payload, dead.payload);
    drop(spool);
    let spool = open(&disk, &small()).await;
    assert!(all(&spool) == before);
    assert_eq!(format!("{:?}", spool.usage()), format!("{usage:?}"));
    assert_eq!(spool.read(dead.id).await.unwrap().message.payload, dead.payload);
}

#[tokio::test]
async fn many_keeps_cost_few_syncs() {
    let disk = Double::default();
    let spool = open(&disk, &small()).await;
    let before = disk.state().syncs;
    disk.state().held = true;
    let keeps: Vec<_> = (0..64)
        .map(|_| {
            let spool = spool.clone();
            tokio::spawn(async move { spool.keep(&message("abc", "x"), None).await })
        })
        .collect();
    // The first is being written, and all others have come meanwhile: tokio lets 61 tasks run
    // before it comes back to one that has yielded.
    for _ in 0..4 {
        tokio::task::yield_now().await;
    }
    disk.release();
    for keep in keeps {
        keep.await.unwrap().unwrap();
    }
    let syncs = disk.state().syncs - before;
    assert!(syncs <= 2, "{syncs}");
    assert_eq!(spool.usage().queued.messages, 64);
    assert_eq!(spool.commits().get_sample_count(), syncs);
}

/// The end of a process waits for what is being written, but for no disk that takes nothing.
#[tokio::test(start_paused = true)]
async fn the_end_waits_for_the_writer() {
    let disk = Double::default();
    let spool = open(&disk, &small()).await;
    let kept = message("abc", "x");
    spool.keep(&kept, None).await.unwrap();
    disk.state().held = true;
    drop(spool.note(kept.id, Change::Tried(3.into())));
    while !disk.waits() {
        tokio::task::yield_now().await;
    }
    // What comes while the disk hangs is written, too.
    drop(spool.note(kept.id, Change::Tried(4.into())));
    let settled = tokio::spawn({
        let spool = spool.clone();
        async move { spool.settle().await }
    });
    tokio::task::yield_now().await;
    assert!(!settled.is_finished());
    disk.release();
    settled.await.unwrap();
    disk.state().broken = true;
    drop(spool.note(kept.id, Change::Tried(5.into())));
    tokio::time::timeout(Duration::from_mins(1), spool.settle()).await.expect("it gives up");
    drop(spool);
    disk.crash(&mut fastrand::Rng::with_seed(1));
    disk.mend();
    assert_eq!(open(&disk, &small()).await.find(kept.id).unwrap().attempts, 4);
}

/// A caller that gives up cancels nothing that the backend has begun.
#[tokio::test]
async fn what_has_begun_ends_without_its_caller() {
    let disk = Double::default();
    let spool = open(&disk, &small()).await;
    let (start, begun) = oneshot::channel();
    let (go_on, goes_on) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let job = async move {
        start.send(()).unwrap();
        goes_on.await.unwrap();
        end.send(()).unwrap();
        Reported::without_facts(Ok(()))
    };
    tokio::select! {
        biased;
        _ = spool.engine.run(Box::pin(job)) => panic!("it cannot have ended"),
        started = begun => started.unwrap(),
    }
    // Nor does another writer begin meanwhile.
    drop(spool.note(MessageId::new(), Change::Forgotten));
    tokio::task::yield_now().await;
    assert!(spool.engine.core.queue().writing);
    go_on.send(()).unwrap();
    ended.await.expect("it went on");
    spool.flush().await;
}
