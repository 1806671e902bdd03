use proptest::prelude::*;

use super::*;
use crate::message::InstanceId;

#[derive(Debug, Clone)]
enum Step {
    Begin(SeriesId),
    End(usize, u8),
    Write,
    LedgerStore,
    Tick,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_u16).prop_map(Step::Begin),
        5 => (any::<usize>(), 0..3_u8).prop_map(|(nth, billed)| Step::End(nth, billed)),
        4 => Just(Step::Write),
        2 => Just(Step::LedgerStore),
        1 => Just(Step::Tick),
        1 => Just(Step::Crash),
    ]
}

/// A disk that forgets nothing, and what was put on it.
#[derive(Default)]
struct TestDisk {
    generation: u64,
    names: Vec<SeriesName>,
    buckets: Buckets,
    reserved: BTreeMap<SeriesId, u64>,
    file: Option<LedgerSnapshot>,
}

impl TestDisk {
    fn add(&mut self, snapshot: &LedgerSnapshot) {
        assert_eq!(snapshot.generation, self.generation + 1);
        self.generation = snapshot.generation;
        self.names.extend(snapshot.names.iter().map(|(_, name)| name.clone()));
        self.reserved = snapshot.reserved.clone();
        for (key, bucket) in &snapshot.buckets {
            let sum = self.buckets.entry(*key).or_default();
            sum.billable += bucket.billable;
            sum.uncertain += bucket.uncertain;
        }
    }

    fn sums(&self) -> (u64, u64) {
        let buckets = self.buckets.values();
        buckets.fold((0, 0), |sum, bucket| (sum.0 + bucket.billable, sum.1 + bucket.uncertain))
    }
}

/// Beyond the last number, messages are counted with all others of their instance, and not left out.
#[test]
fn more_series_than_can_be_numbered() {
    let mut reservations = Reservations::new(0, Vec::new());
    let instance = InstanceId::from("x");
    let id = |reservations: &mut Reservations, n: usize| {
        let caller = format!("caller{}", n % 2).into();
        let name = SeriesName { caller, ..SeriesName::of_all(&instance, &format!("topic{n}")) };
        reservations.series(&name).unwrap()
    };
    let ids: Vec<_> = (0..70_000).map(|n| id(&mut reservations, n)).collect();
    let last = reservations.series(&SeriesName::of_all(&instance, OTHER)).unwrap();
    assert_eq!(ids.last(), Some(&last));
    assert!(ids[0] != last && id(&mut reservations, 0) == ids[0]);
}

fn name(id: SeriesId) -> SeriesName {
    SeriesName::of_all(&"post-cn-1".into(), &format!("topic{id}"))
}

/// Writes, and returns what is reserved then.
fn write(reservations: &mut Reservations) -> u64 {
    let snapshot = reservations.snapshot(0, Phase::Running);
    reservations.written(&snapshot, Stored::No);
    snapshot.reserved.values().sum()
}

/// Each of many series waits for a write of its own once, and keeps one reservation as long as it has a call about
/// once a second.
#[test]
fn a_series_with_few_calls_keeps_one_spare() {
    let mut reservations = Reservations::new(0, Vec::new());
    let ids: Vec<_> = (0..40).map(|n| reservations.series(&name(n)).unwrap()).collect();
    for second in 0..4 {
        for id in &ids {
            assert_eq!(reservations.begin(*id), second > 0, "{id} in {second}");
            reservations.end(*id, Billed::Yes, second);
            assert!(write(&mut reservations) <= ids.len() as u64);
        }
    }
    // One stays, while others are called.
    for n in 0..LAST_WRITES {
        reservations.begin(ids[0]);
        reservations.end(ids[0], Billed::Yes, 4);
        let kept = write(&mut reservations) - 1;
        assert_eq!(kept > 0, n + 1 < LAST_WRITES, "{n}");
    }
    for _ in 1..IDLE_WRITES {
        assert_eq!(write(&mut reservations), 1);
    }
    assert_eq!(write(&mut reservations), 0);
    assert!(reservations.is_quiet());
}

