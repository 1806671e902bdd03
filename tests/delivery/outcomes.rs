//! What becomes of a kept message is what its waiting caller is answered, and the next request with its
//! key: delivered, dead, unknown or dropped, never `queued` when it is not.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::support;
use crate::support::http::{Answer as Reply, get, post};
use crate::support::process::{Serve, run};
use crate::support::script::{self, Say, Script};
use crate::support::test_sidecar::{ASYNC, Provider, TestSidecar, WAIT, error, is_kept, ok};
use http::{HeaderMap, HeaderName, HeaderValue};
use rustix::process::Signal;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tollgate::answer::{Answer, HttpAnswer, TransportError};
use tollgate::delivery::{Disposition, Outcome, PublishOptions, Settled};
use tollgate::message::MessageId;
use tollgate::spool::{Claim, Picked, Reason, Selection, State};

/// No retry comes by itself as long as a test looks.
const RARELY: [(&str, &str); 2] = [("retry.base", "1h"), ("retry.cap", "1h")];
const KEEP: Duration = Duration::from_mins(10);

fn keyed(wanted: PublishOptions) -> PublishOptions {
    PublishOptions { claim: Some(Claim { key: 1, print: 2 }), ..wanted }
}

fn fails() -> Answer {
    error(500, "SendMessageFailed")
}

fn unknown() -> Answer {
    Answer::TransportError(TransportError::Closed)
}

async fn sidecar(folder: &Path, provider: &Provider, flags: &[(&str, &str)]) -> Arc<TestSidecar> {
    Arc::new(TestSidecar::new(folder, provider, flags).await)
}

/// An ordered stop, and the next process.
async fn restart(
    sidecar: Arc<TestSidecar>,
    folder: &Path,
    provider: &Provider,
    flags: &[(&str, &str)],
) -> Arc<TestSidecar> {
    sidecar.delivery.drain(Duration::ZERO).await;
    sidecar.delivery.close(Duration::from_secs(5)).await;
    drop(sidecar);
    self::sidecar(folder, provider, flags).await
}

fn asks(sidecar: &Arc<TestSidecar>, wanted: PublishOptions) -> JoinHandle<Outcome> {
    let sidecar = Arc::clone(sidecar);
    tokio::spawn(async move { sidecar.publish("x", wanted).await })
}

/// The one message there is.
fn only(sidecar: &TestSidecar) -> MessageId {
    sidecar.spool.list(None, 2, &mut |_| true).pop().unwrap().id
}

async fn discard(sidecar: &TestSidecar, id: MessageId) {
    let named = Selection { ids: vec![id.to_string()], ..Selection::default() };
    assert_eq!(sidecar.delivery.discard(&named.pick().unwrap()).await.messages, 1);
}

/// The next request with the key is answered so, without a call.
async fn again(sidecar: &TestSidecar, provider: &Provider, ended: Disposition) {
    let calls = provider.calls().len();
    let got = sidecar.publish("x", keyed(WAIT)).await;
    assert!(got.replayed && got.ended == ended, "{got:?}, not {ended:?}");
    assert_eq!(provider.calls().len(), calls, "no second call");
}

// === dropped ===

#[tokio::test(start_paused = true)]
async fn a_caller_waits_for_a_message_that_is_dropped() {
    for (answer, doubt) in [(fails(), false), (unknown(), true)] {
        let folder = tempfile::tempdir().unwrap();
        let provider = Provider::new(move |_, _, _| answer.clone());
        let first = sidecar(folder.path(), &provider, &RARELY).await;
        let patient = PublishOptions { patience: Duration::from_mins(30), ..keyed(WAIT) };
        let asked = asks(&first, patient);
        sleep(Duration::from_secs(1)).await;
        let id = only(&first);
        discard(&first, id).await;
        sleep(Duration::from_millis(1)).await;
        assert!(asked.is_finished(), "it is answered at once");
        let dropped = Disposition::Dropped { id, doubt };
        assert_eq!(asked.await.unwrap().ended, dropped);
        again(&first, &provider, dropped.clone()).await;
        // Over an ordered restart as well.
        let next = restart(first, folder.path(), &provider, &RARELY).await;
        again(&next, &provider, dropped).await;
        assert!(matches!(next.delivery.find(id).unwrap().state, State::Dropped(_)));
    }
}

