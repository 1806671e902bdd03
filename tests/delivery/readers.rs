//! A reader that waits for the end of a kept message goes on when that comes, however it ends.

use std::sync::Arc;
use std::time::Duration;

use crate::support::test_sidecar::{ASYNC, Provider, TestSidecar, error, ok};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tollgate::answer::Answer;
use tollgate::message::MessageId;
use tollgate::spool::{Brief, Selection, State};

/// No retry comes by itself as long as a test looks.
const RARELY: [(&str, &str); 2] = [("retry.base", "1h"), ("retry.cap", "1h")];
const PATIENCE: Duration = Duration::from_mins(1);

struct Stage {
    _folder: tempfile::TempDir,
    sidecar: Arc<TestSidecar>,
    id: MessageId,
}

/// A message that is kept, whose call has failed, and what the provider answers from now on.
async fn kept(next: Answer, flags: &[(&str, &str)]) -> Stage {
    let folder = tempfile::tempdir().unwrap();
    let fails = error(500, "SendMessageFailed");
    let answers = move |_, _: &_, nth| if nth == 0 { fails.clone() } else { next.clone() };
    let sidecar = TestSidecar::new(folder.path(), &Provider::new(answers), flags).await;
    let id = sidecar.publish("x", ASYNC).await.id().unwrap();
    Stage { _folder: folder, sidecar: Arc::new(sidecar), id }
}

/// A reader that waits already, and how long it did in the end.
async fn reads(stage: &Stage) -> JoinHandle<(Option<Brief>, Duration)> {
    let (sidecar, id) = (Arc::clone(&stage.sidecar), stage.id);
    let reading = tokio::spawn(async move {
        let begun = Instant::now();
        let found = sidecar.delivery.find_ended(id, PATIENCE).await.unwrap();
        (found, begun.elapsed())
    });
    sleep(Duration::from_millis(1)).await;
    assert!(!reading.is_finished(), "it waits");
    reading
}

async fn state(reading: JoinHandle<(Option<Brief>, Duration)>) -> (State, Duration) {
    let (found, waited) = reading.await.unwrap();
    (found.unwrap().state, waited)
}

#[tokio::test(start_paused = true)]
async fn until_it_is_delivered_or_refused() {
    let soon = [("retry.base", "10s"), ("retry.cap", "10s")];
    let stage = kept(ok(), &soon).await;
    let (first, second) = (reads(&stage).await, reads(&stage).await);
    for reading in [first, second] {
        let (found, waited) = state(reading).await;
        assert!(matches!(found, State::Delivered(_)), "{found:?}");
        assert!(waited < PATIENCE, "{waited:?}");
    }
    // It has ended: no reader waits for it any more.
    let begun = Instant::now();
    assert!(stage.sidecar.delivery.find_ended(stage.id, PATIENCE).await.unwrap().is_some());
    assert_eq!(begun.elapsed(), Duration::ZERO);

    let stage = kept(error(400, "ParameterCheckFailed"), &soon).await;
    let (found, waited) = state(reads(&stage).await).await;
    assert!(matches!(found, State::Dead(_)) && waited < PATIENCE, "{found:?} {waited:?}");
}

#[tokio::test(start_paused = true)]
async fn until_it_is_dropped() {
    let stage = kept(ok(), &RARELY).await;
    sleep(Duration::from_secs(1)).await;
    let reading = reads(&stage).await;
    let named = Selection { ids: vec![stage.id.to_string()], ..Selection::default() };
    assert_eq!(stage.sidecar.delivery.discard(&named.pick().unwrap()).await.messages, 1);
    let (found, waited) = state(reading).await;
    assert!(matches!(found, State::Dropped(_)) && waited < PATIENCE, "{found:?} {waited:?}");
}

#[tokio::test(start_paused = true)]
async fn until_its_patience_or_the_sidecar_ends() {
    let stage = kept(ok(), &RARELY).await;
    sleep(Duration::from_secs(1)).await;
    let (state_then, waited) = state(reads(&stage).await).await;
    assert!(matches!(state_then, State::Queued { .. }), "{state_then:?}");
    // The timer rounds up to a millisecond.
    assert!((PATIENCE..=PATIENCE + Duration::from_millis(1)).contains(&waited), "{waited:?}");

    let reading = reads(&stage).await;
    stage.sidecar.delivery.drain(Duration::ZERO).await;
    let (state_then, waited) = state(reading).await;
    assert!(matches!(state_then, State::Queued { .. }) && waited < PATIENCE, "{waited:?}");
    // One that comes later does not wait either.
    let begun = Instant::now();
    assert!(stage.sidecar.delivery.find_ended(stage.id, PATIENCE).await.unwrap().is_some());
    assert_eq!(begun.elapsed(), Duration::ZERO);
}
