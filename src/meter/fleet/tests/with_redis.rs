//! On a real Redis: what sidecars leave there, and the bill that is made of it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::time::{Instant, sleep};

use crate::config::{self, Billing, Fleet, Prices};
use crate::message::{Message, MessageId, Payload, PayloadEncoding, Terms, Topic};
use crate::meter::fleet::client::BillClient;
use crate::meter::fleet::journal::Journal;
use crate::meter::fleet::stored::BillKeys;
use crate::meter::ledger::SeriesName;
use crate::meter::quarter::Quarter;
use crate::meter::{Bill, Billed, By, CallKind, Meter, Query, Subject, fleet_bill};
use crate::redis_client::server::Redis;

const BOUND: Duration = Duration::from_secs(30);

pub(super) fn fleet(redis: &Redis) -> Fleet {
    let nodes = vec![("localhost".to_owned(), redis.port)];
    Fleet {
        redis: config::Redis { tls: false, nodes, primary: None, database: 0 },
        account: "shop".to_owned(),
        region: String::new(),
        egress_group: String::new(),
        expected_sidecars: 1,
        username: String::new(),
        password_file: None,
        ca_file: None,
    }
}

fn billing() -> Billing {
    Billing {
        currency: "CNY".to_owned(),
        prices: Prices::flat(2.0),
        plan_tps: None,
        time_zone: TimeZone::UTC,
        budgets: Vec::new(),
        callers: vec!["orders".into(), "alarms".into()],
    }
}

fn meter(fleet: &Fleet) -> Meter {
    let meter = Meter::open(None, 50, &billing(), ["post-cn-1".into()]).unwrap();
    meter.join_fleet(fleet, 1_000);
    meter
}

async fn call(meter: &Meter, topic: &str, caller: &str, billed: Billed, calls: u64) {
    let message = Message {
        id: MessageId::new(),
        instance: "post-cn-1".into(),
        topic: Topic::parse(topic).unwrap(),
        payload: Payload::new(bytes::Bytes::new(), PayloadEncoding::Base64, 0).unwrap(),
        caller: Some(caller.into()),
        trace: None,
        terms: Terms::default(),
    };
    for _ in 0..calls {
        let call = meter.begin(&message, CallKind::First).await.unwrap();
        call.ended("x", billed, Duration::from_millis(5));
    }
}

async fn bill(fleet: &Fleet, subject: Option<Subject>) -> Bill {
    let now = Timestamp::now().as_second().div_euclid(60);
    let query = Query { from: now - 60, to: now + 1, by: By { period: None, subject } };
    fleet_bill(fleet, &billing(), query).await.unwrap()
}

/// Billable and uncertain messages, the latter without those of calls that no sidecar has counted.
fn sums(bill: &Bill) -> (u64, u64) {
    let uncertain: u64 = bill.rows.iter().map(|row| row.uncertain).sum();
    let unreported = bill.fleet.as_ref().unwrap().unreported;
    (bill.rows.iter().map(|row| row.messages).sum(), uncertain - unreported)
}

