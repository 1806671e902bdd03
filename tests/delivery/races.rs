//! How messages end when something else happens in the same moment: operators, stops, late answers.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use crate::support;
use crate::support::http::post;
use crate::support::process::{Serve, run};
use crate::support::script::{Script, error as says};
use crate::support::test_sidecar::{
    ASYNC, Provider, TestSidecar, WAIT, error, is_kept, message, ok, once_each,
};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};
use tollgate::answer::{Answer, TransportError};
use tollgate::delivery::{Disposition, PublishOptions, Settled};
use tollgate::spool::{Claim, Picked};

fn keyed(wanted: PublishOptions) -> PublishOptions {
    PublishOptions { claim: Some(Claim { key: 1, print: 2 }), ..wanted }
}

/// Two operators replay all dead letters at once: each is delivered once, and counted for one of
/// them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replays() {
    const MESSAGES: usize = 400;
    for _ in 0..5 {
        let folder = tempfile::tempdir().unwrap();
        let provider = Provider::new(|_, _, nth| {
            if nth < MESSAGES as u64 { error(400, "ParameterCheckFailed") } else { ok() }
        });
        let sidecar = Arc::new(TestSidecar::new(folder.path(), &provider, &[]).await);
        let publish = |n| {
            let sidecar = Arc::clone(&sidecar);
            tokio::spawn(async move { sidecar.publish(format!("{n}"), ASYNC).await })
        };
        for told in (0..MESSAGES).map(publish).collect::<Vec<_>>() {
            assert!(is_kept(&told.await.unwrap()));
        }
        sidecar.empty().await;
        assert_eq!(sidecar.spool.usage().dead.messages, MESSAGES as u64);
        let together = Arc::new(Barrier::new(2));
        let replay = |_| {
            let (sidecar, together) = (Arc::clone(&sidecar), Arc::clone(&together));
            tokio::spawn(async move {
                together.wait();
                sidecar.delivery.replay(&Picked::default()).await
            })
        };
        let mut replayed = 0;
        for count in (0..2).map(replay).collect::<Vec<_>>() {
            replayed += count.await.unwrap().messages;
        }
        sidecar.empty().await;
        sidecar.delivery.drain(Duration::from_secs(5)).await;
        once_each(&provider.taken(), MESSAGES);
        assert_eq!(replayed, MESSAGES);
    }
}

/// A caller who was told that nobody knows has a message that was not accepted: a late failure does
/// not make it ours.
#[tokio::test(start_paused = true)]
async fn a_late_failure() {
    let folder = tempfile::tempdir().unwrap();
    let failed = |_, _: &_, nth| if nth == 0 { error(500, "SendMessageFailed") } else { ok() };
    let provider = Provider::new(failed).slow();
    let sidecar = TestSidecar::new(folder.path(), &provider, &[("retry.unknown", "park")]).await;
    let hasty = PublishOptions { patience: Duration::from_secs(1), ..WAIT };
    assert_eq!(sidecar.publish("x", hasty).await.ended, Disposition::Unanswered);
    sleep(Duration::from_mins(1)).await;
    assert_eq!((provider.taken().len(), sidecar.spool.usage().queued.messages), (0, 0));
}

/// Of a call that may have arrived nobody is told later that its message was refused.
#[tokio::test(start_paused = true)]
async fn a_refusal_after_a_doubt() {
    for wanted in [WAIT, keyed(WAIT)] {
        let folder = tempfile::tempdir().unwrap();
        let provider = Provider::new(|_, _, nth| match nth {
            0 => Answer::TransportError(TransportError::Closed),
            _ => error(400, "ParameterCheckFailed"),
        });
        let sidecar = TestSidecar::new(folder.path(), &provider, &[]).await;
        let told = sidecar.publish("x", wanted).await;
        assert!(matches!(told.ended, Disposition::Settled(_, Settled::Dead)), "{told:?}");
        assert_eq!((provider.taken().len(), sidecar.spool.usage().dead.messages), (1, 1));
    }
}

/// Without a spool: the key of a call whose caller stopped waiting is taken until its answer, and
/// then has it.
#[tokio::test(start_paused = true)]
async fn a_late_answer_for_a_key() {
    let provider = Provider::new(|_, _, _| ok()).slow();
    let hasty = PublishOptions { patience: Duration::from_secs(1), ..keyed(WAIT) };
    let delivery = TestSidecar::without_spool(&provider);
    let publish = || delivery.publish(message("TopicA", "x".into()), hasty);
    assert_eq!(publish().await.ended, Disposition::Unanswered);
    assert_eq!(publish().await.ended, Disposition::SameUnderWay);
    sleep(Duration::from_secs(5)).await;
    let again = publish().await;
    assert!(again.replayed && again.is_accepted(), "{again:?}");
    assert_eq!(provider.calls().len(), 1);
}

