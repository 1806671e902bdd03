//! On a real Redis: what one sidecar keeps, loses, takes over and hands over.

use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use redis::Commands;
use tokio::time::{Instant, sleep, timeout};

use super::super::redis::Times;
use super::super::{
    Change, Death, Doubt, Durability, Effect, KeepError, NotOurs, OpenError, Options, ReadError,
    Spool, State,
};
use super::{BOUND, claim, death, message, options, receipt, until};
use crate::config::{self, Fleet};
use crate::redis_client::server::Redis;

/// Nobody is taken for dead.
pub(super) const CALM: Times = Times {
    heartbeat: Duration::from_millis(50),
    lease_timeout: Duration::from_hours(1),
    longest_call: Duration::from_secs(1),
    pace: Duration::from_millis(1),
    config: Duration::from_millis(100),
};
/// Whoever is dead is known to be so soon.
pub(super) const QUICK: Times =
    Times { lease_timeout: Duration::from_millis(500), longest_call: Duration::ZERO, ..CALM };

/// The server with this port.
pub(super) fn at(port: u16, tls: bool) -> config::Redis {
    config::Redis { tls, nodes: vec![("localhost".to_owned(), port)], primary: None, database: 0 }
}

pub(super) fn fleet(redis: &Redis, account: &str) -> Fleet {
    fleet_at(redis.port, account)
}

/// The spool of account `a` in the Redis at this port, in which no sidecar is taken for dead by time.
pub(crate) async fn shared_at(port: u16, folder: Option<&Path>) -> Spool {
    let options = options("/nowhere".as_ref());
    Spool::share_with(&fleet_at(port, "a"), folder, options, CALM).await.unwrap()
}

/// The same, with these options.
pub(crate) async fn shared_with(port: u16, options: Options) -> Spool {
    Spool::share_with(&fleet_at(port, "a"), None, options, CALM).await.unwrap()
}

fn fleet_at(port: u16, account: &str) -> Fleet {
    Fleet {
        redis: at(port, false),
        account: account.to_owned(),
        region: String::new(),
        egress_group: String::new(),
        expected_sidecars: 1,
        username: String::new(),
        password_file: None,
        ca_file: None,
    }
}

pub(super) async fn share(redis: &Redis, account: &str, times: Times) -> Spool {
    share_in(redis, account, times, None).await
}

/// Connected, though this machine may stand still for longer than a connection may take.
pub(super) async fn share_in(
    redis: &Redis,
    account: &str,
    times: Times,
    folder: Option<&Path>,
) -> Spool {
    share_of(redis, account, times, folder, options("/nowhere".as_ref())).await
}

pub(super) async fn share_of(
    redis: &Redis,
    account: &str,
    times: Times,
    folder: Option<&Path>,
    options: Options,
) -> Spool {
    let spool = Spool::share_with(&fleet(redis, account), folder, options, times).await.unwrap();
    until("it finds Redis", async || spool.is_ours().is_ok()).await;
    spool
}

/// Messages and receipts that lie in Redis.
fn entries(redis: &Redis) -> i64 {
    let mut command = redis::cmd("XLEN");
    command.arg("tollgate:{a}:spool").query(&mut redis.connection()).unwrap()
}

/// Waits until a spool holds so many messages.
async fn holds(spool: &Spool, messages: usize) {
    let mut adoptions = spool.adoptions().unwrap();
    let adopting = tokio::spawn(async move { while adoptions.next().await.is_some() {} });
    until(&format!("it holds {messages}"), async || {
        spool.list(None, usize::MAX, &mut |_| true).len() >= messages
    })
    .await;
    adopting.abort();
}

