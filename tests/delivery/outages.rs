//! What happens to a message between its acceptance and its end, in paused time: outages, overflow,
//! restarts, unknown outcomes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::test_sidecar::{
    ASYNC, Provider, TestSidecar, WAIT, error, is_kept, ok, once_each,
};
use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use tollgate::answer::{Answer, HttpAnswer, TransportError};
use tollgate::delivery::{Disposition, Keeping, Outcome, PublishOptions};
use tollgate::message::{Message, MessageId};
use tollgate::spool::{Claim, Reason, State};

/// Two minutes in which nothing passes cost tens of calls, and ten seconds after their end all is
/// delivered.
#[tokio::test(start_paused = true)]
async fn an_outage() {
    const OUTAGE: Duration = Duration::from_mins(2);
    let folder = tempfile::tempdir().unwrap();
    let provider =
        Provider::new(|at, _, _| if at < OUTAGE { error(500, "SendMessageFailed") } else { ok() });
    let sidecar = TestSidecar::new(folder.path(), &provider, &[]).await;
    for n in 0..5_000 {
        assert!(is_kept(&sidecar.publish(format!("{n}"), ASYNC).await));
    }
    sleep(OUTAGE.saturating_sub(provider.started.elapsed())).await;
    let during = provider.calls().len();
    assert!(during <= 150, "{during} calls");
    sidecar.empty().await;
    let taken = provider.taken();
    once_each(&taken, 5_000);
    let last = taken.last().unwrap().0;
    assert!(last <= OUTAGE + Duration::from_secs(10), "{last:?}");
    assert!(provider.worst_second() <= 1_000, "{}", provider.worst_second());
}

/// Callers who wait are told 202 while nothing passes, and 200 where it passes in time.
#[tokio::test(start_paused = true)]
async fn callers_who_wait_through_an_outage() {
    let folder = tempfile::tempdir().unwrap();
    let end = Duration::from_secs(20);
    let provider =
        Provider::new(move |at, _, _| if at < end { error(500, "InternalError") } else { ok() });
    let sidecar = Arc::new(TestSidecar::new(folder.path(), &provider, &[]).await);
    let mut tasks = Vec::new();
    for n in 0..100_u64 {
        let sidecar = Arc::clone(&sidecar);
        tasks.push(tokio::spawn(async move {
            sleep(Duration::from_millis(250) * u32::try_from(n).unwrap()).await;
            let start = Instant::now();
            let outcome = sidecar.publish(format!("{n}"), WAIT).await;
            assert!(start.elapsed() < WAIT.patience + Duration::from_millis(100));
            outcome
        }));
    }
    let mut told = Vec::new();
    for task in tasks {
        told.push(task.await.unwrap());
    }
    assert!(told.iter().all(Outcome::is_accepted));
    let kept = told.iter().filter(|outcome| is_kept(outcome)).count();
    assert!((40..90).contains(&kept), "{kept}");
    sidecar.empty().await;
    once_each(&provider.taken(), 100);
}

/// One message that always fails holds nobody.
#[tokio::test(start_paused = true)]
async fn one_that_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::new(|_, message, _| {
        if message.payload.as_bytes() == b"poison" { error(500, "InternalError") } else { ok() }
    });
    let flags = [("retry.max_age", "1m"), ("retry.cap", "5s")];
    let sidecar = TestSidecar::new(folder.path(), &provider, &flags).await;
    let poison = sidecar.publish("poison", ASYNC).await;
    let Disposition::Kept(id) = poison.ended else { panic!("{poison:?}") };
    for n in 0..300 {
        let start = Instant::now();
        let outcome = sidecar.publish(format!("{n}"), WAIT).await;
        assert!(outcome.is_accepted() && !is_kept(&outcome), "{outcome:?}");
        assert!(start.elapsed() < Duration::from_millis(20));
        sleep(Duration::from_millis(250)).await;
    }
    let State::Dead(death) = sidecar.delivery.find(id).unwrap().state else { panic!("it is old") };
    assert_eq!(death.reason, Reason::Expired);
    let tries = provider.calls().iter().filter(|(_, body, _)| body == "poison").count();
    assert!((10..60).contains(&tries), "{tries}");
}

