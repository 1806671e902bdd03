//! What the emulator tells about itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Serialize, Serializer};

/// `GET /_emulator/report`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Calls that arrived, whatever became of them.
    pub calls: u64,
    /// Messages taken.
    pub accepted: u64,
    /// Messages taken whose instance, topic and payload equal an earlier one's.
    pub duplicates: u64,
    /// Calls not taken, by the provider's code, or by what happened instead of an answer:
    /// `blocked`, `close`, `hang`, `empty-msgid`, `html-503`.
    pub refused: BTreeMap<String, u64>,
    /// The most calls that arrived in any half-open second, in all.
    pub worst_second: usize,
    /// The same by source address.
    pub worst_second_by_source: BTreeMap<IpAddr, usize>,
    /// The most calls of an operation beside `SendMessage` in any half-open second, by its name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub worst_second_by_operation: BTreeMap<&'static str, usize>,
    /// The last hour, seconds without calls left out.
    pub by_second: Vec<EmulatedSecond>,
    /// Addresses whose connections are being closed.
    pub blocked: Vec<IpAddr>,
    /// Rightly signed calls by `AccessKeyId`.
    pub keys: BTreeMap<String, u64>,
    /// Temporary keys given out.
    pub issued: u64,
    /// Accepted messages that are no longer kept for `/_emulator/messages`.
    pub forgotten: u64,
    /// The hand-over to a broker, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mqtt: Option<MqttReport>,
}

/// Calls of one second of the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EmulatedSecond {
    /// Seconds since 1970.
    pub second: i64,
    /// Calls that arrived.
    pub calls: u64,
    /// Messages taken.
    pub accepted: u64,
}

/// The hand-over to a broker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MqttReport {
    /// Messages that the broker acknowledged.
    pub published: u64,
    /// Messages that found the queue full, as when the broker is away.
    pub dropped: u64,
}

/// Worst seconds as the traffic's books hold them.
pub(super) struct WorstSecond {
    pub(super) all: usize,
    pub(super) by_source: BTreeMap<IpAddr, usize>,
}

/// An accepted message, a line of `GET /_emulator/messages`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Accepted {
    /// When it was taken, by the provider's clock.
    #[serde(serialize_with = "display")]
    pub time: jiff::Timestamp,
    /// Where the call came from.
    pub source: IpAddr,
    /// The `InstanceId`.
    pub instance: String,
    /// The `MqttTopic`.
    pub topic: String,
    /// The `Payload`, as sent.
    pub payload: String,
    /// The `MsgId` that was answered.
    #[serde(rename = "MsgId")]
    pub msg_id: String,
}

fn display<S: Serializer>(time: &jiff::Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}
