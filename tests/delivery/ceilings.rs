//! Never over a ceiling, in any sliding second, as the provider sees it.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use crate::support::virtual_time::{virtual_time, worst_second};
use proptest::prelude::*;
use tokio::time::{Instant, sleep};
use tollgate::ceiling::{Ceiling, Class, Permit, Read, Refused, Start, WINDOW};
use tollgate::config::{Ceilings, Unanswered};

const SECOND: Duration = Duration::from_secs(1);

fn ceilings(account: impl Into<Option<u32>>, egress_ip: impl Into<Option<u32>>) -> Ceilings {
    Ceilings {
        account: account.into(),
        egress_ip: egress_ip.into(),
        retry_share: 0.2,
        unanswered: Unanswered { min: Duration::from_secs(10), max: Duration::from_mins(5) },
    }
}

/// How one call goes: when it is asked for, how long it takes to arrive, and to be answered.
#[derive(Debug, Clone)]
struct Call {
    after: Duration,
    there: Duration,
    back: Duration,
    end: End,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Answered,
    Throttled,
    /// The caller of the upstream gave up and closed the connection: the permit is dropped.
    TimedOut,
    /// The provider ended the connection.
    TransportError,
    /// It never left.
    Unsent,
}

fn call() -> impl Strategy<Value = Call> {
    let gap = prop_oneof![
        6 => Just(0_u64),
        3 => 1..3_000_u64,
        1 => 500_000..2_500_000_u64,
    ];
    let way = prop_oneof![4 => 100..10_000_u64, 1 => 10_000..400_000_u64];
    let end = prop_oneof![
        16 => Just(End::Answered),
        1 => Just(End::TimedOut),
        1 => Just(End::TransportError),
        1 => Just(End::Unsent),
        1 => Just(End::Throttled),
    ];
    (gap, way.clone(), way, end).prop_map(|(after, there, back, end)| Call {
        after: Duration::from_micros(after),
        there: Duration::from_micros(there),
        back: Duration::from_micros(back),
        end,
    })
}

