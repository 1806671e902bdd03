use proptest::prelude::*;

use super::counts::BegunCall;
use super::ledger::{Minute, SeriesName};
use super::*;
use crate::config::{Budget, BudgetScope, Limit, Prices};
use crate::message::{Message, MessageId, Payload, PayloadEncoding, Terms, Topic, TopicPattern};

pub(super) fn billing() -> Billing {
    Billing {
        currency: "CNY".to_owned(),
        prices: Prices::flat(2.0),
        plan_tps: None,
        time_zone: TimeZone::UTC,
        budgets: Vec::new(),
        callers: Vec::new(),
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn begun(series: usize, kind: CallKind, second: i64) -> BegunCall {
    BegunCall { series, kind, second }
}

fn message(topic: &str) -> Message {
    Message {
        id: MessageId::new(),
        instance: "post-cn-1".into(),
        topic: Topic::parse(topic).unwrap(),
        payload: Payload::new(bytes::Bytes::new(), PayloadEncoding::Base64, 0).unwrap(),
        caller: None,
        trace: None,
        terms: Terms::default(),
    }
}

async fn call(meter: &Meter, topic: &str, code: &str, billed: Billed) {
    let call = meter.begin(&message(topic), CallKind::First).await.unwrap();
    call.ended(code, billed, Duration::from_millis(5));
}

#[tokio::test]
async fn counts_what_is_billed_and_what_may_be() {
    let meter = Meter::new(5, &billing(), ["post-cn-1".into()]);
    for (times, code, billed) in [
        (240, "OK", Billed::Yes),
        (6, "Throttling.User", Billed::No),
        (3, "SendMessageFailed", Billed::No),
        (1, "empty_msgid", Billed::Uncertain),
    ] {
        for _ in 0..times {
            call(&meter, "abc/d", code, billed).await;
        }
    }
    let snapshot = meter.snapshot();
    let messages = snapshot.messages["post-cn-1"]["abc"];
    assert_eq!((messages.billable, messages.uncertain), (240, 1));
    assert!((messages.spend - 0.00048).abs() < 1e-12, "{}", messages.spend);
    assert_eq!(snapshot.calls.values().sum::<u64>(), 250);
    // A call that nobody ended.
    drop(meter.begin(&message("abc"), CallKind::Retry).await.unwrap());
    assert_eq!(meter.snapshot().messages["post-cn-1"]["abc"].uncertain, 2);
}

#[tokio::test]
async fn hostile_topics_and_codes_make_no_series() {
    let meter = Meter::new(3, &billing(), []);
    for i in 0..10_000 {
        let parent = format!("topic{i}");
        meter.published(Some(&parent), None, Published::Delivered, Duration::ZERO);
        call(&meter, &parent, &format!("Code.{i}"), Billed::Yes).await;
    }
    let snapshot = meter.snapshot();
    assert_eq!(snapshot.published.len(), 4);
    assert_eq!(snapshot.published[OTHER][0], 10_000 - 3);
    assert!(snapshot.calls.len() <= 3 + 64);
    assert_eq!(snapshot.messages["post-cn-1"].len(), 4);
    assert_eq!(snapshot.calls.values().sum::<u64>(), 10_000);
}

/// The provider's rule, and examples of what follows from it.
#[test]
fn worked_examples() {
    use Billed::{No, Uncertain, Yes};
    use CallKind::{First, Retry};
    let mut counts = Counts::new(5, billing(), 0, &Arc::default());
    let line = counts.series(&"post-cn-1".into(), "TopicA", None);
    let mut after = |second, calls: &[(u64, CallKind, Billed)]| {
        for (times, kind, billed) in calls {
            for _ in 0..*times {
                counts.reserve(line, second).unwrap();
                counts.ended(begun(line, *kind, second), "x", None, *billed, at(second));
            }
        }
        let snapshot = counts.snapshot(second + 1);
        let messages = snapshot.messages["post-cn-1"]["TopicA"];
        (messages.billable, messages.uncertain, snapshot.tps["post-cn-1"])
    };
    // Two hundred and fifty calls in one second; three that failed are sent again in the next. The
    // peak is 240.
    let second = [(240, First, Yes), (6, First, No), (3, First, No), (1, First, Uncertain)];
    assert_eq!(after(10, &second), (240, 1, (240, 240)));
    assert_eq!(after(11, &[(100, First, Yes), (3, Retry, Yes)]), (343, 1, (103, 240)));
    // A minute with 300 a second, but for its last.
    for second in 60..119 {
        after(second, &[(300, First, Yes)]);
    }
    assert_eq!(after(119, &[(120, First, Yes)]), (343 + 17_820, 1, (120, 300)));
}

#[test]
fn tiers_follow_the_month() {
    let tiers = "[[billing.tiers]]\nfrom = 0\nprice_per_million = 10\n\
                 [[billing.tiers]]\nfrom = 100\nprice_per_million = 4\n";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tollgate.toml");
    let least = "[upstream]\nendpoint = \"http://127.0.0.1:1\"\ninstance_id = \"x\"\n";
    std::fs::write(&path, format!("{least}{tiers}")).unwrap();
    let billing = config::load(Some(&path), [], &[]).unwrap().config.billing;
    let mut counts = Counts::new(5, billing, 0, &Arc::default());
    let name = SeriesName::of_all(&"x".into(), "TopicA");
    let line = counts.series(&name.instance, "TopicA", None);
    // Ninety of an earlier process, twenty of this one: ten at each price.
    counts.restore(0, &name, &Minute { billable: 90, uncertain: 0, peak: 90 });
    for _ in 0..20 {
        counts.reserve(line, 60).unwrap();
        counts.ended(begun(line, CallKind::First, 60), "OK", None, Billed::Yes, at(60));
    }
    let spend = |counts: &mut Counts, at| counts.snapshot(at).messages["x"]["TopicA"].spend;
    assert!((spend(&mut counts, 61) - (10.0 * 10.0 + 10.0 * 4.0) / 1e6).abs() < 1e-12);
    // The next month begins at the first price.
    let february = 32 * 86_400;
    counts.reserve(line, february).unwrap();
    let call = begun(line, CallKind::First, february);
    counts.ended(call, "OK", None, Billed::Yes, at(february));
    assert!((spend(&mut counts, february) - (11.0 * 10.0 + 10.0 * 4.0) / 1e6).abs() < 1e-12);
}

#[test]
fn another_price_changes_nothing_that_was_spent() {
    let mut counts = Counts::new(5, billing(), 0, &Arc::default());
    let line = counts.series(&"x".into(), "TopicA", None);
    let send = |counts: &mut Counts| {
        counts.reserve(line, 60).unwrap();
        counts.ended(begun(line, CallKind::First, 60), "OK", None, Billed::Yes, at(60));
        counts.snapshot(60).messages["x"]["TopicA"].spend
    };
    assert!((send(&mut counts) - 2e-6).abs() < 1e-15);
    counts.reprice(&Billing { prices: Prices::flat(7.0), ..billing() });
    assert!((send(&mut counts) - 9e-6).abs() < 1e-15);
    counts.reprice(&Billing { prices: Prices::flat(0.0), ..billing() });
    assert!((send(&mut counts) - 9e-6).abs() < 1e-15);
}

#[derive(Debug, Clone)]
enum Step {
    Begin(usize),
    End(usize, u8),
    Wait(i64),
    /// In order: calls under way end first.
    Restart,
    /// They do not, and the ledger has them as uncertain.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..6_usize).prop_map(Step::Begin),
        8 => (any::<usize>(), 0..3_u8).prop_map(|(nth, billed)| Step::End(nth, billed)),
        2 => (0..2_000_i64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ]
}

const TOPICS: [&str; 3] = ["Alarm", "TopicA", "TopicB"];

/// Each topic has messages of no caller, and of one.
fn topic_of(series: usize) -> &'static str {
    TOPICS[series % 3]
}

fn caller_of(series: usize) -> Option<&'static str> {
    (series >= 3).then_some("orders")
}