/// One call in ten is pushed back: everything arrives, nothing twice.
#[tokio::test(start_paused = true)]
async fn push_back_now_and_then() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::new(|_, _, nth| {
        if nth.wrapping_mul(2_654_435_761) % 10 == 3 { error(500, "SystemOverFlow") } else { ok() }
    });
    let sidecar = Arc::new(TestSidecar::new(folder.path(), &provider, &[]).await);
    for n in 0..30_000 {
        let sidecar = Arc::clone(&sidecar);
        tokio::spawn(async move {
            // Rather kept than refused because of a ceiling.
            let wanted = PublishOptions { keep: Keeping::Preferred, ..WAIT };
            assert!(sidecar.publish(format!("{n}"), wanted).await.is_accepted());
        });
        sleep(Duration::from_millis(2)).await;
    }
    sleep(WAIT.patience).await;
    sidecar.empty().await;
    once_each(&provider.taken(), 30_000);
    let within = provider.taken().iter().filter(|(at, _)| at.as_secs() < 60).count();
    println!(
        "{within} of 30000 within the minute, the last after {:?}",
        provider.taken().last().unwrap().0
    );
}

/// The provider takes less than we believe: we find the pace, and fresh messages keep flowing.
#[tokio::test(start_paused = true)]
async fn overflow() {
    const REAL: usize = 400;
    let folder = tempfile::tempdir().unwrap();
    let window = Mutex::new(std::collections::VecDeque::new());
    let provider = Provider::new(move |at, _, _| {
        let mut window = window.lock().unwrap();
        while window
            .front()
            .is_some_and(|first| at.saturating_sub(*first) >= Duration::from_secs(1))
        {
            window.pop_front();
        }
        if window.len() >= REAL {
            return error(500, "SystemOverFlow");
        }
        window.push_back(at);
        ok()
    });
    let sidecar = Arc::new(TestSidecar::new(folder.path(), &provider, &[]).await);
    let accepted = Arc::new(Mutex::new(0));
    let fresh = Arc::new(Mutex::new(0_usize));
    for n in 0..60 * 800 {
        let (sidecar, accepted, fresh) =
            (Arc::clone(&sidecar), Arc::clone(&accepted), Arc::clone(&fresh));
        tokio::spawn(async move {
            let outcome = sidecar.publish(format!("{n}"), WAIT).await;
            *accepted.lock().unwrap() += usize::from(outcome.is_accepted());
            *fresh.lock().unwrap() += usize::from(outcome.is_accepted() && !is_kept(&outcome));
        });
        sleep(Duration::from_micros(1_250)).await;
    }
    let (first, all) = sidecar.first_calls();
    println!("first tries {first} of {all}");
    assert!(first as f64 >= 0.8 * all as f64, "fresh messages keep flowing: {first} of {all}");
    let calls = provider.calls();
    let (from, to) = (Duration::from_secs(15), Duration::from_mins(1));
    let late: Vec<_> = calls.iter().filter(|(at, ..)| (from..to).contains(at)).collect();
    let taken = late.iter().filter(|(_, _, taken)| *taken).count();
    let pushed_back = 1.0 - taken as f64 / late.len() as f64;
    let goodput = taken as f64 / 45.0 / REAL as f64;
    println!("pushed back {pushed_back:.3}, goodput {goodput:.3}");
    println!("fresh {} accepted {}", fresh.lock().unwrap(), accepted.lock().unwrap());
    assert!(pushed_back <= 0.05, "{pushed_back}");
    assert!(goodput >= 0.85, "{goodput}");
    sleep(WAIT.patience).await;
    sidecar.empty().await;
    once_each(&provider.taken(), *accepted.lock().unwrap());
}

/// What an earlier process accepted is delivered by the next.
#[tokio::test(start_paused = true)]
async fn a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let down = Provider::new(|_, _, _| Answer::TransportError(TransportError::Connect));
    let sidecar = TestSidecar::new(folder.path(), &down, &[]).await;
    for n in 0..50 {
        assert!(is_kept(&sidecar.publish(format!("{n}"), ASYNC).await));
    }
    sidecar.delivery.drain(Duration::from_secs(3)).await;
    assert_eq!(sidecar.delivery.close(Duration::from_secs(1)).await, 0);
    drop(sidecar);
    sleep(Duration::from_secs(5)).await;

    let up = Provider::new(|_, _, _| ok());
    let sidecar = TestSidecar::new(folder.path(), &up, &[]).await;
    sidecar.empty().await;
    once_each(&up.taken(), 50);
}