/// Runs the calls as fast as the ceiling lets them and returns when each arrived, by address.
async fn run(ceiling: &Ceiling, calls: Vec<Call>) -> Vec<(usize, Instant)> {
    let arrivals = Rc::new(RefCell::new(Vec::new()));
    let mut tasks = Vec::new();
    for call in calls {
        sleep(call.after).await;
        // With one call a second, each time-out closes the ceiling for five minutes.
        let deadline = Instant::now() + Duration::from_hours(24);
        let Ok(ticket) = ceiling.request(Class::Fresh, deadline) else { continue };
        let arrivals = Rc::clone(&arrivals);
        tasks.push(tokio::task::spawn_local(async move {
            let mut permit = ticket.permit().await.unwrap();
            if matches!(call.end, End::Unsent) {
                sleep(call.there).await;
                return permit.unsent();
            }
            permit.goes_to(([192, 0, 2, 1], 443).into());
            sleep(call.there).await;
            arrivals.borrow_mut().push((permit.egress(), Instant::now()));
            sleep(call.back).await;
            match call.end {
                End::Answered => permit.answered(),
                End::Throttled => permit.throttled(),
                End::TransportError => permit.lost(Read::Over),
                End::TimedOut | End::Unsent => drop(permit),
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    arrivals.take()
}

fn times(arrivals: &[(usize, Instant)]) -> Vec<Instant> {
    arrivals.iter().map(|(_, at)| *at).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Any latencies, time-outs, pauses and bursts; also right at the start.
    #[test]
    fn no_sliding_second_holds_more_than_n(
        n in prop::sample::select(vec![1_u32, 7, 300, 1000]),
        calls in prop::collection::vec(call(), 1..200),
        repeat in 1..12_usize,
    ) {
        let calls: Vec<_> = (0..repeat).flat_map(|_| calls.clone()).collect();
        // A ceiling of one a second takes its time.
        let calls = calls.into_iter().take(if n < 10 { 40 } else { 2_400 }).collect();
        let worst = virtual_time(async {
            let ceiling = Ceiling::start(&ceilings(n, None), 1, 10_000, Start::AfterOthers);
            worst_second(&times(&run(&ceiling, calls).await))
        });
        prop_assert!(worst <= n as usize, "{worst} in one second, ceiling {n}");
    }

    /// Both ceilings at once, over several addresses.
    #[test]
    fn neither_the_account_nor_an_address(
        account in 1..400_u32,
        egress_ip in 1..200_u32,
        addresses in 1..5_usize,
        calls in prop::collection::vec(call(), 1..600),
    ) {
        let calls = calls.into_iter().take(20 * account.min(egress_ip) as usize).collect();
        let arrivals = virtual_time(async {
            let figures = ceilings(account, egress_ip);
            let ceiling = Ceiling::start(&figures, addresses, 10_000, Start::AfterOthers);
            run(&ceiling, calls).await
        });
        prop_assert!(worst_second(&times(&arrivals)) <= account as usize);
        for address in 0..addresses {
            let own: Vec<_> = arrivals.iter().filter(|(a, _)| *a == address).copied().collect();
            prop_assert!(worst_second(&times(&own)) <= egress_ip as usize);
        }
    }

    /// A ceiling that changes while calls are on their way forgets nothing.
    #[test]
    fn a_reload_forgets_nothing(
        before in 1..200_u32,
        after in 1..200_u32,
        calls in prop::collection::vec(call(), 1..400),
        more in prop::collection::vec(call(), 1..400),
    ) {
        let few = 20 * before.min(after) as usize;
        let worst = virtual_time(async {
            let ceiling = Ceiling::start(&ceilings(before, None), 1, 10_000, Start::AfterOthers);
            let calls = calls.into_iter().take(few).collect();
            let mut arrivals = times(&run(&ceiling, calls).await);
            ceiling.resize(&ceilings(after, None));
            arrivals.extend(times(&run(&ceiling, more.into_iter().take(few).collect()).await));
            worst_second(&arrivals)
        });
        prop_assert!(worst <= before.max(after) as usize);
    }
}

/// What a plain bucket of 1,000 does after idling: 1,999 in one second.
#[test]
fn an_idle_second_is_not_saved_up() {
    for n in [1, 7, 300, 1_000_u32] {
        let arrivals = virtual_time(async {
            let ceiling = Ceiling::start(&ceilings(n, None), 1, 100_000, Start::AfterOthers);
            sleep(Duration::from_mins(1)).await;
            let call = Call {
                after: Duration::ZERO,
                there: Duration::from_millis(2),
                back: Duration::from_millis(3),
                end: End::Answered,
            };
            times(&run(&ceiling, vec![call; 3 * n as usize]).await)
        });
        assert_eq!(arrivals.len(), 3 * n as usize);
        let worst = worst_second(&arrivals);
        assert!(worst <= n as usize, "{worst} of {n}");
        // 300 never becomes 301, and is not 200 either.
        assert!(worst * 100 >= n as usize * 98, "{worst} of {n}");
    }
}

/// A path that freezes and lets go breaks every pacer: what was sent evenly arrives at once.
#[test]
fn a_frozen_path_does_not_break_the_ceiling() {
    let (worst, sent) = virtual_time(async {
        let ceiling = Ceiling::start(&ceilings(1_000, None), 1, 100_000, Start::Alone);
        let start = Instant::now();
        let freeze = start + Duration::from_secs(2)..start + Duration::from_millis(2_300);
        let arrivals = Rc::new(RefCell::new(Vec::new()));
        let mut tasks = Vec::new();
        for _ in 0..5_000 {
            let ticket = ceiling.request(Class::Fresh, start + Duration::from_mins(1)).unwrap();
            let (arrivals, freeze) = (Rc::clone(&arrivals), freeze.clone());
            tasks.push(tokio::task::spawn_local(async move {
                let permit = ticket.permit().await.unwrap();
                sleep(Duration::from_millis(2)).await;
                if freeze.contains(&Instant::now()) {
                    tokio::time::sleep_until(freeze.end).await;
                }
                arrivals.borrow_mut().push(Instant::now());
                sleep(Duration::from_millis(3)).await;
                permit.answered();
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        (worst_second(&arrivals.borrow()), arrivals.borrow().len())
    });
    assert_eq!(sent, 5_000);
    assert!(worst <= 1_000, "{worst}");
}

/// A process that crashes and starts again, over and over, each time sending what it may.
#[test]
fn a_crash_loop_is_no_source_of_calls() {
    let worst = virtual_time(async {
        let mut arrivals = Vec::new();
        for _ in 0..20 {
            let ceiling = Ceiling::start(&ceilings(300, None), 1, 10_000, Start::AfterOthers);
            let crash = Instant::now() + Duration::from_millis(4_700);
            let deadline = crash + Duration::from_mins(1);
            let tickets: Vec<_> =
                (0..1_500).map(|_| ceiling.request(Class::Fresh, deadline).unwrap()).collect();
            for ticket in tickets {
                let Ok(Ok(permit)) = tokio::time::timeout_at(crash, ticket.permit()).await else {
                    break;
                };
                arrivals.push(Instant::now());
                tokio::task::spawn_local(async move {
                    sleep(Duration::from_millis(5)).await;
                    if Instant::now() < crash {
                        permit.answered();
                    } else {
                        // A crash gives nothing back.
                        std::mem::forget(permit);
                    }
                });
            }
            tokio::time::sleep_until(crash).await;
        }
        assert!(arrivals.len() > 20 * 100);
        worst_second(&arrivals)
    });
    assert!(worst <= 300, "{worst}");
}

#[test]
fn three_times_the_demand_uses_the_ceiling_and_keeps_order() {
    let (order, worst, took) = virtual_time(async {
        let ceiling = Ceiling::start(&ceilings(1_000, 300), 4, 100_000, Start::Alone);
        let start = Instant::now();
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut tasks = Vec::new();
        for i in 0..20_000 {
            let ticket = ceiling.request(Class::Fresh, start + Duration::from_hours(1)).unwrap();
            let order = Rc::clone(&order);
            tasks.push(tokio::task::spawn_local(async move {
                let permit = ticket.permit().await.unwrap();
                order.borrow_mut().push((i, permit.egress(), Instant::now()));
                sleep(Duration::from_millis(5)).await;
                permit.answered();
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let order = order.take();
        let worst: Vec<_> = (0..4)
            .map(|address| {
                let own: Vec<_> = order.iter().filter(|o| o.1 == address).map(|o| o.2).collect();
                worst_second(&own)
            })
            .collect();
        (order.iter().map(|o| o.0).collect::<Vec<_>>(), worst, start.elapsed())
    });
    assert!(order.is_sorted(), "first come, first served");
    assert!(worst.iter().all(|w| (200..=300).contains(w)), "{worst:?}");
    let rate = 20_000.0 / took.as_secs_f64();
    assert!((970.0..=1_000.0).contains(&rate), "{rate} calls/s");
}

#[test]
fn refuses_at_the_door_what_it_could_not_send_in_time() {
    virtual_time(async {
        let ceiling = Ceiling::start(&ceilings(100, None), 1, 10_000, Start::Alone);
        let patience = Duration::from_secs(5);
        let mut accepted = Vec::new();
        let mut refused = None;
        for _ in 0..2_000 {
            match ceiling.request(Class::Fresh, Instant::now() + patience) {
                Ok(ticket) => accepted.push(ticket),
                Err(why) => {
                    refused = Some(why);
                    break;
                }
            }
        }
        // Five seconds at a hundred a second, give or take the calls' own time.
        assert!((450..=600).contains(&accepted.len()), "{}", accepted.len());
        let Some(Refused::WaitTooLong { wait, retry_after, .. }) = refused else {
            panic!("{refused:?}")
        };
        assert!(wait > Duration::from_millis(4_500) && wait < Duration::from_secs(6), "{wait:?}");
        // Whoever was let in is served within its patience.
        let mut tasks = Vec::new();
        for ticket in accepted {
            tasks.push(tokio::task::spawn_local(async move {
                let permit = ticket.permit().await.unwrap();
                sleep(Duration::from_millis(5)).await;
                permit.answered();
            }));
        }
        // And who comes back when told is let in.
        sleep(retry_after.max(SECOND)).await;
        assert!(ceiling.request(Class::Fresh, Instant::now() + patience).is_ok());
        for task in tasks {
            task.await.unwrap();
        }
    });
}

#[test]
fn the_waiting_room_is_bounded() {
    virtual_time(async {
        let ceiling = Ceiling::start(&ceilings(1, None), 1, 3, Start::AfterOthers);
        // With one call a second, each time-out closes the ceiling for five minutes.
        let deadline = Instant::now() + Duration::from_hours(24);
        let _waiting: Vec<_> =
            (0..3).map(|_| ceiling.request(Class::Fresh, deadline).unwrap()).collect();
        let refused = ceiling.request(Class::Fresh, deadline).unwrap_err();
        assert!(matches!(refused, Refused::QueueFull { retry_after } if retry_after > SECOND));
        assert_eq!(ceiling.status().waiting, 3);
    });
}

#[test]
fn retries_get_their_share_and_no_more_while_fresh_messages_wait() {
    virtual_time(async {
        let ceiling = Ceiling::start(&ceilings(100, None), 1, 10_000, Start::AfterOthers);
        // With one call a second, each time-out closes the ceiling for five minutes.
        let deadline = Instant::now() + Duration::from_hours(24);
        let served = Rc::new(RefCell::new(Vec::new()));
        let mut tasks = Vec::new();
        for class in [Class::Retry, Class::Fresh] {
            for _ in 0..500 {
                let ticket = ceiling.request(class, deadline).unwrap();
                let served = Rc::clone(&served);
                tasks.push(tokio::task::spawn_local(async move {
                    let permit = ticket.permit().await.unwrap();
                    served.borrow_mut().push(class);
                    permit.answered();
                }));
            }
        }
        for task in tasks {
            task.await.unwrap();
        }
        let served = served.take();
        let retries = served[..500].iter().filter(|c| **c == Class::Retry).count();
        assert_eq!(retries, 100, "a fifth while both wait");
        assert_eq!(served.len(), 1_000, "and all of it when none do");
    });
}

#[test]
fn who_hangs_up_costs_nothing_but_its_place() {
    virtual_time(async {
        let ceiling = Ceiling::start(&ceilings(10, None), 1, 1_000, Start::AfterOthers);
        let deadline = Instant::now() + Duration::from_mins(1);
        let gone: Vec<_> =
            (0..100).map(|_| ceiling.request(Class::Fresh, deadline).unwrap()).collect();
        drop(gone);
        let start = Instant::now();
        let ticket = ceiling.request(Class::Fresh, deadline + SECOND * 60).unwrap();
        ticket.permit().await.unwrap().answered();
        assert!(start.elapsed() < WINDOW + SECOND, "{:?}", start.elapsed());
    });
}

#[test]
fn push_back_parks_a_tenth_at_most_once_a_second_and_never_everything() {
    virtual_time(async {
        let ceiling = Ceiling::start(&ceilings(100, None), 1, 10_000, Start::Alone);
        sleep(SECOND).await;
        let permit = async || {
            let deadline = Instant::now() + Duration::from_mins(5);
            ceiling.request(Class::Fresh, deadline).unwrap().permit().await.unwrap()
        };
        permit().await.throttled();
        permit().await.throttled();
        assert_eq!(ceiling.status().ceilings[0].withheld, 10);
        for _ in 0..1_000 {
            permit().await.throttled();
        }
        let parked = ceiling.status().ceilings[0].withheld;
        assert!((50..100).contains(&parked), "{parked}");
        sleep(Duration::from_secs(46)).await;
        assert_eq!(ceiling.status().ceilings[0].withheld, 0);
    });
}

#[test]
fn no_ceiling_means_no_wait() {
    virtual_time(async {
        let ceiling = Ceiling::start(&ceilings(None, None), 1, 10, Start::AfterOthers);
        for _ in 0..100_000 {
            let deadline = Instant::now() + SECOND;
            ceiling.request(Class::Fresh, deadline).unwrap().permit().await.unwrap().answered();
        }
    });
}

const MINUTE: Duration = Duration::from_mins(1);

/// Asks for a permit now and then for so long; `end` says how its call ends.
async fn calls_for(ceiling: &Ceiling, time: Duration, mut end: impl FnMut(Permit)) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        if let Ok(ticket) = ceiling.request(Class::Fresh, Instant::now() + SECOND)
            && let Ok(permit) = ticket.permit().await
        {
            end(permit);
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// One address is blocked: the other takes over, and one probe at a time finds out when it is over.
#[test]
fn a_blocked_address_rests_and_the_others_take_over() {
    virtual_time(async {
        let ceiling = Ceiling::start(&ceilings(None, 300), 2, 100, Start::Alone);
        let mut lost = 0;
        let mut answered = 0;
        calls_for(&ceiling, MINUTE * 12, |permit| {
            if permit.egress() == 0 {
                lost += 1;
                permit.lost(Read::Never);
            } else {
                answered += 1;
                permit.answered();
            }
        })
        .await;
        assert_eq!(ceiling.status().blocked, [true, false]);
        // The run that raised the suspicion, and a probe each five minutes.
        assert!((12..30).contains(&lost), "{lost} connections were tried");
        assert!(answered > 14_000, "{answered}");
        // The block is lifted: the next probe tells, and it works as before.
        let mut first = 0;
        calls_for(&ceiling, MINUTE * 6, |permit| {
            first += u32::from(permit.egress() == 0);
            permit.answered();
        })
        .await;
        assert_eq!(ceiling.status().blocked, [false, false]);
        assert!(first > 100, "{first}");
    });
}

/// An outage of the upstream is no block: calls go on, so that its end is noticed at once.
#[test]
fn an_outage_is_no_block() {
    virtual_time(async {
        let ceiling = Ceiling::start(&ceilings(None, 300), 2, 100, Start::Alone);
        calls_for(&ceiling, MINUTE, Permit::answered).await;
        let mut lost = 0;
        calls_for(&ceiling, MINUTE, |permit| {
            lost += 1;
            permit.lost(if lost % 2 == 0 { Read::Over } else { Read::Never });
        })
        .await;
        assert_eq!(ceiling.status().blocked, [false, false]);
        assert!(lost > 1_000, "{lost}");
    });
}

/// The only address is lost right after it came near its ceiling: that is how a block begins.
#[test]
fn nothing_is_hammered_after_nearing_the_ceiling() {
    virtual_time(async {
        let ceiling = Ceiling::start(&ceilings(None, 20), 1, 100, Start::Alone);
        // As many calls as the ceiling lets through.
        calls_for(&ceiling, SECOND * 5, Permit::answered).await;
        let mut lost = 0;
        calls_for(&ceiling, SECOND * 60, |permit| {
            lost += 1;
            permit.lost(Read::Over);
        })
        .await;
        assert_eq!(ceiling.status().blocked, [true]);
        assert!(lost < 40, "{lost} connections were tried");
        let refused = ceiling.request(Class::Fresh, Instant::now() + SECOND).unwrap_err();
        let Refused::WaitTooLong { retry_after, .. } = refused else { panic!("{refused}") };
        assert!((MINUTE * 3..MINUTE * 6).contains(&retry_after), "{retry_after:?}");
    });
}

/// A permit within this time, however its caller waits.
async fn permit_within(ceiling: &Ceiling, wait: Duration) -> Permit {
    ceiling.request(Class::Fresh, Instant::now() + wait).unwrap().permit().await.unwrap()
}

/// After push-back, with everything at work on its way to a slow upstream, the only moment known
/// is when parked permits return, in half a minute. Answers must be noticed long before.
#[test]
fn slow_answers_after_push_back_are_noticed() {
    virtual_time(async {
        let ceiling = Ceiling::start(&ceilings(20, None), 1, 4_096, Start::Alone);
        permit_within(&ceiling, SECOND * 5).await.throttled();
        sleep(Duration::from_millis(1_500)).await;
        let mut out = Vec::new();
        for _ in 0..18 {
            out.push(permit_within(&ceiling, SECOND * 5).await);
        }
        let patient = ceiling.clone();
        let waiter = tokio::task::spawn_local(async move {
            let deadline = Instant::now() + SECOND * 60;
            if let Ok(ticket) = patient.request(Class::Fresh, deadline) {
                ticket.permit().await.unwrap().answered();
            }
        });
        sleep(SECOND * 2).await;
        out.into_iter().for_each(Permit::answered);
        let answered = Instant::now();
        waiter.await.unwrap();
        assert!(answered.elapsed() < WINDOW * 2, "{:?}", answered.elapsed());
        // And whoever comes then is let in.
        for _ in 0..40 {
            permit_within(&ceiling, SECOND * 4).await.answered();
        }
    });
}

/// Waiters who have given up do not keep others out.
#[test]
fn the_dead_do_not_hold_the_door() {
    virtual_time(async {
        let ceiling = Ceiling::start(&ceilings(1, None), 1, 2, Start::Alone);
        let out = permit_within(&ceiling, SECOND * 5).await;
        for _ in 0..2 {
            let ticket = ceiling.request(Class::Fresh, Instant::now() + SECOND * 3).unwrap();
            assert_eq!(ticket.permit().await.unwrap_err(), Refused::TimedOut);
        }
        out.answered();
        sleep(SECOND * 2).await;
        permit_within(&ceiling, SECOND).await.answered();
    });
}

/// A suspicion that an answer ends, ends at once for those who wait, too.
#[test]
fn the_end_of_a_suspicion_is_noticed() {
    virtual_time(async {
        let ceiling = Ceiling::start(&ceilings(None, 20), 1, 4_096, Start::Alone);
        let mut out = Vec::new();
        for _ in 0..20 {
            out.push(permit_within(&ceiling, SECOND * 5).await);
        }
        let slow = out.split_off(12);
        out.pop().unwrap().lost(Read::Over);
        sleep(Duration::from_millis(1_050)).await;
        for permit in out {
            permit.lost(Read::Over);
        }
        assert_eq!(ceiling.status().blocked, [true]);
        let patient = ceiling.clone();
        let waiter = tokio::task::spawn_local(async move {
            permit_within(&patient, MINUTE * 20).await.answered();
        });
        sleep(Duration::from_millis(1_100)).await;
        slow.into_iter().for_each(Permit::answered);
        assert_eq!(ceiling.status().blocked, [false]);
        let answered = Instant::now();
        waiter.await.unwrap();
        assert!(answered.elapsed() < WINDOW * 2, "{:?}", answered.elapsed());
    });
}

/// From no ceiling to one and back: what is on its way counts, and nothing is counted twice.
#[test]
fn a_ceiling_may_come_and_go_while_calls_are_on_their_way() {
    virtual_time(async {
        let ceiling = Ceiling::start(&ceilings(None, None), 1, 4_096, Start::Alone);
        let mut out = Vec::new();
        for _ in 0..10 {
            out.push(permit_within(&ceiling, SECOND).await);
        }
        ceiling.resize(&ceilings(10, 10));
        assert_eq!(ceiling.status().ceilings[0].used, 10, "what is on its way counts");
        assert_eq!(ceiling.status().ceilings[0].free, Some(0));
        ceiling.resize(&ceilings(None, None));
        ceiling.resize(&ceilings(10, 10));
        assert_eq!(ceiling.status().ceilings[0].used, 10);
        out.into_iter().for_each(Permit::answered);
        sleep(SECOND * 3).await;
        assert_eq!(ceiling.status().ceilings[0].used, 0);
        assert_eq!(ceiling.status().ceilings[1].free, Some(10));
        permit_within(&ceiling, SECOND).await.answered();
    });
}

/// A ceiling lowered below what is withheld leaves one at work.
#[test]
fn a_shrunken_ceiling_still_works() {
    virtual_time(async {
        let ceiling = Ceiling::start(&ceilings(100, None), 1, 4_096, Start::Alone);
        for _ in 0..6 {
            permit_within(&ceiling, SECOND * 5).await.throttled();
            sleep(SECOND).await;
        }
        assert!(ceiling.status().ceilings[0].withheld > 20);
        ceiling.resize(&ceilings(20, None));
        sleep(SECOND * 2).await;
        permit_within(&ceiling, SECOND * 3).await.answered();
    });
}
