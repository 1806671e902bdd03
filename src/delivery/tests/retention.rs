//! Dead letters that end without an operator.

use jiff::{SignedDuration, Timestamp};
use tracing::Level;

use super::super::retention::PAUSE;
use super::*;
use crate::log_limiter::captured::{CapturedLog, capture};
use crate::spool::{Change, Death, KeepError, Options, Reason};

const SOON: Duration = Duration::from_secs(1);

async fn start_in(disk: &Double, provider: &Provider, options: &Options) -> Delivery<Provider> {
    let config = config(&[]);
    let ceiling = Ceiling::start(&config.ceilings, 1, 1_000, Start::Alone);
    let meter = Meter::new(5, &config.billing, []);
    let spool = open(disk, options).await;
    Delivery::new(&config, provider.clone(), Some(spool), ceiling, meter, Traces::off(), 7)
}

fn large(topic: &str) -> Message {
    Message { payload: Payload::kept(vec![7; 40_000].into(), PayloadForm::Body), ..message(topic) }
}

/// The lines about what was dropped for this reason.
fn audit(log: &CapturedLog, reason: &str) -> Vec<String> {
    let text = log.text();
    let lines = text.lines().filter(|line| line.contains("tollgate::audit: audit: dead letters"));
    let reason = format!("verb=\"expire\" reason=\"{reason}\"");
    lines.filter(|line| line.contains(&reason)).map(str::to_owned).collect()
}

fn is_dropped(delivery: &Delivery<Provider>, id: MessageId, doubt: bool) -> bool {
    let found = delivery.find(id);
    found.is_some_and(|b| matches!(b.state, State::Dropped(_)) && b.doubt == doubt)
}

/// Dead letters that are older than `retry.keep_dead` are dropped at the start and while it runs, those
/// of unknown outcome with their doubt; the audit log has a line for all of a pass.
#[tokio::test(start_paused = true)]
async fn old_dead_letters_are_dropped_and_recorded() {
    let (log, _guard) = capture(Level::WARN);
    let (disk, provider) = (Double::default(), Provider::default());
    let options = options(Path::new("/nowhere"));
    let mut ids = Vec::new();
    {
        let spool = open(&disk, &options).await;
        let reasons = [Reason::Refused, Reason::Unknown, Reason::Expired, Reason::Refused];
        for (reason, hours) in reasons.into_iter().zip([170, 169, 169, 167]) {
            let kept = message("TopicA");
            spool.keep(&kept, None).await.unwrap();
            let at = Timestamp::now() - SignedDuration::from_hours(hours);
            let death = Death { reason, code: None, request_id: None, at, accepted: true };
            spool.note(kept.id, Change::Dead(1, death)).await;
            ids.push(kept.id);
        }
    }
    let delivery = start_in(&disk, &provider, &options).await;
    sleep(SOON).await;
    for (id, doubt) in ids[..3].iter().zip([false, true, false]) {
        assert!(is_dropped(&delivery, *id, doubt));
    }
    assert!(matches!(delivery.find(ids[3]).unwrap().state, State::Dead(_)));
    // Another one while it runs.
    let kept = message("TopicA");
    let spool = delivery.spool().unwrap();
    spool.keep(&kept, None).await.unwrap();
    let at = Timestamp::now() - SignedDuration::from_hours(169);
    let reason = Reason::Refused;
    let death = Death { reason, code: None, request_id: None, at, accepted: true };
    spool.note(kept.id, Change::Dead(1, death)).await;
    sleep(PAUSE * 3).await;
    assert!(is_dropped(&delivery, kept.id, false));
    let [first, second] = <[String; 2]>::try_from(audit(&log, "age")).unwrap();
    let listed = ids[..3].iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let order = format!("messages=3 ids=\"{listed}\"");
    assert!(first.contains("WARN") && first.contains(&order), "{first}");
    assert!(second.contains(&format!("messages=1 ids=\"{}\"", kept.id)), "{second}");
    assert_eq!((spool.usage().dropped_dead, audit(&log, "room").len()), ([4, 0], 0));
}

