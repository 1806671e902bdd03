//! Callers that wait for permits, each with its weight.

use std::collections::HashMap;

use super::*;
use crate::message::CallerName;

/// Calls a second of the ceiling.
const CEILING: u32 = 100;
/// How long each caller sends.
const LASTS: Duration = Duration::from_secs(30);

const FOUR: &str = r#"[
    { name = "flood", uid = 1 }, { name = "a", uid = 2 }, { name = "b", uid = 3 }, { name = "c", uid = 4 },
]"#;
/// From one permit to the next.
const SERVICE: Duration = Duration::from_millis(1_000 / CEILING as u64);

fn of(caller: &str, topic: &str) -> Message {
    Message { caller: Some(caller.into()), ..message(topic) }
}

async fn with_callers(
    disk: &Double,
    provider: &Provider,
    callers: &str,
) -> (Delivery<Provider>, Spool) {
    let ceiling = CEILING.to_string();
    let flags = [("callers", callers), ("ceilings.account", &*ceiling)];
    start_with(disk, provider, &flags).await
}

type Waits = Arc<Mutex<HashMap<CallerName, Vec<Duration>>>>;

/// When messages of a caller come.
#[derive(Debug, Clone, Copy)]
enum Arrivals {
    /// One after half to one and a half of the mean time.
    Even,
    /// Independent of each other, as those of many users are (a Poisson process).
    Independent,
}

impl Arrivals {
    /// From one to the next, in mean times.
    fn gap(self, random: &mut fastrand::Rng) -> f64 {
        match self {
            Self::Even => 0.5 + random.f64(),
            Self::Independent => -(1.0 - random.f64()).ln(),
        }
    }
}

/// Sends so many messages a second of a caller, at uneven times, and notes how long each waits for its answer.
async fn sends(
    delivery: Delivery<Provider>,
    caller: &'static str,
    (arrivals, rate): (Arrivals, f64),
    seed: u64,
    waits: Waits,
) {
    let mut random = fastrand::Rng::with_seed(seed);
    let (begin, mut at, mut answers) = (Instant::now(), 0.0, JoinSet::new());
    while at < LASTS.as_secs_f64() {
        at += arrivals.gap(&mut random) / rate;
        tokio::time::sleep_until(begin + Duration::from_secs_f64(at)).await;
        let (delivery, waits) = (delivery.clone(), Arc::clone(&waits));
        answers.spawn(async move {
            let asked = Instant::now();
            let wanted = PublishOptions {
                patience: Duration::from_secs(5),
                keep: Keeping::Never,
                claim: None,
            };
            let outcome = delivery.publish(of(caller, "TopicA"), wanted).await;
            // What is refused has not waited for its call.
            if matches!(outcome.ended, Disposition::Answered(_)) {
                let mut waits = waits.lock().unwrap();
                waits.entry(caller.into()).or_default().push(asked.elapsed());
            }
        });
    }
    answers.join_all().await;
}

/// The 99th hundredth of the waits of the three, and how many calls each caller had.
async fn beside(
    arrivals: Arrivals,
    rates: [f64; 4],
    callers: &str,
    seed: u64,
) -> (Duration, HashMap<CallerName, usize>) {
    let (disk, provider) = (Double::default(), Provider::default());
    provider.answers(200);
    let (delivery, _spool) = with_callers(&disk, &provider, callers).await;
    let waits = Waits::default();
    let mut all = JoinSet::new();
    for (n, (caller, rate)) in ["flood", "a", "b", "c"].into_iter().zip(rates).enumerate() {
        let seed = seed * 10 + n as u64;
        all.spawn(sends(delivery.clone(), caller, (arrivals, rate), seed, Arc::clone(&waits)));
    }
    all.join_all().await;
    let waits = std::mem::take(&mut *waits.lock().unwrap());
    let mut three: Vec<_> =
        waits.iter().filter(|(name, _)| &***name != "flood").flat_map(|(_, waits)| waits).collect();
    three.sort();
    let late = three.len() - three.len() / 100 - 1;
    (*three[late], waits.iter().map(|(name, waits)| (name.clone(), waits.len())).collect())
}

