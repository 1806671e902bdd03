//! A real Redis that stands still, loses what it had or is away; and sidecars that were away themselves.

use std::sync::Arc;

use tokio::time::timeout;

use super::super::core::Core;
use super::super::facts::{Fact, Progress, Reported};
use super::super::index::Index;
use super::super::ownership::Ownership;
use super::super::redis::RedisBackend;
use super::super::view::IndexView;
use super::super::{Change, KeepError, NotOurs, ReadError, Spool};
use super::shared::{CALM, QUICK, fleet, share, shared_at};
use super::{BOUND, death, message, options, receipt, until};
use crate::redis_client::server::Redis;

#[tokio::test]
async fn a_redis_that_stands_still_keeps_nobody_waiting() {
    let redis = Redis::start();
    let spool = share(&redis, "a", CALM).await;
    let kept = message("abc", "x");
    spool.keep(&kept, None).await.unwrap();
    let pid = rustix::process::Pid::from_raw(redis.pid()).unwrap();
    let signal = |signal| rustix::process::kill_process(pid, signal).unwrap();
    signal(rustix::process::Signal::STOP);
    let refused = message("abc", "never");
    let (keep, read) = tokio::join!(
        timeout(BOUND, spool.keep(&refused, None)),
        timeout(BOUND, spool.read(kept.id)),
    );
    signal(rustix::process::Signal::CONT);
    assert!(matches!(keep.expect("an end"), Err(KeepError::Redis(_) | KeepError::Unsure(_))));
    assert!(matches!(read.expect("an end"), Err(ReadError::Redis(_))));
    // Redis takes what lay before it while it stood; it was told too late.
    until("it works again", async || spool.keep(&message("abc", "x"), None).await.is_ok()).await;
    spool.flush().await;
    let all = Spool::look(&fleet(&redis, "a"), options("/nowhere".as_ref())).await.unwrap();
    assert_eq!(all.find(refused.id), None, "what was refused is not there");
    assert!(all.find(kept.id).is_some());
}

#[tokio::test]
async fn a_redis_that_comes_back_empty_costs_what_it_had_and_no_more() {
    let mut redis = Redis::start();
    let spool = share(&redis, "a", CALM).await;
    let [lost, delivered] = std::array::from_fn(|_| message("abc", "x"));
    spool.keep(&lost, None).await.unwrap();
    spool.keep(&delivered, None).await.unwrap();
    spool.note(delivered.id, Change::Delivered(1, receipt())).await;
    redis.kill();
    let error = timeout(BOUND, spool.keep(&message("abc", "x"), None)).await.expect("an end");
    assert!(matches!(error, Err(KeepError::Redis(_) | KeepError::Unsure(_))), "{error:?}");
    redis.restart();
    let kept = message("abc", "y");
    until("it works again", async || spool.keep(&kept, None).await.is_ok()).await;
    assert_eq!(spool.find(lost.id), None);
    assert_eq!(spool.usage().damaged, 1, "one that was accepted is lost, and counted");
    assert_eq!(spool.read(kept.id).await.unwrap().message.payload, kept.payload);
    assert!(spool.is_ours().unwrap().is_some());
}