/// Refused messages of one topic take no room from the messages of another; their keys are answered
/// from what is left of them, and the audit log has a line in each pause, not one for each message.
#[tokio::test(start_paused = true)]
async fn refused_messages_leave_room_to_others() {
    let (log, _guard) = capture(Level::WARN);
    let (disk, provider) = (Double::default(), Provider::default());
    let options = Options { max_bytes: 1 << 20, ..options(Path::new("/nowhere")) };
    let delivery = start_in(&disk, &provider, &options).await;
    let spool = delivery.spool().unwrap();
    provider.answers(400);
    let mut ids = Vec::new();
    for key in 0..60 {
        let claim = Some(Claim { key, print: 2 });
        let outcome = delivery.publish(large("Bad/x"), PublishOptions { claim, ..ASYNC }).await;
        let Disposition::Kept(id) = outcome.ended else { panic!("{key}: {outcome:?}") };
        until("it is refused", || spool.usage().queued.messages == 0).await;
        ids.push(id);
    }
    assert!(delivery.publish(large("Good/x"), ASYNC).await.is_accepted());
    let dropped = usize::try_from(spool.usage().dropped_dead[1]).unwrap();
    assert!((34..60).contains(&dropped), "{dropped}");
    for (key, id) in ids.iter().enumerate() {
        let claim = Some(Claim { key: key as u128, print: 2 });
        let again = delivery.publish(large("Bad/x"), PublishOptions { claim, ..ASYNC }).await;
        assert!(again.replayed && again.id() == Some(*id), "{again:?}");
        let is_dropped = matches!(again.ended, Disposition::Dropped { doubt: false, .. });
        assert_eq!(is_dropped, key < dropped, "{key}: {again:?}");
    }
    sleep(PAUSE * 2).await;
    let lines = audit(&log, "room");
    assert!(!lines.is_empty() && lines.len() < 10, "{lines:?}");
    let count = |line: &String| {
        let after = line.split_once("messages=").unwrap().1;
        after.split(' ').next().unwrap().parse::<usize>().unwrap()
    };
    assert_eq!(lines.iter().map(count).sum::<usize>(), dropped);
    assert!(lines[0].contains(&ids[0].to_string()));
}

/// A topic that is refused for its share is named in the log, and one that is only published to
/// counts as in use.
#[tokio::test(start_paused = true)]
async fn a_topic_that_floods_is_refused_before_the_others() {
    let (log, _guard) = capture(Level::WARN);
    let (disk, provider) = (Double::default(), Provider::default());
    let options = Options { max_messages: 18, ..options(Path::new("/nowhere")) };
    let delivery = start_in(&disk, &provider, &options).await;
    provider.answers(200);
    let direct = PublishOptions {
        patience: Duration::from_secs(5),
        keep: Keeping::IfNotDelivered,
        claim: None,
    };
    let outcome = delivery.publish(message("Good/x"), direct).await;
    assert!(matches!(outcome.ended, Disposition::Answered(_)), "{outcome:?}");
    *provider.answers.lock().unwrap() = None;
    let mut last = None;
    for _ in 0..18 {
        last = Some(delivery.publish(message("Flood/x"), ASYNC).await);
    }
    let refused = Outcome::new(0, Disposition::NotKept(KeepError::TopicShare));
    assert_eq!(last, Some(refused));
    let usage = delivery.spool().unwrap().usage();
    assert_eq!((usage.queued.messages, usage.refused.topic_share), (17, 1));
    assert!(log.text().contains("its topic holds its share of the spool"), "{}", log.text());
    assert!(delivery.publish(message("Good/x"), ASYNC).await.is_accepted());
    // An operator's drop makes room as before.
    let picked = Selection {
        topic: Some("Flood/*".into()),
        state: Some(Which::Queued),
        ..Selection::default()
    };
    assert_eq!(delivery.discard(&picked.pick().unwrap()).await.messages, 17);
    assert!(delivery.publish(message("Flood/x"), ASYNC).await.is_accepted());
}