/// Waits until the bill has so many.
async fn becomes(fleet: &Fleet, wanted: (u64, u64)) -> Bill {
    let begun = Instant::now();
    loop {
        let bill = bill(fleet, None).await;
        if sums(&bill) == wanted {
            return bill;
        }
        assert!(begun.elapsed() < BOUND, "{wanted:?} is not in {bill:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Writes what is due, twice: a write that comes late changes nothing.
async fn written(client: &mut BillClient, id: &str, journal: &mut Journal) {
    let write = journal.next(Instant::now(), Timestamp::now().as_second());
    let ids = write.changes.rows.keys().map(|(_, id)| *id);
    let ids = ids.chain(write.changes.seconds.keys().map(|(_, id)| *id));
    let texts = ids.map(|id| (id, Arc::clone(journal.text(id)))).collect();
    let answer = client.write(id, &write, Instant::now(), &texts).await.unwrap();
    assert_eq!(
        client.write(id, &write, Instant::now(), &texts).await.unwrap().number,
        answer.number
    );
    assert!(journal.answered(&answer, Instant::now()));
}

/// Two sidecars; one stops, and Redis loses everything.
#[tokio::test]
async fn the_bill_of_a_fleet() {
    let redis = Redis::start();
    // No more permissions than are documented.
    let documented = include_str!("../../../../docs/fleet.md");
    let line = documented.lines().find(|line| line.contains("ACL SETUSER")).unwrap().trim();
    redis.tell::<()>(&line.replace("PASSWORD", "test-password-of-redis"));
    let folder = tempfile::tempdir().unwrap();
    let password_file = folder.path().join("password");
    std::fs::write(&password_file, "test-password-of-redis").unwrap();
    let (username, password_file) = ("tollgate".to_owned(), Some(password_file));
    let fleet = Fleet { username, password_file, ..fleet(&redis) };

    let (one, other) = (meter(&fleet), meter(&fleet));
    call(&one, "Alarm/x", "alarms", Billed::Yes, 100).await;
    call(&one, "Alarm/x", "alarms", Billed::Uncertain, 3).await;
    call(&other, "Order/x", "orders", Billed::Yes, 40).await;
    call(&other, "Alarm/x", "orders", Billed::No, 5).await;
    let all = becomes(&fleet, (140, 3)).await;
    let covered = all.fleet.unwrap();
    assert_eq!((covered.sidecars, covered.reporting, covered.silent), (2, 2, 0), "{covered:?}");
    assert_eq!((covered.unanswered, covered.losses.len()), (3, 0));
    assert!((40..=500).contains(&covered.unreported), "room of two: {covered:?}");
    // Between the mean of a second and all of them.
    assert!((1..=140).contains(&all.peak_tps), "{}", all.peak_tps);

    let rows = bill(&fleet, Some(Subject::Caller)).await.rows;
    let of = |name: &str| rows.iter().find(|row| row.caller.as_deref() == Some(name)).unwrap();
    assert_eq!((of("alarms").messages, of("alarms").uncertain), (100, 3));
    assert_eq!((of("orders").messages, of("orders").uncertain), (40, 0));
    assert_eq!((of("(unreported)").messages, of("(unreported)").uncertain > 0), (0, true));
    let rows = bill(&fleet, Some(Subject::Topic)).await.rows;
    let topics: Vec<_> = rows.iter().map(|row| row.topic.as_deref().unwrap()).collect();
    assert_eq!(topics, ["(unreported)", "Alarm", "Order"]);

    // One stops: no calls of it are uncertain but those without an answer.
    call(&other, "Order/x", "orders", Billed::Yes, 2).await;
    other.close().await;
    let covered = bill(&fleet, None).await.fleet.unwrap();
    assert_eq!((covered.reporting, covered.ended), (1, 1));
    becomes(&fleet, (142, 3)).await;

    // Redis loses everything. What runs writes again what it has; of what has stopped nothing is left.
    redis.tell::<()>("FLUSHALL");
    call(&one, "Alarm/x", "alarms", Billed::Yes, 1).await;
    let after = becomes(&fleet, (101, 3)).await.fleet.unwrap();
    assert_eq!((after.sidecars, after.losses.len()), (1, 1), "{after:?}");
    assert!(after.complete_from >= covered.complete_from);
    one.close().await;
    let covered = bill(&fleet, None).await.fleet.unwrap();
    assert_eq!((covered.ended, covered.unreported), (1, 0));
}

/// A failover to a replica that lags, or a restart from an older snapshot.
#[tokio::test]
async fn redis_falls_back_to_an_older_state() {
    let redis = Redis::start_with(&["--enable-debug-command", "yes"]);
    let fleet = fleet(&redis);
    let (one, other) = (meter(&fleet), meter(&fleet));
    call(&one, "Alarm/x", "alarms", Billed::Yes, 10).await;
    call(&other, "Alarm/x", "alarms", Billed::Yes, 5).await;
    becomes(&fleet, (15, 0)).await;
    redis.tell::<()>("SAVE");
    call(&one, "Alarm/x", "alarms", Billed::Yes, 7).await;
    becomes(&fleet, (22, 0)).await;
    call(&one, "Order/x", "alarms", Billed::Uncertain, 2).await;
    becomes(&fleet, (22, 2)).await;
    redis.tell::<()>("DEBUG RELOAD NOSAVE");
    call(&one, "Alarm/x", "alarms", Billed::Yes, 1).await;
    call(&other, "Alarm/x", "alarms", Billed::Yes, 1).await;
    let covered = becomes(&fleet, (24, 2)).await.fleet.unwrap();
    assert_eq!((covered.losses.len(), covered.sidecars), (1, 2), "{covered:?}");
}

/// What a fleet sent in one second is one second, whichever sidecars sent it.
#[tokio::test]
async fn the_largest_second_is_that_of_all_sidecars() {
    let redis = Redis::start();
    let mut client = BillClient::connect(&fleet(&redis)).await.unwrap();
    let second = Timestamp::now().as_second();
    let quarter = Quarter::of_second(second);
    let mut journals: Vec<_> = (0..3)
        .map(|seed| {
            let numbers = fastrand::Rng::with_seed(seed);
            let parts = Arc::default();
            Journal::new("pod".to_owned(), second, ["x".into()], parts, 1_000, numbers)
        })
        .collect();
    let topics = ["A", "B", "A"];
    for (of, journal) in journals.iter_mut().enumerate() {
        let name = SeriesName::of_all(&"x".into(), topics[of]);
        for _ in 0..=of {
            journal.begin(0, &name);
            journal.end(0, Billed::Yes, quarter.second());
        }
        // The first one adds nothing.
        for _ in 0..2 {
            written(&mut client, &of.to_string(), journal).await;
        }
    }
    let counted = client.quarters(&[quarter]).await.unwrap().remove(0);
    let of = |topic: &str| {
        let counted = counted[&SeriesName::of_all(&"x".into(), topic)];
        (counted.billable, counted.peak)
    };
    assert_eq!((of(""), of("A"), of("B")), ((0, 6), (4, 4), (2, 2)));
    // Nothing stays for ever.
    for key in redis.tell::<Vec<String>>("KEYS *") {
        assert!(redis.tell::<i64>(&format!("TTL {key}")) > 0, "{key}");
    }
}

/// Topics without end take no more memory, and none of their messages is missing.
#[tokio::test]
async fn a_quarter_is_bounded() {
    let redis = Redis::start();
    let mut client = BillClient::connect(&fleet(&redis)).await.unwrap();
    let second = Timestamp::now().as_second();
    let quarter = Quarter::of_second(second);
    let numbers = fastrand::Rng::with_seed(7);
    let parts = Arc::default();
    let mut journal = Journal::new("pod".to_owned(), second, ["x".into()], parts, 1_000, numbers);
    written(&mut client, "1", &mut journal).await;
    for topic in 0..2_500 {
        let caller = if topic % 2 == 0 { "\norders" } else { "" };
        let name = SeriesName::of_scope("x", &format!("topic{topic}{caller}"));
        journal.begin(topic, &name);
        journal.end(topic, Billed::Yes, quarter.second());
        if topic % 500 == 499 {
            written(&mut client, "1", &mut journal).await;
        }
    }
    let key = BillKeys::new("shop").quarter(quarter);
    let fields = redis.tell::<u64>(&format!("HLEN {key}"));
    assert!(fields <= 3_000 + 1_500, "{fields}: one write may be beyond");
    let counted = client.quarters(&[quarter]).await.unwrap().remove(0);
    let own = counted.iter().filter(|(name, _)| !name.is_sum());
    assert_eq!(own.map(|(_, counted)| counted.billable).sum::<u64>(), 2_500);
    for scope in ["other", "other\nother"] {
        assert!(counted[&SeriesName::of_scope("x", scope)].billable > 0, "{scope:?}");
    }
}

/// What another program has written under our keys is replaced or left out; nothing fails.
#[tokio::test]
async fn garbage_in_redis() {
    let redis = Redis::start();
    let fleet = fleet(&redis);
    let quarter = Quarter::of_second(Timestamp::now().as_second());
    let key = BillKeys::new("shop").quarter(quarter);
    redis.tell::<()>(&format!("HSET {key} bgarbage x b -7 p\u{1}\n 9"));
    redis.tell::<()>("HSET tollgate:{shop}:bill:records since x losses 7,x,1-2 other garbage");
    redis.tell::<()>("ZADD tollgate:{shop}:bill:seen 1 other 2 none");
    let one = meter(&fleet);
    call(&one, "Alarm/x", "alarms", Billed::Yes, 3).await;
    let covered = becomes(&fleet, (3, 0)).await.fleet.unwrap();
    assert_eq!(covered.sidecars, 1, "{covered:?}");
}