/// The provider refuses a kept message: a dead letter. A caller who waits is told.
#[tokio::test(start_paused = true)]
async fn refused_messages() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::new(|_, _, _| error(400, "ParameterCheckFailed"));
    let sidecar = TestSidecar::new(folder.path(), &provider, &[]).await;
    let Disposition::Kept(id) = sidecar.publish("async", ASYNC).await.ended else { panic!() };
    sidecar.empty().await;
    let State::Dead(death) = sidecar.delivery.find(id).unwrap().state else { panic!() };
    assert_eq!(
        (death.reason, death.code.as_deref()),
        (Reason::Refused, Some("ParameterCheckFailed"))
    );
    let told = sidecar.publish("waits", WAIT).await;
    assert!(matches!(told.ended, Disposition::Answered(_)) && !told.is_accepted());
    assert_eq!(sidecar.spool.usage().dead.messages, 1);
}

/// We are not let in: what is kept stays kept, and goes on by itself.
#[tokio::test(start_paused = true)]
async fn barred() {
    let folder = tempfile::tempdir().unwrap();
    let end = Duration::from_mins(1);
    let provider =
        Provider::new(move |at, _, _| if at < end { error(403, "Forbidden.RAM") } else { ok() });
    let sidecar = TestSidecar::new(folder.path(), &provider, &[]).await;
    for n in 0..20 {
        assert!(is_kept(&sidecar.publish(format!("{n}"), ASYNC).await));
    }
    sleep(Duration::from_secs(5)).await;
    assert_eq!(sidecar.delivery.paused().len(), 1);
    let told = sidecar.publish("waits", WAIT).await;
    assert!(matches!(told.ended, Disposition::Denied(_)), "no call is wasted: {told:?}");
    sidecar.empty().await;
    assert!(sidecar.delivery.paused().is_empty());
    once_each(&provider.taken(), 20);
    let before = provider.calls().iter().filter(|(at, ..)| *at < end).count();
    assert!(before < 60, "{before}");
}

/// Nobody knows: delivered again by default, and counted; never again where that is asked for.
#[tokio::test(start_paused = true)]
async fn unknown_outcomes() {
    let folder = tempfile::tempdir().unwrap();
    let rule = |_, _: &Message, nth| {
        if nth == 0 { Answer::TransportError(TransportError::Closed) } else { ok() }
    };
    let provider = Provider::new(rule);
    let sidecar = TestSidecar::new(&folder.path().join("retry"), &provider, &[]).await;
    let told = sidecar.publish("x", WAIT).await;
    assert!(told.is_accepted() && told.calls == 2, "{told:?}");
    assert_eq!((provider.taken().len(), sidecar.uncertain()), (2, 1));

    let provider = Provider::new(rule);
    let flags = [("retry.unknown", "park")];
    let sidecar = TestSidecar::new(&folder.path().join("park"), &provider, &flags).await;
    let Disposition::Kept(id) = sidecar.publish("x", ASYNC).await.ended else { panic!() };
    sidecar.empty().await;
    sleep(Duration::from_mins(2)).await;
    let State::Dead(death) = sidecar.delivery.find(id).unwrap().state else { panic!() };
    assert_eq!((death.reason, provider.calls().len()), (Reason::Unknown, 1));
    assert_eq!(sidecar.uncertain(), 1);

    // A waiting caller knows itself.
    let provider = Provider::new(|_, _, _| Answer::TransportError(TransportError::Timeout));
    let sidecar = TestSidecar::new(&folder.path().join("told"), &provider, &flags).await;
    let told = sidecar.publish("x", WAIT).await;
    assert_eq!(told.ended, Disposition::Answered(Answer::TransportError(TransportError::Timeout)));
    assert_eq!(sidecar.spool.usage().queued.messages + sidecar.spool.usage().dead.messages, 0);
}

/// A caller whose patience ends while its call hangs is told 202, and the message is delivered.
#[tokio::test(start_paused = true)]
async fn a_call_that_hangs() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::new(|_, _, nth| {
        if nth == 0 { Answer::TransportError(TransportError::Timeout) } else { ok() }
    });
    let sidecar = TestSidecar::new(folder.path(), &provider, &[]).await;
    let wanted = PublishOptions { patience: Duration::from_secs(1), ..WAIT };
    let start = Instant::now();
    let told = sidecar.publish("x", wanted).await;
    assert!(is_kept(&told), "{told:?}");
    assert!(start.elapsed() < Duration::from_millis(1_100));
    assert_eq!(sidecar.uncertain(), 0, "nobody knows yet");
    sidecar.empty().await;
    assert_eq!((provider.taken().len(), sidecar.uncertain()), (1, 1));
}

