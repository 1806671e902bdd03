//! A resolver that answers, fails, answers nothing or is silent, in paused time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::{advance, sleep};

use super::*;

const TTL: Duration = Duration::from_secs(30);

#[derive(Clone)]
enum Say {
    Are(&'static [u8]),
    Fails,
    Silent,
    /// Answers so late.
    Late(Duration, &'static [u8]),
}

/// A resolver that says these things in turn, and the last one ever after.
struct Double {
    resolver: Resolver,
    asked: Arc<AtomicUsize>,
    /// Lookups that are under way at once, at most.
    most: Arc<AtomicUsize>,
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 80))
}

fn double(says: impl IntoIterator<Item = Say>) -> Double {
    let says = Arc::new(Mutex::new(says.into_iter().collect::<VecDeque<_>>()));
    let (asked, most, now): (Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicUsize>) =
        Default::default();
    let (count, at_once) = (Arc::clone(&asked), Arc::clone(&most));
    let resolver = Resolver::new("broker", TTL, move || {
        count.fetch_add(1, Ordering::Relaxed);
        let say = {
            let mut says = says.lock().unwrap();
            if says.len() > 1 { says.pop_front().unwrap() } else { says[0].clone() }
        };
        let under_way = UnderWay(Arc::clone(&now));
        at_once.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        Box::pin(async move {
            let _under_way = under_way;
            let are = |last: &[u8]| Ok(last.iter().copied().map(address).collect());
            match say {
                Say::Are(last) => are(last),
                Say::Fails => Err(io::Error::other("SERVFAIL")),
                Say::Silent => std::future::pending().await,
                Say::Late(by, last) => {
                    sleep(by).await;
                    are(last)
                }
            }
        })
    });
    Double { resolver, asked, most }
}

struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Double {
    /// The addresses, which are to be there at once.
    async fn at_once(&self) -> Vec<u8> {
        let begun = Instant::now();
        let mut found = self.within(Duration::from_secs(3)).await.unwrap();
        assert_eq!(begun.elapsed(), Duration::ZERO, "a call waits for the resolver");
        found.sort_unstable();
        found
    }

    /// What a connection gets that waits no longer.
    async fn within(&self, bound: Duration) -> Result<Vec<u8>, ()> {
        let found = timeout(bound, self.resolver.addresses()).await.map_err(drop)?;
        let last = |address: SocketAddr| match address.ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        };
        Ok(found.map_err(drop)?.into_iter().map(last).collect())
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// Lets the lookup that was begun take its turn.
async fn settle() {
    for _ in 0..5 {
        tokio::task::yield_now().await;
    }
}

/// Ten minutes of a call a second, each with the known addresses at once. Returns the lookups.
async fn ten_minutes(double: &Double) -> usize {
    let before = double.asked();
    advance(TTL).await;
    for _ in 0..600 {
        assert_eq!(double.at_once().await, [1, 2]);
        settle().await;
        advance(Duration::from_secs(1)).await;
    }
    assert_eq!(double.most.load(Ordering::Relaxed), 1, "one lookup at a time");
    double.asked() - before
}

#[tokio::test(start_paused = true)]
async fn a_silent_resolver_stops_no_call() {
    let double = double([Say::Are(&[1, 2]), Say::Silent]);
    assert_eq!(double.at_once().await, [1, 2]);
    let lookups = ten_minutes(&double).await;
    assert!((5..=20).contains(&lookups), "{lookups} lookups in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn nor_does_one_that_fails() {
    let double = double([Say::Are(&[1, 2]), Say::Fails]);
    assert_eq!(double.at_once().await, [1, 2]);
    let lookups = ten_minutes(&double).await;
    assert!((5..=20).contains(&lookups), "{lookups} lookups in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn nor_one_that_knows_no_address() {
    let double = double([Say::Are(&[1, 2]), Say::Are(&[])]);
    assert_eq!(double.at_once().await, [1, 2]);
    let lookups = ten_minutes(&double).await;
    assert!((5..=20).contains(&lookups), "{lookups} lookups in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn one_that_recovers_is_believed() {
    let says = [Say::Are(&[1]), Say::Silent, Say::Fails, Say::Are(&[]), Say::Are(&[2, 3])];
    let double = double(says);
    assert_eq!(double.at_once().await, [1]);
    advance(TTL).await;
    let begun = Instant::now();
    while double.at_once().await == [1] {
        assert!(begun.elapsed() < LONGEST_PAUSE, "it has recovered");
        settle().await;
        advance(Duration::from_millis(100)).await;
    }
    assert_eq!(double.at_once().await, [2, 3]);
    // And rests for a whole time to live.
    let asked = double.asked();
    advance(TTL.mul_f64(0.98)).await;
    assert_eq!(double.at_once().await, [2, 3]);
    settle().await;
    assert_eq!(double.asked(), asked);
    advance(Duration::from_secs(1)).await;
    assert_eq!(double.at_once().await, [2, 3]);
    settle().await;
    assert_eq!(double.asked(), asked + 1);
}

/// The burst after an age without calls asks once, and uses what is known.
#[tokio::test(start_paused = true)]
async fn a_burst_asks_once() {
    let double = double([Say::Are(&[1]), Say::Late(Duration::from_secs(2), &[2])]);
    assert_eq!(double.at_once().await, [1]);
    advance(TTL * 100).await;
    for _ in 0..1_000 {
        assert_eq!(double.at_once().await, [1]);
    }
    settle().await;
    assert_eq!(double.asked(), 2);
    advance(Duration::from_secs(2)).await;
    settle().await;
    assert_eq!(double.at_once().await, [2]);
}

/// All that come while no address is known share one lookup, which goes on when some give up.
#[tokio::test(start_paused = true)]
async fn the_first_lookup_is_waited_for_and_shared() {
    let slow = Duration::from_secs(4);
    let double = Arc::new(double([Say::Late(slow, &[1]), Say::Fails]));
    let begun = Instant::now();
    let waits: Vec<_> = [1, 3, 5, 5, 5]
        .map(|seconds| {
            let double = Arc::clone(&double);
            tokio::spawn(async move { double.within(Duration::from_secs(seconds)).await })
        })
        .into();
    let mut found = Vec::new();
    for wait in waits {
        found.push(wait.await.unwrap());
    }
    assert_eq!(found, [Err(()), Err(()), Ok(vec![1]), Ok(vec![1]), Ok(vec![1])]);
    assert_eq!((begun.elapsed(), double.asked()), (slow, 1));
}

/// A failed lookup while no address is known fails all that wait for it, and the next one asks anew.
#[tokio::test(start_paused = true)]
async fn a_first_lookup_that_fails() {
    let double = double([Say::Fails, Say::Are(&[]), Say::Silent, Say::Are(&[7])]);
    let second = Duration::from_secs(1);
    let begun = Instant::now();
    assert_eq!(double.within(second).await, Err(()));
    assert_eq!(double.within(second).await, Err(()));
    assert_eq!(begun.elapsed(), Duration::ZERO);
    // This one is silent: each waits as long as it may, and the lookup is given up.
    let mut waited = 0;
    let found = loop {
        if let Ok(found) = double.within(second).await {
            break found;
        }
        waited += 1;
        assert!(waited < 20, "the silent lookup never ends");
    };
    assert_eq!((found, double.asked(), double.most.load(Ordering::Relaxed)), (vec![7], 4, 1));
    assert_eq!(begun.elapsed(), LOOKUP);
}