/// What is kept by a call that ends while we stop, or is being kept then, is delivered within the
/// grace.
#[tokio::test(start_paused = true)]
async fn a_stop_while_a_message_is_between() {
    for wanted in [WAIT, ASYNC] {
        let folder = tempfile::tempdir().unwrap();
        let failed = |_, _: &_, nth| if nth == 0 { error(500, "SendMessageFailed") } else { ok() };
        let provider = Provider::new(failed).slow();
        let sidecar = Arc::new(TestSidecar::new(folder.path(), &provider, &[]).await);
        let asked = tokio::spawn({
            let sidecar = Arc::clone(&sidecar);
            async move { sidecar.publish("x", wanted).await }
        });
        tokio::task::yield_now().await;
        sidecar.delivery.drain(Duration::from_secs(20)).await;
        assert!(asked.await.unwrap().is_accepted());
        assert_eq!(provider.taken().len(), 1);
    }
}

/// After the grace nothing is called, and nobody is left without an answer: what is kept is 202,
/// what only waited for its turn was not sent.
#[tokio::test(start_paused = true)]
async fn after_the_grace() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::new(|_, _, _| error(500, "SendMessageFailed"));
    let sidecar = TestSidecar::new(folder.path(), &provider, &[("ceilings.account", "1")]).await;
    let sidecar = Arc::new(sidecar);
    let patient = PublishOptions { patience: Duration::from_mins(1), ..WAIT };
    let asked: Vec<_> = (0..20)
        .map(|n| {
            let sidecar = Arc::clone(&sidecar);
            tokio::spawn(async move { sidecar.publish(format!("{n}"), patient).await })
        })
        .collect();
    sleep(Duration::from_secs(5)).await;
    sidecar.delivery.drain(Duration::ZERO).await;
    let calls = provider.calls().len();
    let (mut kept, mut unsent) = (0, 0);
    for told in asked {
        match told.await.unwrap().ended {
            Disposition::Kept(_) => kept += 1,
            Disposition::Stopping => unsent += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sidecar.delivery.close(Duration::from_secs(1)).await, 0);
    assert_eq!(kept, sidecar.spool.usage().queued.messages);
    assert!(kept > 0 && unsent > 0, "{kept} {unsent}");
    assert_eq!(sidecar.publish("x", WAIT).await.ended, Disposition::Stopping);
    sleep(Duration::from_mins(10)).await;
    assert_eq!(provider.calls().len(), calls);
}

/// Kept messages that wait for their turn hold up no stop.
#[tokio::test(start_paused = true)]
async fn a_stop_while_turns_are_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::new(|_, _, _| ok());
    let sidecar = TestSidecar::new(folder.path(), &provider, &[("ceilings.account", "1")]).await;
    for n in 0..20 {
        assert!(is_kept(&sidecar.publish(format!("{n}"), ASYNC).await));
    }
    sleep(Duration::from_secs(5)).await;
    let start = Instant::now();
    sidecar.delivery.drain(Duration::ZERO).await;
    assert_eq!(sidecar.delivery.close(Duration::from_hours(1)).await, 0);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(sidecar.spool.usage().queued.messages > 0);
}

/// A sidecar stops within its grace, and at once when it is asked twice; whoever waits for a kept
/// message is told 202.
#[tokio::test]
async fn a_stop_takes_no_longer_than_its_grace() {
    for hurry in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let spool = folder.path().display().to_string();
        let script = Script::start((0..10_000).map(|_| says(500, "SendMessageFailed"))).await;
        let grace = if hurry { "1h" } else { "500ms" };
        let flags = [("spool.store", "disk"), ("spool.path", &*spool), ("drain.grace", grace)];
        let config = support::config(&script.url, &flags);
        let (sidecar, address, _) = support::sidecar(&config).await;
        let asked = tokio::spawn(async move {
            post(&address, "/publish/TopicA", &[("prefer", "wait=60")], b"x").await
        });
        support::until("it was tried", async || !script.requests().is_empty()).await;
        let stop = async {
            if hurry {
                sidecar.drain(std::future::ready(())).await
            } else {
                sidecar.drain(std::future::pending()).await
            }
        };
        // Far more than it takes, and less than the caller would wait.
        tokio::time::timeout(Duration::from_secs(20), stop).await.expect("it stops");
        assert_eq!(asked.await.unwrap().status, 202);
    }
}

