//! Operations of the provider's beside `SendMessage`, which services may call through tollgate.

use std::fmt;

use crate::message::MessageId;

/// How many calls a second the provider publishes for an operation, for all of an account together. Source:
/// `help.aliyun.com/en/apsaramq-for-mqtt/…/developer-reference/qps-limits`. Those that the SDKs call with GET
/// (`GetCaCertificate` and its like) are left out: every call of tollgate's is a POST.
const PUBLISHED: [(&str, u32); 23] = [
    ("ApplyToken", 100),
    ("QueryToken", 100),
    ("RevokeToken", 5),
    ("CreateGroupId", 10),
    ("DeleteGroupId", 10),
    ("ListGroupId", 10),
    ("BatchQuerySessionByClientIds", 100),
    ("QuerySessionByClientId", 500),
    ("RegisterDeviceCredential", 500),
    ("UnRegisterDeviceCredential", 500),
    ("GetDeviceCredential", 500),
    ("RefreshDeviceCredential", 500),
    ("RegisterCaCertificate", 500),
    ("DeleteCaCertificate", 500),
    ("ActiveCaCertificate", 500),
    ("InactivateCaCertificate", 500),
    ("DeleteDeviceCertificate", 500),
    ("ActiveDeviceCertificate", 500),
    ("InactivateDeviceCertificate", 500),
    ("QueryMqttTraceDevice", 500),
    ("QueryMqttTraceMessageOfClient", 500),
    ("QueryMqttTraceMessagePublish", 500),
    ("QueryMqttTraceMessageSubscribe", 500),
];

/// An operation whose calls are passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// Its name, as the provider spells it.
    pub name: Box<str>,
    /// Calls a second, for all of the account together.
    pub ceiling: u32,
}

/// The published ceiling of an operation, calls a second; `None`: there is none.
pub fn published_ceiling(name: &str) -> Option<u32> {
    PUBLISHED.iter().find(|(of, _)| *of == name).map(|(_, ceiling)| *ceiling)
}

/// A caller's call of such an operation, to be signed anew.
pub struct ActionCall {
    /// In the log, and what chooses the key.
    pub id: MessageId,
    /// The operation's name.
    pub action: Box<str>,
    /// Its own parameters, sorted by name as bytes, each name once.
    pub parameters: Vec<(Box<str>, Box<str>)>,
}

impl fmt::Debug for ActionCall {
    /// A parameter may be a secret: a token to revoke, say.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ActionCall({} {})", self.id, self.action)
    }
}
