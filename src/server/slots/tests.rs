//! Which connection gives way.

use super::*;

fn peer(number: u8) -> Peer {
    Peer::of([10, 0, 0, number].into(), [10, 0, 9, 9].into())
}

/// A slot for this peer while this one may have to give way; and whether it has.
async fn take(slots: &ConnectionSlots, from: u8, old: HeldSlot) -> (HeldSlot, Option<HeldSlot>) {
    let taken = slots.take(peer(from));
    tokio::pin!(taken);
    tokio::select! {
        biased;
        new = &mut taken => return (new.unwrap(), Some(old)),
        () = old.closed() => {}
    }
    drop(old);
    (taken.await.unwrap(), None)
}

fn serve(slot: &HeldSlot) {
    drop(slot.phase().busy());
    slot.phase().flushed(Timed::Idle);
}

#[tokio::test(start_paused = true)]
async fn the_longest_without_a_request_gives_way() {
    let slots = ConnectionSlots::new("test", 3, PeerShare::All);
    let a = slots.take(peer(1)).await.unwrap();
    let b = slots.take(peer(1)).await.unwrap();
    let c = slots.take(peer(1)).await.unwrap();
    // Bytes of a head are no request.
    serve(&a);
    b.phase().received();
    let (d, b) = take(&slots, 1, b).await;
    assert!(b.is_none());
    let busy = c.phase().busy().unwrap();
    let (last, d) = take(&slots, 1, d).await;
    assert!(d.is_none());
    drop(busy);
    // Its answer is not written yet.
    serve(&last);
    let (_f, a) = take(&slots, 1, a).await;
    assert!(a.is_none());
    let usage = slots.usage();
    assert_eq!((usage.open, usage.made_room, usage.over_share), (3, 3, 0));
    assert_eq!(c.phase().timed(), Timed::Idle);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_reused_stays_beside_silent_ones() {
    let slots = ConnectionSlots::new("test", 2, PeerShare::All);
    let reused = slots.take(peer(1)).await.unwrap();
    serve(&reused);
    let mut silent = slots.take(peer(2)).await.unwrap();
    for _ in 0..3 {
        let (new, old) = take(&slots, 2, silent).await;
        assert!(old.is_none());
        silent = new;
    }
    // Where no other is left, it gives way.
    let _busy = silent.phase().busy().unwrap();
    let (_new, reused) = take(&slots, 2, reused).await;
    assert!(reused.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_closed_connection_begins_no_request() {
    let slots = ConnectionSlots::new("test", 1, PeerShare::All);
    let old = slots.take(peer(1)).await.unwrap();
    let phase = old.phase();
    let (_new, old) = take(&slots, 1, old).await;
    assert!(old.is_none() && phase.busy().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_new_one_waits_for_requests_in_progress() {
    let slots = ConnectionSlots::new("test", 1, PeerShare::All);
    let old = slots.take(peer(1)).await.unwrap();
    let (phase, busy) = (old.phase(), old.phase().busy());
    let new = take(&slots, 1, old);
    tokio::pin!(new);
    tokio::select! {
        biased;
        _ = &mut new => panic!("a request was cut"),
        () = tokio::task::yield_now() => {}
    }
    drop(busy);
    phase.flushed(Timed::Idle);
    assert!(new.await.1.is_none());
    assert_eq!(slots.usage().made_room, 1);
}

#[tokio::test(start_paused = true)]
async fn a_peer_holds_half() {
    let slots = ConnectionSlots::new("test", 4, PeerShare::Half);
    let other = slots.take(peer(2)).await.unwrap();
    let first = slots.take(peer(1)).await.unwrap();
    let second = slots.take(peer(1)).await.unwrap();
    // One slot is free, but not for this peer, whose own connection gives way.
    let third = slots.take(peer(1)).await.unwrap();
    first.closed().await;
    drop(first);
    let busy = [second.phase().busy(), third.phase().busy()];
    assert!(slots.take(peer(1)).await.is_none());
    let usage = slots.usage();
    assert_eq!((usage.open, usage.made_room, usage.over_share), (3, 1, 1));
    let fourth = slots.take(peer(3)).await;
    let (_fifth, other) = take(&slots, 3, other).await;
    assert!(fourth.is_some() && other.is_none());
    drop(busy);
}

/// A burst of callers: none is cut before it could send its request.
#[tokio::test(start_paused = true)]
async fn a_connection_has_time_for_its_first_request() {
    let slots = ConnectionSlots::new("test", 1, PeerShare::All);
    let begun = Instant::now();
    let old = slots.take(peer(1)).await.unwrap();
    let (new, old) = take(&slots, 1, old).await;
    assert!(old.is_none() && begun.elapsed() >= GRACE);
    // Its request ends, and it has the same time for the next one.
    tokio::time::advance(GRACE * 2).await;
    serve(&new);
    let served = Instant::now();
    let (_newer, new) = take(&slots, 1, new).await;
    assert!(new.is_none() && served.elapsed() >= GRACE);
}

#[test]
fn a_pod_is_one_peer() {
    for (remote, local, is_local) in [
        ("127.0.0.1", "127.0.0.1", true),
        ("127.8.8.8", "127.0.0.1", true),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", true),
        ("::1", "::1", true),
        ("10.0.0.7", "10.0.0.7", true),
        ("10.0.0.1", "10.0.0.7", false),
    ] {
        let peer = Peer::of(remote.parse().unwrap(), local.parse().unwrap());
        assert_eq!(peer == Peer::Local, is_local, "{remote}");
    }
}
