//! What the spool promises, on a disk that fails as told and on a real one.

mod bounds;
mod double;
mod faults;
#[cfg(feature = "redis-tests")]
mod handover;
#[cfg(feature = "redis-tests")]
mod macs;
mod model;
#[cfg(feature = "redis-tests")]
mod outages;
mod real;
mod room;
#[cfg(feature = "redis-tests")]
mod shared;
#[cfg(feature = "redis-tests")]
mod together;
#[cfg(feature = "redis-tests")]
mod trust;
#[cfg(feature = "redis-tests")]
mod ways;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;
#[cfg(feature = "redis-tests")]
use tokio::time::{sleep, timeout};

pub(crate) use double::Double;
pub(crate) use faults::{open, settled};
#[cfg(feature = "redis-tests")]
pub(crate) use shared::{shared_at, shared_with};

use super::{AdoptionRules, Claim, Death, OpenError, Options, Reason, Receipt, Spool};
use crate::config::Lifetime;
use crate::message::{Message, MessageId, Payload, PayloadForm, Terms, Topic};

/// Nothing takes so long unless it hangs.
const BOUND: Duration = Duration::from_secs(30);

/// Plenty of room.
pub(crate) fn options(path: &Path) -> Options {
    Options {
        lifetime: Lifetime::Volume,
        path: path.to_owned(),
        max_bytes: 16 << 20,
        max_messages: 100_000,
        max_in_memory: usize::MAX,
        keep_receipts: Duration::from_hours(1),
        keep_claims: Duration::from_mins(10),
        caller_shares: std::sync::Arc::default(),
        mac: None,
        adopts: AdoptionRules::default(),
    }
}

/// Opens a folder that has just been let go of: a slow disk takes its time for the last write.
async fn reopen(options: &Options) -> Spool {
    let begun = Instant::now();
    loop {
        match Spool::open(options.clone()).await {
            Err(OpenError::Taken(_)) if begun.elapsed() < BOUND => {}
            opened => return opened.unwrap(),
        }
    }
}

/// Waits for a real Redis or disk.
#[cfg(feature = "redis-tests")]
async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let so = async {
        while !so().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(BOUND, so).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn message(topic: &str, body: impl Into<Vec<u8>>) -> Message {
    Message {
        id: MessageId::new(),
        instance: "post-cn-1".into(),
        topic: Topic::parse(topic).unwrap(),
        payload: Payload::kept(Bytes::from(body.into()), PayloadForm::Body),
        caller: None,
        trace: None,
        terms: Terms::default(),
    }
}

fn claim() -> Claim {
    Claim { key: u128::MAX - 1, print: 7 }
}

pub(crate) fn receipt() -> Receipt {
    Receipt {
        msg_id: "0A0B0C".into(),
        request_id: "R-1".into(),
        at: Timestamp::now(),
        accepted: true,
    }
}

fn death() -> Death {
    Death {
        reason: Reason::Refused,
        code: Some("InvalidTopic".into()),
        request_id: None,
        at: Timestamp::now(),
        accepted: true,
    }
}