/// As a sidecar that stood still finds it: from when it may call again, it has nothing of theirs.
#[tokio::test]
async fn what_others_have_taken_is_known_before_calls_begin() {
    let redis = Redis::start();
    let spool = share(&redis, "a", QUICK).await;
    let kept: Vec<_> = (0..4_000).map(|_| message("abc", "x")).collect();
    let keeps: Vec<_> = kept
        .iter()
        .map(|message| {
            let (spool, message) = (spool.clone(), message.clone());
            tokio::spawn(async move { spool.keep(&message, None).await })
        })
        .collect();
    for keep in keeps {
        keep.await.unwrap().unwrap();
    }
    let take = "local S, O = KEYS[1], KEYS[2]
        for _, owner in ipairs(redis.call('HKEYS', O)) do redis.call('HSET', O, owner, '-') end
        for _, one in ipairs(redis.call('XPENDING', S, 'tollgate', '-', '+', 10000)) do
            redis.call('XCLAIM', S, 'tollgate', 'other', 0, one[1], 'JUSTID')
        end";
    let mut pipe = redis::pipe();
    pipe.atomic().cmd("EVAL").arg(take).arg(2);
    pipe.arg("tollgate:{a}:spool").arg("tollgate:{a}:spool:owners");
    pipe.cmd("CLIENT").arg("PAUSE").arg(1_500).arg("ALL");
    pipe.exec(&mut redis.connection()).unwrap();
    let looked = async {
        while spool.is_ours().is_ok() {
            tokio::task::yield_now().await;
        }
        // The last is the last to be looked for.
        let last = kept.iter().map(|message| message.id).max().unwrap();
        loop {
            let (ours, there) = (spool.is_ours().is_ok(), spool.find(last).is_some());
            assert!(!ours || !there, "a call could begin");
            if ours {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(BOUND, looked).await.expect("it finds out");
    assert_eq!(spool.usage().damaged, 0);
}

#[tokio::test]
async fn who_has_left_stays_away() {
    let redis = Redis::start();
    let spool = share(&redis, "a", CALM).await;
    spool.keep(&message("abc", "x"), None).await.unwrap();
    spool.close().await;
    let owners = || redis.tell::<Vec<String>>("HVALS tollgate:{a}:spool:owners");
    assert_eq!(owners(), ["-"]);
    assert!(spool.keep(&message("abc", "late"), None).await.is_err());
    assert_eq!(owners(), ["-"], "else its peers wait for it to fall silent");
}

#[tokio::test]
async fn without_redis_it_begins_and_works_when_there_is_one() {
    let mut redis = Redis::start();
    redis.kill();
    let options = options("/nowhere".as_ref());
    let fleet = fleet(&redis, "a");
    let opened = Spool::share_with(&fleet, None, options, CALM);
    let spool = timeout(BOUND, opened).await.expect("it opens").unwrap();
    assert_eq!(spool.is_ours(), Err(NotOurs));
    assert!(matches!(spool.keep(&message("abc", "x"), None).await, Err(KeepError::Redis(_))));
    redis.restart();
    until("it finds Redis by itself", async || spool.is_ours().is_ok()).await;
    spool.keep(&message("abc", "x"), None).await.unwrap();
}

/// What Redis knows may be older, also where it failed again before it was told.
#[tokio::test]
async fn what_was_taken_back_is_written_anew_after_another_failure() {
    let redis = Redis::start();
    let spool = share(&redis, "a", CALM).await;
    let kept = message("abc", "x");
    spool.keep(&kept, None).await.unwrap();
    let all = "tollgate:{a}:spool:words";
    let before: String = redis.tell(&format!("HGET {all} {}", kept.id));
    spool.note(kept.id, Change::Dead(4, death())).await;
    let state = spool.find(kept.id).unwrap().state;
    let back = "local W, O = KEYS[1], KEYS[2]
        redis.call('HSET', W, ARGV[1], ARGV[2])
        for _, owner in ipairs(redis.call('HKEYS', O)) do redis.call('HINCRBY', O, owner, -1) end
        redis.call('RENAME', W, KEYS[3])
        redis.call('SET', W, 'nothing that can be asked')";
    let mut command = redis::cmd("EVAL");
    command.arg(back).arg(3).arg(all).arg("tollgate:{a}:spool:owners").arg("{a}:aside");
    command.arg(kept.id.to_string()).arg(before).exec(&mut redis.connection()).unwrap();
    until("it notices", async || {
        spool.usage().failure.is_some_and(|failure| failure.contains("wrong kind"))
    })
    .await;
    assert_eq!(spool.is_ours(), Err(NotOurs));
    redis.tell::<()>(&format!("RENAME {{a}}:aside {all}"));
    until("it works again", async || spool.is_ours().is_ok()).await;
    spool.flush().await;
    let look = Spool::look(&fleet(&redis, "a"), options("/nowhere".as_ref())).await.unwrap();
    assert_eq!(look.find(kept.id).unwrap().state, state);
}

/// The runtime is driven as long as the end of the process waits, also where it has one thread.
#[test]
fn the_last_writes_end_on_one_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let redis = Redis::start();
    let kept = message("abc", "x");
    let spool = runtime.block_on(async {
        let spool = share(&redis, "a", CALM).await;
        spool.keep(&kept, None).await.unwrap();
        drop(spool.note(kept.id, Change::Tried(3.into())));
        spool
    });
    let words = || redis.tell::<String>(&format!("HGET tollgate:{{a}}:spool:words {}", kept.id));
    assert!(!words().contains(r#""attempts":3"#));
    let settled = runtime.block_on(async { timeout(BOUND, spool.settle()).await });
    settled.expect("it ends");
    assert!(words().contains(r#""attempts":3"#));
}

/// However many messages a dead sidecar has left, there is one page of them in memory beside the index.
#[tokio::test]
async fn a_take_over_comes_page_by_page() {
    let redis = Redis::start();
    let folder = tempfile::tempdir().unwrap();
    let spool = shared_at(redis.port, Some(folder.path())).await;
    let keeps = (0..450).map(|_| {
        let (spool, message) = (spool.clone(), message("abc", "x"));
        tokio::spawn(async move { spool.keep(&message, None).await })
    });
    for keep in keeps.collect::<Vec<_>>() {
        keep.await.unwrap().unwrap();
    }
    spool.settle().await;
    drop(spool);
    until("the folder is free", async || {
        std::fs::File::open(folder.path().join("owner")).unwrap().try_lock().is_ok()
    })
    .await;
    let options = options("/nowhere".as_ref());
    let ownership = Arc::new(Ownership::new(options.adopts.clone()));
    let fleet = fleet(&redis, "a");
    let backend = RedisBackend::new(&fleet, Some(folder.path()), &options, CALM, &ownership);
    let backend = backend.unwrap();
    let core = Core::new(options, Index::default(), Some(ownership));
    let view = IndexView::new(&Arc::new(core));
    let mut pages = Vec::new();
    loop {
        let Reported { facts, result } = backend.begin(&view).await;
        pages.extend(facts.iter().map(|fact| match fact {
            Fact::TakenOver(messages) => messages.len(),
            fact => panic!("{fact:?}"),
        }));
        assert_eq!(facts.len(), 1, "one page a call");
        if result.unwrap().unwrap() == Progress::Done {
            break;
        }
    }
    assert_eq!(pages, [200, 200, 50]);
}