/// Also without a key.
#[tokio::test(start_paused = true)]
async fn a_caller_without_a_key_waits_for_a_message_that_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::new(|_, _, _| fails());
    let sidecar = sidecar(folder.path(), &provider, &RARELY).await;
    let asked = asks(&sidecar, WAIT);
    sleep(Duration::from_secs(1)).await;
    let id = only(&sidecar);
    discard(&sidecar, id).await;
    assert_eq!(asked.await.unwrap().ended, Disposition::Dropped { id, doubt: false });
    assert!(matches!(sidecar.delivery.find(id).unwrap().state, State::Dropped(_)));
}

/// Its caller was answered 202 long ago, or it is a dead letter.
#[tokio::test(start_paused = true)]
async fn a_key_of_a_message_that_is_dropped_later() {
    let unknown_dead = [("retry.unknown", "park")];
    for (answer, flags, doubt) in [
        (fails(), &RARELY[..], false),
        (error(400, "ParameterCheckFailed"), &RARELY, false),
        (unknown(), &unknown_dead, true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let provider = Provider::new(move |_, _, _| answer.clone());
        let first = sidecar(folder.path(), &provider, flags).await;
        assert!(is_kept(&first.publish("x", keyed(ASYNC)).await));
        sleep(Duration::from_secs(1)).await;
        let id = only(&first);
        discard(&first, id).await;
        again(&first, &provider, Disposition::Dropped { id, doubt }).await;
        let next = restart(first, folder.path(), &provider, flags).await;
        again(&next, &provider, Disposition::Dropped { id, doubt }).await;
    }
}

/// A call that was under way decides.
#[tokio::test(start_paused = true)]
async fn a_drop_while_a_call_is_under_way() {
    for (answer, wanted) in [
        (ok(), keyed(WAIT)),
        (fails(), keyed(WAIT)),
        (error(400, "ParameterCheckFailed"), keyed(WAIT)),
        (unknown(), keyed(WAIT)),
        (ok(), keyed(ASYNC)),
        (unknown(), keyed(ASYNC)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let says = answer.clone();
        let provider = Provider::new(move |_, _, _| says.clone()).slow();
        let sidecar = sidecar(folder.path(), &provider, &RARELY).await;
        let asked = asks(&sidecar, wanted);
        sleep(Duration::from_secs(1)).await;
        let id = only(&sidecar);
        assert_eq!(provider.calls().len(), 1);
        discard(&sidecar, id).await;
        if wanted.patience.is_zero() {
            // Until it has ended, it may arrive.
            again(&sidecar, &provider, Disposition::Dropped { id, doubt: true }).await;
        }
        sleep(Duration::from_secs(10)).await;
        let got = asked.await.unwrap();
        let dropped = Disposition::Dropped { id, doubt: answer == unknown() };
        match (answer == ok(), wanted.patience.is_zero()) {
            (true, true) => {
                again(&sidecar, &provider, Disposition::Settled(id, Settled::Delivered)).await;
            }
            (true, false) => {
                assert_eq!(got.ended, Disposition::Answered(ok()));
                again(&sidecar, &provider, Disposition::Answered(ok())).await;
            }
            (false, patient) => {
                assert!(patient || got.ended == dropped, "{got:?}");
                again(&sidecar, &provider, dropped).await;
            }
        }
        assert_eq!(provider.calls().len(), 1, "a dropped message is not sent again");
    }
}

/// A call of the process that kept it may have been under way when that ended.
#[tokio::test(start_paused = true)]
async fn a_drop_of_a_message_of_an_earlier_process() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::new(|_, _, _| fails());
    let first = sidecar(folder.path(), &provider, &RARELY).await;
    assert!(is_kept(&first.publish("x", keyed(ASYNC)).await));
    sleep(Duration::from_secs(1)).await;
    let id = only(&first);
    let next = restart(first, folder.path(), &provider, &RARELY).await;
    discard(&next, id).await;
    again(&next, &provider, Disposition::Dropped { id, doubt: true }).await;
}

/// A wait that expires while the drop's call is under way is not answered `queued`.
#[tokio::test(start_paused = true)]
async fn a_wait_that_expires_after_a_drop() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::new(|_, _, _| fails()).slow();
    let sidecar = sidecar(folder.path(), &provider, &RARELY).await;
    let hasty = PublishOptions { patience: Duration::from_secs(2), ..keyed(WAIT) };
    let asked = asks(&sidecar, hasty);
    sleep(Duration::from_secs(1)).await;
    let id = only(&sidecar);
    discard(&sidecar, id).await;
    assert_eq!(asked.await.unwrap().ended, Disposition::Dropped { id, doubt: true });
}