#[test]
fn a_busy_series_has_spare_for_a_burst() {
    let mut reservations = Reservations::new(0, Vec::new());
    let id = reservations.series(&name(0)).unwrap();
    for _ in 0..2 {
        assert!(!reservations.begin(id));
        reservations.end(id, Billed::Yes, 0);
    }
    assert_eq!(write(&mut reservations), MIN_SPARE);
    assert!((0..MIN_SPARE).all(|_| reservations.begin(id)));
    assert!(!reservations.begin(id));
    (0..=MIN_SPARE).for_each(|_| reservations.end(id, Billed::Yes, 0));
    assert_eq!(write(&mut reservations), MIN_SPARE + 1);
    for _ in 1..IDLE_WRITES {
        write(&mut reservations);
    }
    assert_eq!(write(&mut reservations), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    /// Whatever happens: a call that is billed is billed once or uncertain, nothing else is
    /// billed, and after an ordered end the books agree exactly.
    #[test]
    fn nothing_is_forgotten_and_nothing_counted_twice(
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let mut disk = TestDisk::default();
        let mut reservations = Reservations::new(0, Vec::new());
        // Calls that left, by series; and what the provider has billed, perhaps, or not.
        let mut out = Vec::<SeriesId>::new();
        let mut waiting = Vec::<SeriesId>::new();
        let (mut billed, mut unknown, mut lost, mut second) = (0_u64, 0_u64, 0_u64, 0);
        for step in steps {
            match step {
                Step::Begin(id) => {
                    let id = reservations.series(&name(id)).unwrap();
                    if reservations.begin(id) { out.push(id) } else { waiting.push(id) }
                }
                Step::End(nth, kind) if !out.is_empty() => {
                    let id = out.swap_remove(nth % out.len());
                    let kind = Billed::ALL[usize::from(kind)];
                    billed += u64::from(kind == Billed::Yes);
                    unknown += u64::from(kind == Billed::Uncertain);
                    reservations.end(id, kind, second);
                }
                Step::End(..) => {}
                Step::Write => {
                    let snapshot = reservations.snapshot(second, Phase::Running);
                    disk.file = Some(snapshot.clone());
                    reservations.written(&snapshot, Stored::No);
                    out.append(&mut waiting);
                }
                Step::LedgerStore => {
                    let snapshot = reservations.snapshot(second, Phase::Running);
                    disk.add(&snapshot);
                    reservations.written(&snapshot, Stored::Yes);
                    out.append(&mut waiting);
                }
                Step::Tick => second += 1,
                Step::Crash => {
                    // What had left may have been billed; what waited for room never left.
                    billed += out.len() as u64;
                    out.clear();
                    waiting.clear();
                    let file = disk.file.take();
                    let (snapshot, reserved) =
                        LedgerSnapshot::recover(disk.generation, disk.reserved.clone(), file, second);
                    disk.add(&snapshot);
                    lost += reserved.values().sum::<u64>();
                    reservations = Reservations::new(disk.generation, disk.names.clone());
                }
            }
            let (sum, uncertain) = disk.sums();
            prop_assert!(sum <= billed);
            prop_assert!(uncertain <= unknown + lost);
        }
        out.append(&mut waiting);
        for id in out {
            billed += 1;
            reservations.end(id, Billed::Yes, second);
        }
        let snapshot = reservations.snapshot(second, Phase::Closing);
        disk.add(&snapshot);
        prop_assert!(snapshot.reserved.is_empty());
        let (sum, uncertain) = disk.sums();
        prop_assert!(sum <= billed && billed <= sum + uncertain, "{billed} {sum} {uncertain}");
        if lost == 0 {
            prop_assert_eq!((sum, uncertain), (billed, unknown));
        }
    }

    #[test]
    fn a_store_that_takes_nothing_does_not_fill_the_memory(
        calls in prop::collection::vec((0..3_u16, 0..10_000_000_i64), 1..300),
    ) {
        let mut reservations = Reservations::new(0, Vec::new());
        for (id, second) in &calls {
            for again in 0..40 {
                let id = reservations.series(&name(*id)).unwrap();
                reservations.begin(id);
                reservations.end(id, Billed::Yes, second + again);
            }
        }
        let snapshot = reservations.snapshot(0, Phase::Running);
        prop_assert!(snapshot.buckets.len() <= MAX_BUCKETS);
        let sum: u64 = snapshot.buckets.values().map(|bucket| bucket.billable).sum();
        prop_assert_eq!(sum, calls.len() as u64 * 40);
    }
}
