//! What each message pays on its way: a permit and a signature.
//!
//! Times differ between machines; compare within one run. The last group is the yardstick: what
//! signing costs at least, the HMAC alone over as many bytes.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use tokio::time::Instant;
use tollgate::ceiling::{Ceiling, Class, Start, Ticket};
use tollgate::config::{Ceilings, SignatureVersion, Unanswered};
use tollgate::signing::{Credentials, Stamp, sign};
use tollgate::upstream::SendMessage;

fn payload(bytes: usize) -> String {
    let mut random = fastrand::Rng::with_seed(1);
    STANDARD.encode((0..bytes).map(|_| random.u8(..)).collect::<Vec<_>>())
}

fn signing(criterion: &mut Criterion) {
    let key = Credentials { id: "testid", secret: "testsecret", token: None };
    let stamp = Stamp::new("2024-01-02T03:04:05Z".parse().unwrap(), 7);
    let mut group = criterion.benchmark_group("sign");
    for size in [256, 4_096, 49_152] {
        let payload = payload(size);
        let message = SendMessage::new("post-cn-0pp12gl0000", "TopicA/sub1", &payload);
        let call = message.call("onsmqtt.cn-hangzhou.aliyuncs.com");
        group.throughput(Throughput::Bytes(size as u64));
        for (name, version) in
            [("hmac-sha1", SignatureVersion::HmacSha1), ("acs3", SignatureVersion::Acs3)]
        {
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter(|| sign(version, black_box(&call), &key, &stamp));
            });
        }
        group.bench_function(BenchmarkId::new("hmac-sha1 alone", size), |bencher| {
            let bytes = vec![b'x'; payload.len()];
            bencher.iter(|| {
                let mut mac = Hmac::<Sha1>::new_from_slice(b"testsecret&").unwrap();
                mac.update(black_box(&bytes));
                mac.finalize()
            });
        });
    }
}

fn permits(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = runtime.enter();
    let ceilings = |n| Ceilings {
        account: Some(n),
        egress_ip: Some(n),
        retry_share: 0.2,
        unanswered: Unanswered { min: Duration::from_secs(10), max: Duration::from_mins(5) },
    };
    let mut group = criterion.benchmark_group("permit");
    // So many that none is waited for.
    let ceiling = Ceiling::start(&ceilings(1_000_000_000), 1, 10, Start::Alone);
    group.bench_function("ready, taken and given back unsent", |bencher| {
        bencher.iter(|| {
            let deadline = Instant::now() + Duration::from_secs(5);
            match ceiling.request(Class::Fresh, deadline).unwrap() {
                Ticket::Ready(permit) => permit.unsent(),
                Ticket::Waiting(_) => unreachable!("there are enough"),
            }
        });
    });
    // Its only permit is out, as soon as there is one.
    let empty = Ceiling::start(&ceilings(1), 1, 0, Start::Alone);
    loop {
        let ticket = empty.request(Class::Fresh, Instant::now() + Duration::from_secs(5));
        if let Ok(ticket) = ticket {
            std::mem::forget(ticket);
            break;
        }
    }
    group.bench_function("refused at the door", |bencher| {
        bencher.iter(|| {
            let deadline = Instant::now() + Duration::from_millis(1);
            empty.request(Class::Fresh, deadline).unwrap_err()
        });
    });
    group.bench_function("room, as for RateLimit fields", |bencher| {
        bencher.iter(|| black_box(ceiling.room()));
    });
}

criterion_group!(benches, signing, permits);
criterion_main!(benches);