#[tokio::test]
async fn what_becomes_of_a_message_is_known_to_whoever_takes_it_over() {
    let redis = Redis::start();
    let spool = share(&redis, "a", CALM).await;
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
    assert_eq!(before.len(), 6);
    let usage = spool.usage();
    assert_eq!(spool.find(calling.id).unwrap().state, State::Queued { calling: true });
    let read = spool.read(replayed.id).await.unwrap();
    assert_eq!(read.message.payload, replayed.payload);
    spool.close().await;
    assert_eq!(spool.is_ours(), Err(NotOurs));

    let other = share(&redis, "a", CALM).await;
    holds(&other, 6).await;
    assert_eq!(other.list(None, 100, &mut |_| true), before);
    let counted =
        |usage: &super::super::Usage| (usage.queued, usage.dead, usage.receipts, usage.oldest);
    assert_eq!(counted(&other.usage()), counted(&usage));
    let read = other.read(replayed.id).await.unwrap();
    assert_eq!((read.message.payload, read.message.topic), (replayed.payload, replayed.topic));
    assert!(other.read(delivered.id).await.unwrap().message.payload.as_bytes().is_empty());
    assert_eq!(other.read(forgotten.id).await.unwrap_err(), ReadError::Absent);

    // Nothing is left behind when all is forgotten but the receipt.
    for brief in before {
        other.note(brief.id, Change::Forgotten).await;
    }
    let receipt = i64::try_from(other.usage().receipts.bytes).unwrap();
    other.close().await;
    let mut connection = redis.connection();
    let left: i64 = entries(&redis);
    let words: i64 = connection.hlen("tollgate:{a}:spool:words").unwrap();
    let owners: i64 = connection.hlen("tollgate:{a}:spool:owners").unwrap();
    let totals: Vec<i64> =
        connection.hmget("tollgate:{a}:spool:totals", &["messages", "bytes", "receipts"]).unwrap();
    assert_eq!((left, words, owners, totals), (1, 1, 1, vec![1, receipt, receipt]));
}

#[tokio::test]
async fn who_is_silent_loses_its_messages_to_one_other_and_learns_so() {
    let redis = Redis::start();
    // Nothing but its beat is missing: a machine that stands still for less is no death.
    let times = Times {
        lease_timeout: Duration::from_secs(5),
        longest_call: Duration::from_secs(1),
        ..CALM
    };
    let silent = share(&redis, "a", Times { heartbeat: Duration::from_hours(1), ..times }).await;
    let [first, second] = std::array::from_fn(|_| message("abc", "x"));
    silent.keep(&first, None).await.unwrap();
    silent.keep(&second, None).await.unwrap();
    let kept = Instant::now();
    assert!(silent.is_ours().unwrap().unwrap() <= kept + times.lease_timeout - times.longest_call);
    let other = share(&redis, "a", times).await;
    holds(&other, 2).await;
    // Only after the first may make no more calls.
    assert_eq!(silent.is_ours(), Err(NotOurs));
    assert!(kept.elapsed() >= times.lease_timeout);

    // It does not know yet. What it says does not count, and it learns of it.
    let noted = silent.note(first.id, Change::Delivered(1, receipt()));
    assert_eq!((noted.changed, noted.await), (true, Effect::NotOwned));
    assert_eq!((silent.find(first.id), silent.find(second.id)), (None, None));
    let all = Spool::look(&fleet(&redis, "a"), options("/nowhere".as_ref())).await.unwrap();
    for spool in [&other, &all] {
        assert_eq!(spool.find(first.id).unwrap().state, State::Queued { calling: false });
    }
    // It lives on.
    let third = message("abc", "y");
    silent.keep(&third, None).await.unwrap();
    assert!(silent.is_ours().unwrap().is_some());
    assert_eq!(silent.read(third.id).await.unwrap().message.payload, third.payload);
}

#[tokio::test]
async fn who_lives_keeps_what_it_has() {
    let redis = Redis::start();
    let times =
        Times { lease_timeout: Duration::from_secs(2), longest_call: Duration::ZERO, ..CALM };
    let (one, other) = (share(&redis, "a", times).await, share(&redis, "a", times).await);
    let mut adoptions = other.adoptions().unwrap();
    let kept = message("abc", "x");
    one.keep(&kept, None).await.unwrap();
    assert!(
        timeout(times.lease_timeout * 2, adoptions.next()).await.is_err(),
        "taken from the living"
    );
    assert!(one.find(kept.id).is_some() && one.is_ours().unwrap().is_some());
}

