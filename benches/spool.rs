//! What it costs to keep a message.
//!
//! Times are the disk's; compare within one run. The yardstick is a bare append and `fdatasync` of
//! as many bytes in the same folder: less is not to be had.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr, reason = "a benchmark")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group};
use tollgate::config::Lifetime;
use tollgate::message::{Message, MessageId, Payload, PayloadForm, Terms, Topic};
use tollgate::spool::{AdoptionRules, Change, Options, Spool};

const BODY: usize = 1_024;
const MANY: usize = 64;
/// Messages of each caller.
const AGAIN: usize = 20;
const KEPT: usize = 100_000;
/// Set to a folder: the bench only opens it, and says how much memory that took.
const OPEN_ONLY: &str = "SPOOL_OPEN_ONLY";

fn options(path: PathBuf) -> Options {
    Options {
        lifetime: Lifetime::Volume,
        path,
        max_bytes: 1 << 30,
        max_messages: 1_000_000,
        max_in_memory: usize::MAX,
        keep_receipts: Duration::from_hours(1),
        keep_claims: Duration::from_mins(10),
        caller_shares: std::sync::Arc::default(),
        mac: None,
        adopts: AdoptionRules::default(),
    }
}

fn message() -> Message {
    Message {
        id: MessageId::new(),
        instance: "post-cn-0pp12gl0000".into(),
        topic: Topic::parse("TopicA/sub1").unwrap(),
        payload: Payload::kept(Bytes::from_static(&[7; BODY]), PayloadForm::Body),
        caller: None,
        trace: None,
        terms: Terms::default(),
    }
}

/// On the disk that holds the project: `/tmp` may be memory.
fn folder() -> tempfile::TempDir {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tempfile::tempdir_in(target).unwrap()
}

/// Keeps as many at once, and then forgets them, so that the spool does not fill.
async fn keep(spool: &Spool, count: usize) {
    let messages: Vec<_> = (0..count).map(|_| message()).collect();
    let ids: Vec<_> = messages.iter().map(|message| message.id).collect();
    let keeps = messages.into_iter().map(|message| {
        let spool = spool.clone();
        tokio::spawn(async move { spool.keep(&message, None).await })
    });
    for keep in keeps.collect::<Vec<_>>() {
        keep.await.unwrap().unwrap();
    }
    for id in ids {
        drop(spool.note(id, Change::Forgotten));
    }
}

fn keeping(criterion: &mut Criterion) {
    let folder = folder();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut group = criterion.benchmark_group("keep");
    group.sample_size(30);

    let path = folder.path().join("bare");
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    group.bench_function("bare append and fdatasync", |bencher| {
        bencher.iter(|| {
            file.write_all(&[7; BODY + 160]).unwrap();
            file.sync_data().unwrap();
        });
    });

    let spool = runtime.block_on(Spool::open(options(folder.path().join("spool")))).unwrap();
    for count in [1, MANY] {
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("{count} at once"), |bencher| {
            // Forgetting is a write, too, but nobody waits for it.
            bencher.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    runtime.block_on(async {
                        spool.flush().await;
                        let start = tokio::time::Instant::now();
                        keep(&spool, count).await;
                        spent += start.elapsed();
                    });
                }
                spent
            });
        });
    }
    // As callers do it: each comes again when its message is kept, so that commits are shared all
    // the time.
    group.throughput(Throughput::Elements((MANY * AGAIN) as u64));
    group.bench_function(format!("{MANY} callers, {AGAIN} times each"), |bencher| {
        bencher.iter_custom(|rounds| {
            let mut spent = Duration::ZERO;
            for _ in 0..rounds {
                runtime.block_on(async {
                    spool.flush().await;
                    let start = tokio::time::Instant::now();
                    let callers = (0..MANY).map(|_| {
                        let spool = spool.clone();
                        tokio::spawn(async move {
                            let mut ids = Vec::with_capacity(AGAIN);
                            for _ in 0..AGAIN {
                                let message = message();
                                spool.keep(&message, None).await.unwrap();
                                ids.push(message.id);
                            }
                            ids
                        })
                    });
                    let mut ids = Vec::new();
                    for caller in callers.collect::<Vec<_>>() {
                        ids.extend(caller.await.unwrap());
                    }
                    spent += start.elapsed();
                    for id in ids {
                        drop(spool.note(id, Change::Forgotten));
                    }
                });
            }
            spent
        });
    });
    group.finish();
}

fn opening(criterion: &mut Criterion) {
    let folder = folder();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let spool = Spool::open(options(folder.path().to_owned())).await.unwrap();
        for _ in 0..KEPT / 1_000 {
            let messages: Vec<_> = (0..1_000).map(|_| message()).collect();
            let keeps = messages.into_iter().map(|message| {
                let spool = spool.clone();
                tokio::spawn(async move { spool.keep(&message, None).await })
            });
            for keep in keeps.collect::<Vec<_>>() {
                keep.await.unwrap().unwrap();
            }
        }
        spool.flush().await;
    });
    let mut group = criterion.benchmark_group("open");
    group.sample_size(10);
    group.bench_function(format!("{KEPT} messages of {BODY} bytes"), |bencher| {
        bencher.iter_with_large_drop(|| {
            runtime.block_on(async {
                let spool = Spool::open(options(folder.path().to_owned())).await.unwrap();
                assert_eq!(spool.usage().queued.messages, KEPT as u64);
                spool.flush().await;
                spool
            });
        });
    });
    group.finish();
    // In a process of its own: this one has written all of it.
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    assert!(again.env(OPEN_ONLY, folder.path()).status().unwrap().success());
}

/// The most memory that was resident, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

criterion_group!(benches, keeping, opening);

fn main() {
    let Some(path) = std::env::var_os(OPEN_ONLY) else {
        benches();
        return Criterion::default().configure_from_args().final_summary();
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let before = resident();
    let spool = runtime.block_on(Spool::open(options(path.into()))).unwrap();
    let kept = spool.usage().queued.messages;
    eprintln!("{kept} messages: at most {} KiB resident, {before} before", resident());
}
