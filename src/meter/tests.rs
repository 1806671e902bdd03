use super::*;
use crate::config::Prices;
use crate::message::{MessageId, Payload, PayloadEncoding, Topic};
use jiff::tz::TimeZone;

pub(super) fn billing() -> Billing {
    Billing {
        currency: "CNY".to_owned(),
        prices: Prices::flat(2.0),
        plan_tps: None,
        time_zone: TimeZone::UTC,
        budgets: Vec::new(),
    }
}

fn message(topic: &str) -> Message {
    Message {
        id: MessageId::new(),
        instance: "post-cn-1".into(),
        topic: Topic::parse(topic).unwrap(),
        payload: Payload::new(bytes::Bytes::new(), PayloadEncoding::Base64, 0).unwrap(),
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
        meter.published(Some(&parent), Published::Delivered, Duration::ZERO);
        call(&meter, &parent, &format!("Code.{i}"), Billed::Yes).await;
    }
    let snapshot = meter.snapshot();
    assert_eq!(snapshot.published.len(), 4);
    assert_eq!(snapshot.published[OTHER][0], 10_000 - 3);
    assert!(snapshot.calls.len() <= 3 + 64);
    assert_eq!(snapshot.messages["post-cn-1"].len(), 4);
    assert_eq!(snapshot.calls.values().sum::<u64>(), 10_000);
}