fn budgets() -> Vec<Budget> {
    let budget = |name: &str, limit, period, topics: &[&str], refuse| Budget {
        name: name.to_owned(),
        limit,
        period,
        time_zone: TimeZone::UTC,
        instance_id: None,
        parents: topics.iter().map(|topic| TopicPattern::new(topic)).collect(),
        callers: if name == "orders" { vec!["orders".into()] } else { Vec::new() },
        refuse,
        scope: BudgetScope::Sidecar,
    };
    vec![
        budget("all", Limit::Messages(30), Period::Hour, &[], true),
        budget("alarms", Limit::Spend(2.0 * 8.0 / 1e6), Period::Hour, &["Alarm"], true),
        budget("topics", Limit::Messages(5), Period::Day, &["Topic*"], false),
        budget("orders", Limit::Messages(9), Period::Hour, &[], true),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    /// Whatever happens, crashes too: what a budget has reserved and spent is what may be billed
    /// in its period, and one that refuses never goes over.
    #[test]
    fn budgets_never_drift(steps in prop::collection::vec(step(), 1..300)) {
        let billing =
            Billing { budgets: budgets(), callers: vec!["orders".into()], ..billing() };
        let instance: InstanceId = "post-cn-1".into();
        let name = |series: usize| SeriesName {
            caller: caller_of(series).unwrap_or_default().into(),
            ..SeriesName::of_all(&"post-cn-1".into(), topic_of(series))
        };
        let mut now = 1_000_000_i64;
        let parts = Arc::default();
        let mut counts = Counts::new(5, billing.clone(), now, &parts);
        // By minute and topic: what the ledger has. And the calls that are out.
        let mut ledger = BTreeMap::<(i64, usize), Minute>::new();
        let mut out = Vec::<usize>::new();
        for step in steps {
            match step {
                Step::Begin(topic) => {
                    let line = counts.series(&instance, topic_of(topic), caller_of(topic));
                    if counts.reserve(line, now).is_ok() {
                        out.push(topic);
                    }
                }
                Step::End(nth, billed) if !out.is_empty() => {
                    let topic = out.swap_remove(nth % out.len());
                    let billed = Billed::ALL[usize::from(billed)];
                    let line = counts.series(&instance, topic_of(topic), caller_of(topic));
                    let call = begun(line, CallKind::First, now);
                    counts.ended(call, "x", None, billed, at(now));
                    let minute = ledger.entry((now.div_euclid(60), topic)).or_default();
                    minute.billable += u64::from(billed == Billed::Yes);
                    minute.uncertain += u64::from(billed == Billed::Uncertain);
                }
                Step::End(..) => {}
                Step::Wait(seconds) => now += seconds,
                Step::Restart | Step::Crash => {
                    for topic in std::mem::take(&mut out) {
                        let minute = ledger.entry((now.div_euclid(60), topic)).or_default();
                        match step {
                            Step::Crash => minute.uncertain += 1,
                            _ => minute.billable += 1,
                        }
                    }
                    counts = Counts::new(5, billing.clone(), now, &parts);
                    let from = counts.restores_from(now).div_euclid(60);
                    for ((minute, topic), counted) in ledger.range((from, 0)..) {
                        counts.restore(minute * 60, &name(*topic), counted);
                    }
                }
            }
            for status in counts.snapshot(now).budgets {
                let budget = &status.budget;
                let covered = |series: usize| {
                    budget.covers(&instance, topic_of(series))
                        && budget.covers_caller(caller_of(series).unwrap_or_default())
                };
                let start = period::Span::around(now, budget.period, &TimeZone::UTC).start;
                let spent = ledger.range((start.div_euclid(60), 0)..);
                let spent = spent.filter(|((_, topic), _)| covered(*topic));
                let spent: u64 = spent.map(|(_, m)| m.billable + m.uncertain).sum();
                let reserved = out.iter().filter(|topic| covered(**topic)).count();
                let (unit, limit) = match budget.limit {
                    Limit::Messages(limit) => (1.0, limit as f64),
                    Limit::Spend(limit) => (2.0 / 1e6, limit),
                };
                prop_assert!((status.used - spent as f64 * unit).abs() < 1e-12, "{status:?}");
                prop_assert!((status.reserved - reserved as f64 * unit).abs() < 1e-12, "{status:?}");
                let left = ((limit - status.used - status.reserved) / limit).clamp(0.0, 1.0);
                prop_assert!((status.remaining - left).abs() < 1e-9, "{status:?}");
                if budget.refuse && reserved == 0 {
                    prop_assert!(status.used <= limit * (1.0 + 1e-9), "{status:?}");
                }
            }
        }
    }
}

/// However many topics come before, those that a budget names are counted by their names: else it
/// would refuse nothing.
#[tokio::test]
async fn a_budget_holds_beyond_the_last_label() {
    let billing = Billing { budgets: budgets(), ..billing() };
    let meter = Meter::new(3, &billing, []);
    for i in 0..20 {
        call(&meter, &format!("hostile{i}"), "OK", Billed::Yes).await;
    }
    for _ in 0..8 {
        call(&meter, "Alarm/fire", "OK", Billed::Yes).await;
    }
    let over = meter.begin(&message("Alarm/fire"), CallKind::First).await.map(drop);
    assert_eq!(over.map_err(|over| over.budget), Err("alarms".to_owned()));
    assert_eq!(meter.snapshot().messages["post-cn-1"]["Alarm"].billable, 8);
}

/// Topics without a label of their own, which a pattern covers: their budget holds, also after a
/// restart, and the topics that no budget names are still `other`.
#[tokio::test]
async fn a_pattern_holds_beyond_the_last_label() {
    let mut budgets = budgets();
    budgets[2].refuse = true;
    let billing = Billing { budgets, ..billing() };
    let meter = Meter::new(3, &billing, []);
    for i in 0..10 {
        call(&meter, &format!("hostile{i}"), "OK", Billed::Yes).await;
    }
    for i in 0..5 {
        call(&meter, &format!("Topic{i}/x"), "OK", Billed::Yes).await;
    }
    let over = meter.begin(&message("Topic9/x"), CallKind::First).await.map(drop);
    assert_eq!(over.map_err(|over| over.budget), Err("topics".to_owned()));
    let messages = &meter.snapshot().messages["post-cn-1"];
    assert_eq!(messages["other:topics"].billable, 5);
    assert_eq!(messages[OTHER].billable, 10 - 2);
    assert!(meter.begin(&message("hostile99"), CallKind::First).await.is_ok());

    let now = Timestamp::now().as_second();
    let mut restarted = Counts::new(3, billing, now, &Arc::default());
    let name = SeriesName::of_all(&"post-cn-1".into(), "other:topics");
    restarted.restore(now, &name, &Minute { billable: 5, uncertain: 0, peak: 5 });
    for i in 0..10 {
        restarted.series(&"post-cn-1".into(), &format!("hostile{i}"), None);
    }
    let series = restarted.series(&"post-cn-1".into(), "Topic7", None);
    assert!(restarted.admits(series, now).is_err());
}

fn of(caller: &str, topic: &str) -> Message {
    Message { caller: Some(caller.into()), ..message(topic) }
}

/// Each caller's messages are counted apart and on the bill, also those of earlier processes; a budget holds for the
/// callers that name it, and topics and instances count all.
#[tokio::test]
async fn callers() {
    let mut budgets = budgets();
    let mut budget = budgets.remove(3);
    budget.limit = Limit::Messages(4);
    let callers = vec!["orders".into(), "batch".into()];
    let billing = Billing { budgets: vec![budget], callers, ..billing() };
    let folder = tempfile::tempdir().unwrap();
    for process in 0..2 {
        let open = || Meter::open(Some(folder.path()), 5, &billing, ["post-cn-1".into()]);
        let meter = open().unwrap();
        for (caller, topic, calls) in
            [("orders", "TopicA", 2), ("batch", "TopicA", 3), ("gone", "TopicB", 1)]
        {
            for _ in 0..calls {
                let call = meter.begin(&of(caller, topic), CallKind::First).await.unwrap();
                call.ended("OK", Billed::Yes, Duration::ZERO);
            }
            meter.published(Some(topic), Some(caller), Published::Delivered, Duration::ZERO);
        }
        call(&meter, "TopicB", "OK", Billed::Yes).await;
        let snapshot = meter.snapshot();
        let billable = |caller: &str| snapshot.callers[caller].billable;
        assert_eq!([billable("orders"), billable("batch"), billable(OTHER)], [2, 3, 1]);
        assert_eq!(snapshot.messages["post-cn-1"]["TopicA"].billable, 5);
        assert_eq!(snapshot.today["post-cn-1"]["TopicA"].billable, 5 * (process + 1));
        let delivered = |caller: &str| snapshot.callers_published[caller][0];
        assert_eq!([delivered("orders"), delivered("batch"), delivered(OTHER)], [1, 1, 1]);
        let over = meter.admits(&"post-cn-1".into(), "TopicA", Some("orders"));
        assert_eq!(over.is_err(), process == 1, "{over:?}");
        meter.admits(&"post-cn-1".into(), "TopicA", Some("batch")).unwrap();
        meter.admits(&"post-cn-1".into(), "TopicA", None).unwrap();
        let now = Timestamp::now().as_second().div_euclid(60) + 1;
        let rows = async |by| {
            let bill = meter.bill(Query { from: now - 60, to: now, by }).await.unwrap();
            let row = |row: BillRow| (row.topic.or(row.caller), row.messages, row.peak_tps);
            bill.rows.into_iter().map(row).collect::<Vec<_>>()
        };
        let (callers, topics) =
            (rows(By::subject(Subject::Caller)).await, rows(By::subject(Subject::Topic)).await);
        let messages = |rows: &[(Option<String>, u64, u64)]| -> Vec<_> {
            rows.iter()
                .map(|(name, messages, _)| (name.clone().unwrap_or_default(), *messages))
                .collect()
        };
        let times = process + 1;
        let of = |rows: &[(&str, u64)]| -> Vec<_> {
            rows.iter().map(|(name, messages)| ((*name).to_owned(), messages * times)).collect()
        };
        assert_eq!(messages(&callers), of(&[("", 1), ("batch", 3), ("orders", 2), (OTHER, 1)]));
        assert_eq!(messages(&topics), of(&[("TopicA", 5), ("TopicB", 2)]));
        assert_eq!(messages(&rows(By::subject(Subject::Instance)).await), of(&[("", 7)]));
        // All of a process may fall into one second; no second has more than there were.
        assert!(callers.iter().chain(&topics).all(|(_, all, peak)| (1..=*all).contains(peak)));
        assert!(topics[0].2 >= callers.iter().map(|row| row.2).max().unwrap().min(3));
        meter.close().await;
    }
}

/// What the provider may still read of other operations is counted as that, and no message of it.
#[tokio::test]
async fn calls_of_other_operations_outlive_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let instance = InstanceId::from("post-cn-1");
    let open = || Meter::open(Some(folder.path()), 5, &billing(), [instance.clone()]).unwrap();
    let calls = |meter: &Meter| {
        let left = meter.unanswered_before(Duration::from_mins(1), Duration::from_secs(3));
        left.unwrap_or_default().iter().map(|second| second.calls).sum::<usize>()
    };
    let killed = {
        let meter = open();
        meter.begin_action(&instance, "ApplyToken").await.ended(ActionResult::Ok, CallRead::Done);
        meter
            .begin_action(&instance, "ApplyToken")
            .await
            .ended(ActionResult::Unknown, CallRead::Possible);
        // One that is under way when the process is killed: the disk has a place for it.
        let under_way = meter.begin_action(&instance, "ApplyToken").await;
        let copied = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), copied.path().join(file.file_name())).unwrap();
        }
        under_way.ended(ActionResult::Ok, CallRead::Done);
        meter.close().await;
        copied
    };
    let meter = open();
    assert_eq!(calls(&meter), 1, "the one without an answer");
    meter.close().await;
    let meter = Meter::open(Some(killed.path()), 5, &billing(), [instance.clone()]).unwrap();
    assert!(calls(&meter) >= 2, "and the one under way");
    let messages = meter.snapshot().messages;
    let counted = messages.values().flat_map(BTreeMap::values);
    assert_eq!(counted.map(|messages| messages.uncertain).sum::<u64>(), 0, "none is a message");
    let bill = meter
        .bill(Query { from: 0, to: i64::MAX / 60, by: By::subject(Subject::Topic) })
        .await
        .unwrap();
    assert_eq!(bill.rows, [], "nor on the bill");
}