/// One floods at twenty times its share while three send within theirs: these wait at most twice as long as when
/// it sends its share. All of theirs are called. What they leave, it gets.
#[tokio::test(start_paused = true)]
async fn one_that_floods_keeps_no_other_waiting() {
    let share = f64::from(CEILING) / 4.0;
    let part = share * 0.8;
    for (arrivals, seed) in [Arrivals::Even, Arrivals::Independent]
        .into_iter()
        .flat_map(|a| (0..3).map(move |n| (a, n)))
    {
        let (calm, _) = beside(arrivals, [share, part, part, part], FOUR, seed).await;
        let rates = [share * 20.0, part, part, part];
        let (flooded, calls) = beside(arrivals, rates, FOUR, seed).await;
        println!(
            "{arrivals:?} {seed}: p99 of waiting {calm:?} without, {flooded:?} with a flood; calls {calls:?}"
        );
        assert!(flooded <= calm * 2, "{arrivals:?}: {flooded:?} after {calm:?}");
        let of_three: usize = ["a", "b", "c"].iter().map(|name| calls[*name]).sum();
        let sent = part * LASTS.as_secs_f64();
        assert!(["a", "b", "c"].iter().all(|name| calls[*name] as f64 >= sent * 0.9), "{calls:?}");
        let left = f64::from(CEILING) * LASTS.as_secs_f64() - of_three as f64;
        assert!(calls["flood"] as f64 >= left * 0.95, "{calls:?}");
    }
}

/// All flood: each gets calls by its weight.
#[tokio::test(start_paused = true)]
async fn by_weight() {
    let callers = FOUR.replace("uid = 2", "uid = 2, weight = 3");
    let (_, calls) = beside(Arrivals::Even, [200.0; 4], &callers, 1).await;
    let all: usize = calls.values().sum();
    for (name, weight) in [("flood", 1.0), ("a", 3.0), ("b", 1.0), ("c", 1.0)] {
        let part = calls[name] as f64 / (all as f64 * weight / 6.0);
        assert!((0.97..1.03).contains(&part), "{name}: {part} of {calls:?}");
    }
}

/// The one that floods is refused when its own turn would come too late, and the others are not.
#[tokio::test(start_paused = true)]
async fn refusals_are_of_the_one_that_floods() {
    let (disk, provider) = (Double::default(), Provider::default());
    provider.answers(200);
    let (delivery, _spool) = with_callers(&disk, &provider, FOUR).await;
    let wanted = |seconds| PublishOptions {
        patience: Duration::from_secs(seconds),
        keep: Keeping::Never,
        claim: None,
    };
    let mut flood = JoinSet::new();
    for _ in 0..2_000 {
        let delivery = delivery.clone();
        flood.spawn(async move { delivery.publish(of("flood", "TopicA"), wanted(60)).await });
    }
    sleep(Duration::from_millis(1)).await;
    // More than a thousand may wait in all; a ninth of the places is left to others.
    let outcome = delivery.publish(of("flood", "TopicA"), wanted(60)).await;
    assert!(matches!(outcome.ended, Disposition::NoPermit(_)), "{outcome:?}");
    let begun = Instant::now();
    let outcome = delivery.publish(of("a", "TopicB"), wanted(1)).await;
    assert!(outcome.is_accepted(), "{outcome:?}");
    assert!(begun.elapsed() <= SERVICE * 3, "{:?}", begun.elapsed());
    // As patient as the other, it is refused: its queue is long.
    let outcome = delivery.publish(of("flood", "TopicB"), wanted(1)).await;
    assert!(matches!(outcome.ended, Disposition::NoPermit(_)), "{outcome:?}");
    flood.abort_all();
}

/// Stored messages of a topic are called by the weights of their callers, too, and keep them over a restart.
#[tokio::test(start_paused = true)]
async fn stored_messages() {
    let (disk, provider) = (Double::default(), Provider::default());
    let (delivery, spool) = with_callers(&disk, &provider, FOUR).await;
    // Nothing is delivered yet.
    for n in 0..400 {
        let caller = if n < 380 { "flood" } else { "a" };
        assert!(delivery.publish(of(caller, "TopicA"), ASYNC).await.is_accepted());
    }
    spool.flush().await;
    delivery.drain(Duration::ZERO).await;
    delivery.close(Duration::from_secs(1)).await;
    drop((delivery, spool));
    provider.answers(200);
    let (_delivery, spool) = with_callers(&disk, &provider, FOUR).await;
    until("they are delivered", || spool.usage().queued.messages == 0).await;
    let called = provider.called();
    let place = |caller: &str| {
        let is_of = |id: &MessageId| spool.find(*id).unwrap().caller.as_deref() == Some(caller);
        called.iter().rposition(is_of).unwrap()
    };
    assert!(place("a") < 200 && place("flood") == 399, "{} {}", place("a"), place("flood"));
}