/// As long as the file `HANGS` is there, no sync comes back.
const HANG: &str = "
#include <stdlib.h>
#include <unistd.h>
static int hang(void) { while (access(getenv(\"HANGS\"), F_OK) == 0) usleep(1000); return 0; }
int fsync(int file) { (void)file; return hang(); }
int fdatasync(int file) { (void)file; return hang(); }
";

/// A disk that hangs holds up no end, neither the spool's writes nor the ledger's.
#[tokio::test]
async fn an_end_with_a_disk_that_hangs() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("hang.c"), HANG).unwrap();
    let mut compiler = std::process::Command::new("cc");
    let compiler = compiler.args(["-shared", "-fPIC", "-o", &path("hang.so"), &path("hang.c")]);
    assert!(compiler.status().unwrap().success());
    let (spool, hangs, library) = (path("spool"), path("hangs"), path("hang.so"));
    let script = Script::start([]).await;
    let settings = [
        ("upstream.endpoint", script.url.as_str()),
        ("spool.store", "disk"),
        ("spool.path", &spool),
        ("drain.grace", "1ms"),
    ];
    let serve = Serve::start(&settings, &[("LD_PRELOAD", &library), ("HANGS", &hangs)]).await;
    let delivered = post(&serve.publish, "/publish/TopicA", &[], b"x").await;
    assert_eq!(delivered.status, 200);
    std::fs::write(&hangs, "").unwrap();
    let kept = post(&serve.publish, "/publish/TopicA", &[("prefer", "respond-async")], b"x").await;
    assert_eq!(kept.status, 504, "{}", kept.text());
    serve.signal(Signal::TERM);
    let (status, log) = serve.ended().await;
    assert!(status.success(), "{log}");
    assert!(Path::new(&hangs).exists());
}

/// `tollgate messages` means the sidecar whose spool it is given, though another answers at the
/// configured socket.
#[tokio::test]
async fn another_sidecars_socket() {
    let folder = tempfile::tempdir().unwrap();
    let control = format!("unix:{}", folder.path().join("control.sock").display());
    let script = Script::start((0..10).map(|_| says(400, "ParameterCheckFailed"))).await;
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name).display().to_string());
    let flags = [("spool.store", "disk"), ("spool.path", &*a), ("listen.control", &*control)];
    let (sidecar, address, _) = support::sidecar(&support::config(&script.url, &flags)).await;
    let kept = post(&address, "/publish/TopicA", &[("prefer", "respond-async")], b"x").await;
    assert_eq!(kept.status, 202);
    let location = kept.header("location").to_owned();
    support::until("it is dead", async || {
        support::http::get(&address, &location).await.json()["Status"] == "dead"
    })
    .await;
    let drop_all = async |path: &str| {
        let sets = [format!("spool.path={path}"), format!("listen.control={control}")];
        let mut args = vec!["messages", "drop", "--all", "--set", "upstream.endpoint=http://x"];
        for set in &sets {
            args.extend(["--set", set]);
        }
        args.extend(["--set", "upstream.instance_id=x", "--set", "spool.store=disk"]);
        run(&args, &[]).await
    };
    std::fs::create_dir(&b).unwrap();
    let other = drop_all(&b).await;
    assert!(other.stdout.contains('0'), "{}{}", other.stdout, other.stderr);
    let ours = drop_all(&a).await;
    assert!(ours.stdout.contains('1'), "{}{}", ours.stdout, ours.stderr);
    sidecar.drain(std::future::pending()).await;
}

/// A lane that a fresh call finds barred is probed soon, though what waits in it is due much later.
#[tokio::test(start_paused = true)]
async fn a_probe_is_not_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let barred = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&barred);
    let provider = Provider::new(move |_, message, _| {
        if message.payload.as_bytes() == b"barred" {
            seen.store(true, Ordering::Relaxed);
            return error(403, "InvalidAccessKeyId.NotFound");
        }
        if seen.load(Ordering::Relaxed) { ok() } else { error(500, "SendMessageFailed") }
    });
    let flags = [("retry.base", "1s"), ("retry.cap", "1h")];
    let sidecar = TestSidecar::new(folder.path(), &provider, &flags).await;
    assert!(is_kept(&sidecar.publish("later", ASYNC).await));
    // By now it waits for minutes between its tries.
    sleep(Duration::from_mins(10)).await;
    let calls = provider.calls().len();
    drop(sidecar.publish("barred", WAIT).await);
    assert!(barred.load(Ordering::Relaxed) && !sidecar.delivery.paused().is_empty());
    sleep(Duration::from_secs(2)).await;
    assert!(sidecar.delivery.paused().is_empty(), "nobody probes");
    assert_eq!((provider.taken().len(), provider.calls().len()), (1, calls + 2));
}