/// As a fail-over to a replica that is behind.
#[tokio::test]
async fn what_redis_has_forgotten_is_written_anew_or_known_to_be_lost() {
    const KEYS: [&str; 4] = ["", ":words", ":totals", ":owners"];
    let redis = Redis::start();
    let spool = share(&redis, "a", CALM).await;
    let [kept, lost, ended] = std::array::from_fn(|_| message("abc", "x"));
    spool.keep(&kept, None).await.unwrap();
    spool.keep(&ended, None).await.unwrap();
    let mut connection = redis.connection();
    let mut run = |words: &[&[u8]]| -> Vec<u8> {
        let mut command = redis::cmd(str::from_utf8(words[0]).unwrap());
        command.arg(&words[1..]).query(&mut connection).unwrap_or_default()
    };
    let keys = KEYS.map(|key| format!("tollgate:{{a}}:spool{key}"));
    let before = keys.each_ref().map(|key| run(&[b"DUMP", key.as_bytes()]));
    spool.note(kept.id, Change::Tried(3.into())).await;
    spool.note(ended.id, Change::Delivered(1, receipt())).await;
    spool.keep(&lost, None).await.unwrap();
    for (key, dump) in keys.iter().zip(&before) {
        run(&[b"RESTORE", key.as_bytes(), b"0", dump, b"REPLACE"]);
    }
    until("it notices by itself", async || spool.find(lost.id).is_none()).await;
    assert_eq!(spool.usage().damaged, 1, "one that was accepted is lost, and counted");
    spool.flush().await;
    let all = Spool::look(&fleet(&redis, "a"), options("/nowhere".as_ref())).await.unwrap();
    assert_eq!(all.find(kept.id).unwrap().attempts, 3);
    assert!(matches!(all.find(ended.id).unwrap().state, State::Delivered(_)));
    assert_eq!(all.find(lost.id), None);
}

#[tokio::test]
async fn after_a_crash_the_same_folder_has_its_messages_at_once() {
    let redis = Redis::start();
    let folder = tempfile::tempdir().unwrap();
    let spool = share_in(&redis, "a", CALM, Some(folder.path())).await;
    let kept = message("abc", "x");
    spool.keep(&kept, Some(claim())).await.unwrap();
    drop(spool);
    // The last write goes on when nobody waits.
    let opened = async {
        loop {
            let spool = share_in(&redis, "a", CALM, Some(folder.path())).await;
            if spool.find(kept.id).is_some() {
                return spool;
            }
            drop(spool);
            sleep(Duration::from_millis(5)).await;
        }
    };
    let spool = timeout(BOUND, opened).await.unwrap();
    assert_eq!(spool.find(kept.id).unwrap().claim, Some(claim()));
    assert_eq!(spool.read(kept.id).await.unwrap().message.payload, kept.payload);
    // A copy of the folder proves nothing: whoever it names may live.
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(folder.path().join("owner"), copy.path().join("owner")).unwrap();
    let other = share_in(&redis, "a", CALM, Some(copy.path())).await;
    assert_eq!(other.find(kept.id), None);
    spool.note(kept.id, Change::Tried(1.into())).await;
    assert_eq!(spool.find(kept.id).unwrap().attempts, 1);
}

#[tokio::test]
async fn the_bounds_hold_for_all_together_and_receipts_give_way() {
    let redis = Redis::start();
    let options = Options { max_messages: 3, ..options("/nowhere".as_ref()) };
    let open = async || share_of(&redis, "a", CALM, None, options.clone()).await;
    let (one, two) = (open().await, open().await);
    let [first, second, third, late, later] = std::array::from_fn(|_| message("abc", "x"));
    one.keep(&first, None).await.unwrap();
    one.keep(&second, None).await.unwrap();
    two.keep(&third, None).await.unwrap();
    assert_eq!(two.keep(&late, None).await, Err(KeepError::Full));
    one.note(second.id, Change::Delivered(1, receipt())).await;
    two.keep(&late, None).await.unwrap();
    assert_eq!(two.keep(&later, None).await, Err(KeepError::Full));

    let bytes = one.usage().queued.bytes;
    let options = Options { max_bytes: 5 * bytes / 2, ..super::options("/nowhere".as_ref()) };
    let small = share_of(&redis, "b", CALM, None, options).await;
    small.keep(&first, None).await.unwrap();
    small.keep(&second, None).await.unwrap();
    assert_eq!(small.keep(&third, None).await, Err(KeepError::Full));
}

/// Where a claim is to be known, a new message is refused, also by a sidecar that has only its own.
#[tokio::test]
async fn receipts_with_a_claim_do_not_give_way() {
    let redis = Redis::start();
    let options = Options { max_messages: 3, ..options("/nowhere".as_ref()) };
    let open = async |options: &Options| share_of(&redis, "a", CALM, None, options.clone()).await;
    let (one, two) = (open(&options).await, open(&options).await);
    let [delivered, dropped, bare, late, later] = std::array::from_fn(|_| message("abc", "x"));
    one.keep(&delivered, Some(claim())).await.unwrap();
    one.keep(&dropped, Some(claim())).await.unwrap();
    one.keep(&bare, None).await.unwrap();
    for ended in [&delivered, &bare] {
        one.note(ended.id, Change::Delivered(1, receipt())).await;
    }
    one.note(dropped.id, Spool::dropped(Doubt::None)).await;
    two.keep(&late, None).await.unwrap();
    for spool in [&one, &two] {
        assert_eq!(spool.keep(&later, None).await, Err(KeepError::Full));
    }
    // The one that takes them over knows the claims.
    one.close().await;
    holds(&two, 3).await;
    let ended = two.find(dropped.id).unwrap();
    assert!(matches!(ended.state, State::Dropped(_)) && ended.claim == Some(claim()));
    // When the claims are no longer to be known, they give way.
    let brief = Options { keep_claims: Duration::ZERO, ..options };
    let three = open(&brief).await;
    let next = message("abc", "z");
    two.note(late.id, Change::Delivered(1, receipt())).await;
    three.keep(&next, None).await.unwrap();
    assert_eq!(three.keep(&later, None).await, Err(KeepError::Full));
}