/// A thousand requests with one key: one call; also after a restart.
#[tokio::test(start_paused = true)]
async fn one_key() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::new(|_, _, _| ok());
    let sidecar = Arc::new(TestSidecar::new(folder.path(), &provider, &[]).await);
    let claim = Some(Claim { key: 1, print: 2 });
    let wanted = PublishOptions { claim, ..WAIT };
    let tasks: Vec<_> = (0..1_000)
        .map(|_| {
            let sidecar = Arc::clone(&sidecar);
            tokio::spawn(async move { sidecar.publish("x", wanted).await })
        })
        .collect();
    let mut delivered = 0;
    for task in tasks {
        let outcome = task.await.unwrap();
        match outcome.ended {
            Disposition::Answered(_) => delivered += 1,
            Disposition::SameUnderWay => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((delivered, provider.calls().len()), (1, 1));
    let first = sidecar.publish("x", wanted).await;
    assert!(first.replayed && first.is_accepted() && !is_kept(&first), "{first:?}");
    let other = PublishOptions { claim: Some(Claim { key: 1, print: 3 }), ..WAIT };
    assert_eq!(sidecar.publish("y", other).await.ended, Disposition::OtherRequest);
    sidecar.spool.flush().await;
    drop(sidecar);
    sleep(Duration::from_secs(1)).await;

    let sidecar = TestSidecar::new(folder.path(), &provider, &[]).await;
    let again = sidecar.publish("x", wanted).await;
    assert!(again.replayed, "{again:?}");
    assert_eq!(again.ended, first.ended);
    assert_eq!(sidecar.publish("y", other).await.ended, Disposition::OtherRequest);
    assert_eq!(provider.calls().len(), 1);
    // And is forgotten in time.
    sleep(Duration::from_mins(11)).await;
    assert!(!sidecar.publish("x", wanted).await.replayed);
}

/// A request that was not accepted leaves its key free.
#[tokio::test(start_paused = true)]
async fn a_key_of_a_refused_request() {
    let folder = tempfile::tempdir().unwrap();
    let provider =
        Provider::new(|_, _, nth| if nth == 0 { error(400, "ParameterCheckFailed") } else { ok() });
    let sidecar = TestSidecar::new(folder.path(), &provider, &[]).await;
    let wanted = PublishOptions { claim: Some(Claim { key: 1, print: 2 }), ..WAIT };
    assert!(!sidecar.publish("x", wanted).await.is_accepted());
    let again = sidecar.publish("x", wanted).await;
    assert!(again.is_accepted() && !again.replayed, "{again:?}");
    assert!(sidecar.delivery.find(MessageId::new()).is_none());
    assert!(sidecar.spool.usage().oldest.is_none_or(|at| at <= Timestamp::now()));
}

/// A key costs no permit beside its call's, and the provider's own wait is kept to.
#[tokio::test(start_paused = true)]
async fn a_key_costs_one_permit() {
    let folder = tempfile::tempdir().unwrap();
    let wait = Duration::from_secs(7);
    let provider = Provider::new(move |_, _, nth| {
        let Answer::Http(http) = error(400, "Throttling.User") else { return ok() };
        if nth == 0 { Answer::Http(HttpAnswer { retry_after: Some(wait), ..http }) } else { ok() }
    });
    let flags = [("ceilings.account", "10")];
    let sidecar = TestSidecar::new(folder.path(), &provider, &flags).await;
    let told = sidecar
        .publish("throttled", PublishOptions { patience: Duration::from_secs(20), ..WAIT })
        .await;
    assert!(told.is_accepted() && told.calls == 2, "{told:?}");
    let calls = provider.calls();
    assert!(calls[1].0 >= calls[0].0 + wait, "{calls:?}");

    // Eight a second of ten: a second permit each would make them queue up behind each other.
    let (folder, provider) = (tempfile::tempdir().unwrap(), Provider::new(|_, _, _| ok()));
    let sidecar = TestSidecar::new(folder.path(), &provider, &flags).await;
    for key in 0..40 {
        sleep(Duration::from_millis(125)).await;
        let start = Instant::now();
        let wanted = PublishOptions { claim: Some(Claim { key, print: 2 }), ..WAIT };
        assert!(sidecar.publish(format!("{key}"), wanted).await.is_accepted());
        assert!(start.elapsed() < Duration::from_millis(110), "{key}: {:?}", start.elapsed());
    }
}
