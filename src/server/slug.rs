//! The types of all problems that any listener answers.

use std::fmt;

macro_rules! slugs {
    ($($(#[doc = $doc:literal])+ $Name:ident = $text:literal;)*) => {
        /// The last part of a problem's type, `urn:tollgate:<slug>`. `docs/problems.md` says of each what
        /// its caller does.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Slug {
            $($(#[doc = $doc])+ $Name,)*
        }

        impl Slug {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$Name),*];

            /// As it stands in the type.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$Name => $text,)*
                }
            }
        }
    };
}

slugs! {
    // Of every listener.
    /// The request's length is given in two ways.
    AmbiguousLength = "ambiguous-length";
    /// A request caused a panic.
    Bug = "bug";
    /// The body has a `Content-Encoding`.
    EncodedBody = "encoded-body";
    /// The `Host` is not a name of a loopback listener.
    ForeignHost = "foreign-host";
    /// Another site's page sent the request.
    ForeignOrigin = "foreign-origin";
    /// The head has too many bytes or lines.
    HeadTooLarge = "head-too-large";
    /// There is no valid `Host`.
    MalformedHost = "malformed-host";
    /// The head is not HTTP/1.1.
    MalformedRequest = "malformed-request";
    /// The path has no such method.
    MethodNotAllowed = "method-not-allowed";
    /// The listener has no such path.
    NotFound = "not-found";
    /// The path is far too long.
    PathTooLong = "path-too-long";
    /// The `Transfer-Encoding` is not read.
    UnknownTransferCoding = "unknown-transfer-coding";

    // Of the callers' listener.
    /// The upstream denies access.
    Barred = "barred";
    /// A batch has a key of its own.
    BatchKey = "batch-key";
    /// The body was not there in time.
    BodyTimeout = "body-timeout";
    /// A budget is used up.
    Budget = "budget";
    /// The caller has sent as many messages as it may.
    CallerRate = "caller-rate";
    /// A `CloudEvent` in binary mode that is not carried, or is not valid.
    CloudEvent = "cloud-event";
    /// The sidecar is stopping.
    Draining = "draining";
    /// The message was dropped.
    Dropped = "dropped";
    /// A batch has no line.
    EmptyBatch = "empty-batch";
    /// The message's time to live has ended.
    Expired = "expired";
    /// The upstream failed.
    Failed = "failed";
    /// The topic is not allowed, or has no instance.
    ForbiddenTopic = "forbidden-topic";
    /// The wait queue is full, or as many batches are answered as may be.
    Full = "full";
    /// The body ended early.
    IncompleteBody = "incomplete-body";
    /// The body is not text.
    InvalidPayload = "invalid-payload";
    /// A message that is never stored has an `Idempotency-Key`.
    KeyAtOnce = "key-at-once";
    /// The first request with the key is being answered.
    KeyInFlight = "key-in-flight";
    /// The key was used for another message.
    KeyReused = "key-reused";
    /// As many keys are reserved as may be.
    KeysFull = "keys-full";
    /// The `Idempotency-Key` is not valid.
    MalformedKey = "malformed-key";
    /// A line of a batch is not a message.
    MalformedLine = "malformed-line";
    /// The topic is not valid.
    MalformedTopic = "malformed-topic";
    /// The `TTL` is not a number of seconds.
    MalformedTtl = "malformed-ttl";
    /// The `Urgency` is none of its words.
    MalformedUrgency = "malformed-urgency";
    /// Messages in progress take all memory.
    MemoryFull = "memory-full";
    /// No message with this id is kept.
    NoSuchMessage = "no-such-message";
    /// The wait for a permit would be too long.
    OverCeiling = "over-ceiling";
    /// The body has too many bytes.
    PayloadTooLarge = "payload-too-large";
    /// The upstream refuses the message.
    Refused = "refused";
    /// The spool has no room.
    SpoolFull = "spool-full";
    /// The spool cannot be written.
    SpoolUnavailable = "spool-unavailable";
    /// The upstream throttles.
    Throttled = "throttled";
    /// Nothing was sent in time.
    Timeout = "timeout";
    /// A batch has too many lines.
    TooManyMessages = "too-many-messages";
    /// The outcome of a call is not known.
    Unknown = "unknown";
    /// The request does not prove to be of a caller.
    UnprovenCaller = "unproven-caller";
    /// A batch is no NDJSON.
    UnsupportedMediaType = "unsupported-media-type";

    // Of the control socket.
    /// The ledger cannot be read.
    Ledger = "ledger";
    /// The selection of messages is not valid.
    MalformedSelection = "malformed-selection";
    /// There is no spool.
    NoSpool = "no-spool";
    /// A change did not complete.
    Unfinished = "unfinished";

    // Of the keyring.
    /// No key could be made.
    NoKey = "no-key";
    /// As many accounts have keys as may.
    TooManyCallers = "too-many-callers";
    /// The caller asks too often.
    TooOften = "too-often";
    /// The caller has no valid proof.
    Unproven = "unproven";
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