/// A rolling upgrade: what older sidecars have written is in `receipts` alone.
#[tokio::test]
async fn receipts_of_older_sidecars_give_way() {
    let redis = Redis::start();
    let options = Options { max_messages: 4, ..options("/nowhere".as_ref()) };
    let open = async || share_of(&redis, "a", CALM, None, options.clone()).await;
    let (older, newer) = (open().await, open().await);
    let [claimed, bare, late, waits] = std::array::from_fn(|_| message("abc", "x"));
    older.keep(&claimed, Some(claim())).await.unwrap();
    for kept in [&bare, &late, &waits] {
        older.keep(kept, None).await.unwrap();
    }
    for ended in [&claimed, &bare] {
        older.note(ended.id, Change::Delivered(1, receipt())).await;
    }
    redis.tell::<i64>("DEL tollgate:{a}:spool:spare");
    // The claim is to be known: what is younger gives way.
    newer.keep(&message("abc", "x"), None).await.unwrap();
    assert_eq!(newer.keep(&message("abc", "x"), None).await, Err(KeepError::Full));
    // Also what an older one writes while a newer one runs.
    older.note(late.id, Change::Delivered(1, receipt())).await;
    redis.tell::<i64>(&format!("ZREM tollgate:{{a}}:spool:spare {}", late.id));
    newer.keep(&message("abc", "x"), None).await.unwrap();
    assert_eq!(newer.keep(&message("abc", "x"), None).await, Err(KeepError::Full));
    let all = Spool::look(&fleet(&redis, "a"), options.clone()).await.unwrap();
    let left = [&claimed, &bare, &late, &waits].map(|message| all.find(message.id).is_some());
    assert_eq!(left, [true, false, false, true]);
}

/// Old dead letters end by their owner, with what a take-over brings; a peer leaves them alone.
#[tokio::test]
async fn old_dead_letters_end_by_their_owner() {
    let redis = Redis::start();
    let (one, two) = (share(&redis, "a", CALM).await, share(&redis, "a", CALM).await);
    let [old, young] = std::array::from_fn(|_| message("abc", vec![7; 1_000]));
    let now = Timestamp::now();
    let day = Duration::from_hours(24);
    for (dead, hours) in [(&old, 25), (&young, 23)] {
        one.keep(dead, Some(claim())).await.unwrap();
        let at = now - SignedDuration::from_hours(hours);
        one.note(dead.id, Change::Dead(1, Death { at, ..death() })).await;
    }
    assert_eq!(two.drop_dead_since(day, now).await.messages, 0);
    assert_eq!(one.drop_dead_since(day, now).await.first, [old.id]);
    one.close().await;
    holds(&two, 2).await;
    let ended = two.find(old.id).unwrap();
    assert!(matches!(ended.state, State::Dropped(_)) && ended.claim == Some(claim()));
    assert_eq!(two.drop_dead_since(day, now).await.messages, 0);
    let later = now + SignedDuration::from_hours(1);
    assert_eq!(two.drop_dead_since(day, later).await.first, [young.id]);
    let usage = two.usage();
    assert_eq!((usage.dead.messages, usage.receipts.messages, usage.dropped_dead), (0, 2, [1, 0]));
}

#[tokio::test]
async fn receipts_end_in_redis_too() {
    let redis = Redis::start();
    let options =
        Options { keep_receipts: Duration::from_millis(1), ..options("/nowhere".as_ref()) };
    let spool = share_of(&redis, "a", CALM, None, options).await;
    let kept = message("abc", "x");
    spool.keep(&kept, None).await.unwrap();
    spool.note(kept.id, Change::Delivered(1, receipt())).await;
    let ended = async {
        // Whoever writes sweeps.
        while entries(&redis) > 0 {
            let other = message("abc", "x");
            spool.keep(&other, None).await.unwrap();
            spool.note(other.id, Change::Forgotten).await;
        }
    };
    timeout(BOUND, ended).await.unwrap();
    until("its receipt has ended", async || spool.find(kept.id).is_none()).await;
}