// === calls whose outcome is unknown ===

fn death(sidecar: &TestSidecar, id: MessageId) -> Option<Reason> {
    match sidecar.delivery.find(id).unwrap().state {
        State::Dead(death) => Some(death.reason),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_outcome_stays_unknown() {
    let garbled = Answer::Http(HttpAnswer { status: 200, ..HttpAnswer::default() });
    for (answer, tries, wanted) in [
        (Answer::TransportError(TransportError::Timeout), "2", ASYNC),
        (garbled, "2", keyed(WAIT)),
        (Answer::TransportError(TransportError::Garbled), "5", WAIT),
        (unknown(), "0", ASYNC),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let says = answer.clone();
        let provider = Provider::new(move |_, _, _| says.clone());
        let flags = [("retry.unknown_tries", tries)];
        let sidecar = sidecar(folder.path(), &provider, &flags).await;
        drop(sidecar.publish("x", wanted).await);
        sidecar.empty().await;
        sleep(Duration::from_hours(1)).await;
        let most = 1 + tries.parse::<usize>().unwrap();
        assert_eq!(provider.calls().len(), most, "{answer:?}");
        assert_eq!(death(&sidecar, only(&sidecar)), Some(Reason::Unknown));
    }
}

/// What was perhaps delivered is sent again as often as configured and no more, whatever in its answer
/// cannot be read; and the dead letter says that.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_never_understood() {
    let ok = br#"{"MsgId":"M","RequestId":"R"}"#.as_slice();
    let coded = ("content-encoding", "gzip");
    let waits = ("x-acs-retry-after", "1000");
    for (status, header, body, cause) in [
        (200, Some(coded), ok, "encoded_body"),
        (202, Some(("content-encoding", "br")), b"\x0b\x02", "encoded_body"),
        (200, None, b"\x1f\x8b\x08\0", "unreadable_body"),
        (204, None, b"", "empty_body"),
        (200, Some(("retry-after", "1")), b"", "empty_body"),
        (200, None, b"<html>OK</html>", "unreadable_body"),
        (200, None, br#"{"MsgId":"0B73"#, "unreadable_body"),
        (200, None, br#"[{"MsgId":"M"}]"#, "unreadable_body"),
        (200, None, br#"{"Data":{"MsgId":"M"}}"#, "empty_msgid"),
        (200, None, br#"{"MsgId":" "}"#, "empty_msgid"),
        (200, None, br#"{"Code":"Throttling.User"}"#, "empty_msgid"),
        // Errors, but not the provider's word that it has not taken the message.
        (400, Some(coded), br#"{"Code":"Throttling"}"#, "http_400"),
        (504, Some(waits), b"<html>", "http_504"),
        (503, Some(("retry-after", "1")), b"<html>", "http_503"),
        (303, None, b"", "http_303"),
        (400, Some(waits), br#"{"Code":"SignatureNonceUsed"}"#, "SignatureNonceUsed"),
    ] {
        let headers: HeaderMap = header
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        let answer = Answer::read(status, &headers, body);
        let folder = tempfile::tempdir().unwrap();
        let provider = Provider::new(move |_, _, _| answer.clone());
        let sidecar = sidecar(folder.path(), &provider, &[]).await;
        assert!(is_kept(&sidecar.publish("x", ASYNC).await));
        sleep(Duration::from_hours(30)).await;
        assert_eq!(provider.calls().len(), 3, "{cause}: {status} {header:?}");
        assert_eq!(sidecar.uncertain(), 3, "{cause}: {status} {header:?}");
        let State::Dead(death) = sidecar.delivery.find(only(&sidecar)).unwrap().state else {
            panic!("{cause}: no dead letter")
        };
        assert_eq!((death.reason, death.code.as_deref()), (Reason::Unknown, Some(cause)));
    }
}

/// Where an answer asks to wait, in either header, the next call comes no earlier.
#[tokio::test(start_paused = true)]
async fn a_wait_that_is_asked_for() {
    let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
    let failed = br#"{"Code":"SendMessageFailed"}"#.as_slice();
    for (status, header, body, wait) in [
        (429, ("retry-after", "90"), b"".as_slice(), 90),
        (503, ("retry-after", "Sun, 06 Nov 1994 08:51:07 GMT"), b"<html>", 90),
        (503, ("retry-after", "9999999999999999999999"), failed, 120),
        (500, ("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT"), failed, 120),
        (400, ("x-acs-retry-after", "99999999999999999999"), failed, 120),
        (200, ("retry-after", "90"), b"", 90),
    ] {
        let headers: HeaderMap = [date, header]
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        let answer = Answer::read(status, &headers, body);
        let folder = tempfile::tempdir().unwrap();
        let rule = move |_, _: &_, nth| if nth == 0 { answer.clone() } else { ok() };
        let provider = Provider::new(rule);
        let sidecar = sidecar(folder.path(), &provider, &[]).await;
        assert!(is_kept(&sidecar.publish("x", ASYNC).await));
        sidecar.empty().await;
        let calls = provider.calls();
        let waited = calls[1].0.saturating_sub(calls[0].0).as_secs();
        assert!(waited >= wait && waited < wait + 60, "{status} {header:?}: {waited} s");
    }
}

/// Calls that fail for certain do not count, a restart does not begin anew, a replay does.
#[tokio::test(start_paused = true)]
async fn what_counts_as_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::new(|_, _, nth| match nth {
        0 | 3 => unknown(),
        9.. => Answer::TransportError(TransportError::Timeout),
        1 => error(500, "SystemOverFlow"),
        _ => fails(),
    });
    let flags = [("retry.base", "20s"), ("retry.cap", "20s")];
    let mut sidecar = sidecar(folder.path(), &provider, &flags).await;
    assert!(is_kept(&sidecar.publish("x", ASYNC).await));
    let id = only(&sidecar);
    // Longer than a message waits for its next try.
    for _ in 0..20 {
        sleep(Duration::from_secs(25)).await;
        sidecar = restart(sidecar, folder.path(), &provider, &flags).await;
    }
    // Two were unknown, seven failed, and the tenth is the third.
    assert_eq!((provider.calls().len(), death(&sidecar, id)), (10, Some(Reason::Unknown)));
    assert_eq!(sidecar.delivery.replay(&Picked::default()).await.messages, 1);
    sidecar.empty().await;
    assert_eq!((provider.calls().len(), death(&sidecar, id)), (13, Some(Reason::Unknown)));
}

// === keys ===

/// A key is taken as long as its message is queued, and for so long after its end.
#[tokio::test(start_paused = true)]
async fn a_key_of_a_message_that_is_queued_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let healthy = Duration::from_mins(55);
    let provider = Provider::new(move |at, _, _| if at < healthy { fails() } else { ok() });
    let flags = [("retry.cap", "1s")];
    let sidecar = sidecar(folder.path(), &provider, &flags).await;
    let first = sidecar.publish("x", keyed(ASYNC)).await;
    assert!(is_kept(&first));
    let id = only(&sidecar);
    for _ in 0..10 {
        sleep(Duration::from_mins(5)).await;
        assert_eq!(sidecar.publish("x", keyed(ASYNC)).await.ended, Disposition::Kept(id));
    }
    sidecar.empty().await;
    sleep(KEEP.checked_sub(Duration::from_secs(30)).unwrap()).await;
    again(&sidecar, &provider, Disposition::Settled(id, Settled::Delivered)).await;
    sleep(Duration::from_mins(1)).await;
    let other = sidecar.publish("x", keyed(WAIT)).await;
    assert!(!other.replayed && other.ended == Disposition::Answered(ok()), "{other:?}");
    assert_eq!(provider.taken().len(), 2);
}

/// After a restart a key counts from its message's end, not from when it was kept.
#[tokio::test]
async fn a_key_of_a_message_that_is_queued_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::new(|_, _, _| fails());
    let flags = [RARELY[0], RARELY[1], ("idempotency.keep", "1ms")];
    let first = sidecar(folder.path(), &provider, &flags).await;
    assert!(is_kept(&first.publish("x", keyed(ASYNC)).await));
    let id = only(&first);
    let next = restart(first, folder.path(), &provider, &flags).await;
    let kept_at = next.delivery.find(id).unwrap().kept_at;
    while jiff::Timestamp::now().duration_since(kept_at).as_millis() < 5 {
        tokio::task::yield_now().await;
    }
    assert_eq!(next.publish("x", keyed(ASYNC)).await.ended, Disposition::Kept(id));
}

// === what it is, not `queued` ===

/// A call for a parked message may have delivered it: who waits is answered that, and its key stays
/// taken.
#[tokio::test(start_paused = true)]
async fn a_key_of_a_parked_message() {
    for flags in
        [[("retry.unknown", "park")], [("retry.park", "TopicA")], [("retry.unknown_tries", "0")]]
    {
        let folder = tempfile::tempdir().unwrap();
        let provider = Provider::new(|_, _, nth| if nth == 0 { unknown() } else { ok() });
        let first = sidecar(folder.path(), &provider, &flags).await;
        let got = first.publish("x", keyed(WAIT)).await;
        let id = only(&first);
        assert_eq!((got.ended, got.calls), (Disposition::Unresolved(id), 1));
        again(&first, &provider, Disposition::Unresolved(id)).await;
        let next = restart(first, folder.path(), &provider, &flags).await;
        again(&next, &provider, Disposition::Unresolved(id)).await;
        assert_eq!(next.delivery.replay(&Picked::default()).await.messages, 1);
        next.empty().await;
        again(&next, &provider, Disposition::Settled(id, Settled::Delivered)).await;
    }
}

/// Its caller was answered 202 before: its key is, too, with what has become of it since.
#[tokio::test(start_paused = true)]
async fn a_key_whose_message_has_ended_since() {
    let park = ("retry.unknown", "park");
    for (answer, settled) in [
        (ok(), Settled::Delivered),
        (error(400, "ParameterCheckFailed"), Settled::Dead),
        (unknown(), Settled::Unknown),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let provider = Provider::new(move |_, _, _| answer.clone());
        let first = sidecar(folder.path(), &provider, &[park]).await;
        assert!(is_kept(&first.publish("x", keyed(ASYNC)).await));
        first.empty().await;
        let id = only(&first);
        again(&first, &provider, Disposition::Settled(id, settled)).await;
        let next = restart(first, folder.path(), &provider, &[park]).await;
        again(&next, &provider, Disposition::Settled(id, settled)).await;
    }
}

/// A message that becomes a dead letter while its caller waits: too old, or refused after a call of
/// which the outcome is unknown.
#[tokio::test(start_paused = true)]
async fn a_caller_waits_for_a_message_that_dies() {
    for (answer, wanted) in [
        (fails(), WAIT),
        (fails(), keyed(WAIT)),
        (error(400, "ParameterCheckFailed"), WAIT),
        (error(400, "ParameterCheckFailed"), keyed(WAIT)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let first = if answer == fails() { fails() } else { unknown() };
        let provider =
            Provider::new(move |_, _, nth| if nth == 0 { first.clone() } else { answer.clone() });
        // Its age is looked at before each try: the next one is never long in coming.
        let flags = [("retry.max_age", "2s"), ("retry.cap", "500ms")];
        let sidecar = sidecar(folder.path(), &provider, &flags).await;
        let got = sidecar.publish("x", wanted).await;
        let dead = Disposition::Settled(only(&sidecar), Settled::Dead);
        assert!(got.ended == dead && got.is_accepted(), "{got:?}");
        if wanted.claim.is_some() {
            again(&sidecar, &provider, dead).await;
        }
    }
}

// === over HTTP ===

async fn publish(address: &str, key: &str, prefer: &str) -> Reply {
    let headers = [("idempotency-key", key), ("prefer", prefer)];
    post(address, "/publish/TopicA", &headers, b"x").await
}

/// The members of a problem about a kept message.
fn problem(reply: &Reply, status: u16, slug: &str, outcome: &str, now: &str) -> String {
    let got = reply.json();
    assert_eq!(reply.status, status, "{got}");
    assert_eq!(got["type"], format!("urn:tollgate:{slug}"));
    assert_eq!((&got["outcome"], &got["Status"]), (&outcome.into(), &now.into()), "{got}");
    assert_eq!(got["retryable"], false, "{got}");
    got["Id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_drop_is_answered_410() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool").display().to_string();
    let control = format!("unix:{}", folder.path().join("control.sock").display());
    let script = Script::start((0..9).map(|_| script::error(500, "SendMessageFailed"))).await;
    let settings = [
        ("upstream.endpoint", &*script.url),
        ("spool.store", "disk"),
        ("spool.path", &*spool),
        ("listen.control", &*control),
        ("retry.base", "1h"),
        ("retry.cap", "1h"),
    ];
    let messages = async |args: &[&str]| {
        let sets = settings.map(|(key, value)| format!("{key}={value}"));
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let args: Vec<_> = ["messages"].into_iter().chain(args.iter().copied()).collect();
        let args: Vec<_> = args.into_iter().chain(sets).collect();
        run(&[&args[..], &["--set", "upstream.instance_id=x"]].concat(), &[]).await
    };
    let serve = Serve::start(&settings, &[]).await;
    let address = serve.publish.clone();
    let asked = tokio::spawn(async move { publish(&address, "k", "wait=60").await });
    let mut id = String::new();
    support::until("it was tried", async || {
        let listed = messages(&["list", "-o", "json"]).await.stdout;
        let tried = listed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut tried = tried.filter(|listed| listed["Attempts"] == 1);
        id = tried.next().map_or_else(String::new, |l| l["Id"].as_str().unwrap().to_owned());
        !id.is_empty()
    })
    .await;
    assert_eq!(messages(&["drop", &id]).await.stdout, "1 dropped\n");
    let got = asked.await.unwrap();
    assert_eq!(problem(&got, 410, "dropped", "not-sent", "dropped"), id);
    let again = publish(&serve.publish, "k", "wait=60").await;
    assert_eq!(problem(&again, 410, "dropped", "not-sent", "dropped"), id);
    assert_eq!(again.header("idempotency-replayed"), "true");
    let shown = get(&serve.publish, &format!("/messages/{id}")).await.json();
    assert_eq!(shown["Status"], "dropped", "{shown}");
    assert!(messages(&["list", "--state", "dropped"]).await.stdout.contains(&id));
    assert_eq!(messages(&["drop", &id]).await.stdout, "0 dropped\n");
    assert_eq!(script.requests().len(), 1);

    // On a stopped sidecar, whose last call may have arrived.
    let kept = publish(&serve.publish, "l", "respond-async").await.json();
    let id = kept["Id"].as_str().unwrap().to_owned();
    serve.signal(Signal::KILL);
    serve.ended().await;
    assert_eq!(messages(&["drop", &id]).await.stdout, "1 dropped\n");
    let serve = Serve::start(&settings, &[]).await;
    let again = publish(&serve.publish, "l", "wait=60").await;
    assert_eq!(problem(&again, 410, "dropped", "unknown", "dropped"), id);
}

#[tokio::test]
async fn a_parked_message_is_answered_504() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().display().to_string();
    let script = Script::start([Say::Close]).await;
    let flags = [("spool.store", "disk"), ("spool.path", &*spool), ("retry.unknown", "park")];
    let (_sidecar, address, _) = support::sidecar(&support::config(&script.url, &flags)).await;
    let got = publish(&address, "k", "wait=20").await;
    let id = problem(&got, 504, "unknown", "unknown", "unknown");
    let again = publish(&address, "k", "wait=20").await;
    assert_eq!(problem(&again, 504, "unknown", "unknown", "unknown"), id);
    assert_eq!(again.header("idempotency-replayed"), "true");
    // A line of many as well.
    let line = b"{\"topic\":\"TopicA\",\"payload\":\"x\",\"key\":\"k\"}";
    let kind = [("content-type", "application/x-ndjson")];
    let line = post(&address, "/publish", &kind, line).await.json();
    assert_eq!((&line["httpStatus"], &line["Id"]), (&504.into(), &id.as_str().into()), "{line}");
    assert_eq!(script.requests().len(), 1);
}

/// What cannot be read may have been taken.
#[tokio::test]
async fn an_answer_that_cannot_be_read() {
    let kind = "application/json";
    let cut = script::http(200, kind, &[("x-cut", "1")], "{\"MsgId\":\"0B7\"}");
    for (n, say) in [
        Say::Bytes(script::http(200, kind, &[], "{\"MsgId\":\"0B")),
        Say::Bytes(script::http(200, kind, &[], "{\"MsgId\":\"\",\"RequestId\":\"R\"}")),
        Say::Bytes(script::http(200, kind, &[], &"x".repeat(4 << 20))),
        Say::BytesAndClose(cut[..cut.len() - 3].to_vec()),
        Say::BytesAndClose(b"no HTTP\r\n\r\n".to_vec()),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = tempfile::tempdir().unwrap();
        let spool = folder.path().display().to_string();
        let script = Script::start([say]).await;
        let flags =
            [("spool.store", "disk"), ("spool.path", &*spool), ("retry.unknown_tries", "0")];
        let (_sidecar, address, _) = support::sidecar(&support::config(&script.url, &flags)).await;
        let kept = publish(&address, "k", "respond-async").await;
        assert_eq!(kept.status, 202);
        let mut shown = Value::Null;
        support::until("it has ended", async || {
            shown = get(&address, kept.header("location")).await.json();
            shown["Status"] != "queued"
        })
        .await;
        assert_eq!((&shown["Status"], &shown["Attempts"]), (&"unknown".into(), &1.into()), "{n}");
        assert_eq!(script.requests().len(), 1, "{n}");
    }
}

/// No receipt of a key gives way to a new message: the new one is refused.
#[tokio::test]
async fn a_spool_that_is_full_of_keys() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().display().to_string();
    let script = Script::start([]).await;
    let flags = [("spool.store", "disk"), ("spool.path", &*spool), ("spool.max_messages", "2")];
    let config = support::config(&script.url, &flags);
    let (sidecar, address, _) = support::sidecar(&config).await;
    for key in ["k1", "k2"] {
        assert_eq!(publish(&address, key, "wait=20").await.status, 200);
    }
    let refused = publish(&address, "k3", "wait=20").await;
    assert_eq!((refused.status, &refused.json()["type"]), (503, &"urn:tollgate:spool-full".into()));
    sidecar.drain(std::future::pending()).await;
    let (_sidecar, address, _) = support::sidecar(&config).await;
    for key in ["k1", "k2"] {
        let again = publish(&address, key, "wait=20").await;
        assert_eq!((again.status, again.header("idempotency-replayed")), (200, "true"));
    }
    assert_eq!(script.requests().len(), 2);
}
