//! What an emulator is told before it starts.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::faults::Fault;

/// The key that is known when no other is given. Public, and worth nothing.
pub const DEMO_KEY_ID: &str = "demo-key-id";
/// The secret of [`DEMO_KEY_ID`].
pub const DEMO_KEY_SECRET: &str = "demo-key-secret";

/// How the emulator behaves. The defaults are the provider's published limits.
#[derive(Debug, Clone)]
pub struct EmulatorOptions {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Calls a sliding second in all, beyond which calls are throttled. 0: no limit.
    pub account_qps: u32,
    /// Calls a sliding second from one address, beyond which it is blocked. 0: no limit.
    pub egress_ip_qps: u32,
    /// How long a blocked address stays so. `None`: until an operator lifts it.
    pub block_for: Option<Duration>,
    /// The keys that may sign.
    pub keys: Vec<KeyPair>,
    /// How long keys live that the emulator gives out, whatever is asked for. `None`: as asked, and an hour
    /// from the metadata service.
    pub key_life: Option<Duration>,
    /// Whether the metadata service answers without a token.
    pub metadata: MetadataAccess,
    /// A broker that accepted messages are handed to, `mqtt://[user:password@]host[:port]`.
    pub mqtt: Option<String>,
    /// Which bytes the broker gets.
    pub mqtt_payload: MqttPayload,
    /// Waited before every answer.
    pub latency: Duration,
    /// How a call over the account's ceiling is refused.
    pub over: Over,
    /// Failures to play from the start.
    pub faults: Vec<Fault>,
    /// Decides which calls a fault's probability hits.
    pub seed: u64,
    /// The provider's clock minus this machine's, in seconds: for the signature's time window and
    /// the `Date` header.
    pub clock_offset: i64,
    /// A connection without a whole request for this long is dropped.
    pub idle: Duration,
    /// Accepted messages kept for `/_emulator/messages`; the oldest go first.
    pub keep_messages: usize,
    /// Bytes of payload kept with them; whichever bound comes first.
    pub keep_bytes: usize,
}

impl Default for EmulatorOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9460)),
            account_qps: 1000,
            egress_ip_qps: 300,
            block_for: None,
            keys: vec![KeyPair::new(DEMO_KEY_ID, DEMO_KEY_SECRET)],
            key_life: None,
            metadata: MetadataAccess::AnyVersion,
            mqtt: None,
            mqtt_payload: MqttPayload::Decoded,
            latency: Duration::ZERO,
            over: Over::ThrottlingUser,
            faults: Vec::new(),
            seed: 0,
            clock_offset: 0,
            idle: Duration::from_secs(10),
            keep_messages: 1_000_000,
            keep_bytes: 512 << 20,
        }
    }
}

/// An access key; with a token it is a temporary one, and the token must come with every call.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// The `AccessKeyId`.
    pub id: String,
    /// The `AccessKeySecret`.
    pub secret: String,
    /// The `SecurityToken` of a temporary key.
    pub token: Option<String>,
}

impl KeyPair {
    /// A lasting key.
    pub fn new(id: impl Into<String>, secret: impl Into<String>) -> Self {
        Self { id: id.into(), secret: secret.into(), token: None }
    }

    /// A temporary key.
    pub fn with_token(
        id: impl Into<String>,
        secret: impl Into<String>,
        token: impl Into<String>,
    ) -> Self {
        Self { token: Some(token.into()), ..Self::new(id, secret) }
    }
}

/// People do point emulators at real keys: print no secret.
impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.token.is_some() { "temporary" } else { "lasting" };
        f.debug_struct("KeyPair").field("id", &self.id).field("kind", &kind).finish_non_exhaustive()
    }
}

/// Who may ask the metadata service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataAccess {
    /// Versions 1 and 2.
    AnyVersion,
    /// Version 2: a token must come with each request.
    TokenOnly,
}

/// How a call over the account's ceiling is refused: the provider documents both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// 400 `Throttling.User` with `x-acs-retry-after`.
    ThrottlingUser,
    /// 500 `SystemOverFlow`.
    SystemOverFlow,
}

/// Which bytes a broker gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MqttPayload {
    /// Base64-decoded; what is not Base64 goes as sent.
    Decoded,
    /// The characters of the `Payload` parameter.
    AsSent,
}