#[tokio::test]
async fn a_full_redis_says_so_and_takes_what_empties_it() {
    let redis = Redis::start();
    let spool = share(&redis, "a", CALM).await;
    let kept = message("abc", vec![7; 10_000]);
    spool.keep(&kept, None).await.unwrap();
    let set = |value: &str| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("maxmemory").arg(value).exec(&mut redis.connection()).unwrap();
    };
    set("1mb");
    let Err(KeepError::Redis(error)) = spool.keep(&message("abc", "x"), None).await else {
        panic!("kept in a full Redis")
    };
    assert!(error.contains("OOM"), "{error}");
    assert!(spool.usage().failure.unwrap().contains("OOM"));
    // Also over another connection.
    redis.tell::<i64>("CLIENT KILL TYPE normal SKIPME yes");
    timeout(BOUND, spool.note(kept.id, Change::Delivered(1, receipt()))).await.unwrap();
    set("0");
    until("it notices by itself", async || spool.usage().failure.is_none()).await;
    spool.keep(&message("abc", "x"), None).await.unwrap();
}

#[tokio::test]
async fn a_replica_is_no_place_to_keep() {
    let redis = Redis::start();
    let spool = share(&redis, "a", CALM).await;
    let kept = message("abc", "x");
    spool.keep(&kept, None).await.unwrap();
    let replica_of = |host: &str, port: &str| {
        let mut command = redis::cmd("REPLICAOF");
        command.arg(host).arg(port).exec(&mut redis.connection()).unwrap();
    };
    replica_of("127.0.0.1", "1");
    let Err(KeepError::Redis(error)) = spool.keep(&message("abc", "x"), None).await else {
        panic!("kept in a replica")
    };
    // Redis says so to a write on the old connection, and we to ourselves before one on a new.
    assert!(error.contains("replica"), "{error}");
    let noted = spool.note(kept.id, Change::Tried(1.into()));
    replica_of("NO", "ONE");
    timeout(BOUND, noted).await.expect("it is noted later");
}

#[tokio::test]
async fn a_wrong_password_is_said_at_the_start() {
    let redis = Redis::start();
    let mut command = redis::cmd("CONFIG");
    command.arg("SET").arg("requirepass").arg("right").exec(&mut redis.connection()).unwrap();
    let open = async |fleet: &Fleet| {
        Spool::share_with(fleet, None, options("/nowhere".as_ref()), CALM).await
    };
    let without = fleet(&redis, "a");
    let Err(OpenError::Redis(error)) = open(&without).await else { panic!("it opened") };
    assert!(error.contains("set fleet.password_file"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "right\n").unwrap();
    let with = Fleet { password_file: Some(file), ..without.clone() };
    let spool = open(&with).await.unwrap();
    spool.keep(&message("abc", "x"), None).await.unwrap();
}

#[tokio::test]
async fn its_durability_is_what_redis_is_configured_for() {
    let redis = Redis::start();
    for (aof, fsync, durability) in [
        ("no", "always", Durability::RedisMemory),
        ("yes", "always", Durability::RedisAofAlways),
        ("yes", "everysec", Durability::RedisAofEverysec),
        ("yes", "no", Durability::RedisMemory),
    ] {
        let mut connection = redis.connection();
        for (name, value) in [("appendonly", aof), ("appendfsync", fsync)] {
            let mut command = redis::cmd("CONFIG");
            command.arg("SET").arg(name).arg(value).exec(&mut connection).unwrap();
        }
        let spool = share(&redis, "a", CALM).await;
        assert_eq!(spool.durability(), durability, "{aof} {fsync}");
    }
    // While it is connected, too: a log that is not synced while it is written anew promises nothing.
    let spool = share(&redis, "a", CALM).await;
    for (name, value, durability) in [
        ("appendfsync", "always", Durability::RedisAofAlways),
        ("no-appendfsync-on-rewrite", "yes", Durability::RedisMemory),
        ("no-appendfsync-on-rewrite", "no", Durability::RedisAofAlways),
        ("appendonly", "no", Durability::RedisMemory),
    ] {
        redis.tell::<()>(&format!("CONFIG SET {name} {value}"));
        until(&format!("{name} {value} is noticed"), async || spool.durability() == durability)
            .await;
    }
}
