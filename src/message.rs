//! What a caller hands us: valid once made, and passed on without being looked at again.

mod payload;
mod terms;
mod trace;

use std::fmt;
use std::sync::Arc;

pub use payload::{Payload, PayloadEncoding, PayloadError, PayloadForm};
pub use terms::{Expiry, Lifespan, Terms, Urgency};
pub use trace::{SpanContext, SpanId, Trace, TraceId, TraceParent};

/// Longest topic in characters, unless it is point-to-point.
/// Source: <https://help.aliyun.com/document_detail/63620.html>.
pub const MAX_TOPIC: usize = 64;
/// Longest client id of a point-to-point topic (`<parent>/p2p/<clientId>`).
/// That the whole topic may then exceed [`MAX_TOPIC`] follows from the two published limits.
pub const MAX_CLIENT_ID: usize = 64;
/// Shortest parent topic.
pub const MIN_PARENT: usize = 3;
/// Longest payload in characters as it is sent, after Base64.
/// The provider drops larger messages; whether it counts before or after Base64 is not published,
/// so the smaller reading holds. Source: <https://help.aliyun.com/document_detail/175698.html>.
pub const MAX_SENT_PAYLOAD: usize = 65_536;

// === Topic ===

/// An MQTT topic that the provider's rules allow: `parent`, `parent/sub/sub` or
/// `parent/p2p/GROUP@@@DEVICE`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Topic {
    whole: Arc<str>,
    parent: usize,
}

/// Why a string is not a topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Nothing was given.
    #[error("the topic is empty")]
    Empty,
    /// Two slashes in a row, or one at an end.
    #[error("the topic has an empty level")]
    EmptyLevel,
    /// A character outside `A-Z a-z 0-9 - _`.
    #[error("the topic has {0:?}; levels are made of A-Z a-z 0-9 - _")]
    Character(char),
    /// The first level is too short or too long.
    #[error("the parent topic has {0} characters; it must have {MIN_PARENT} to {MAX_TOPIC}")]
    ParentLength(usize),
    /// The whole is too long.
    #[error("the topic has {0} characters; it may have {MAX_TOPIC}")]
    Length(usize),
    /// A point-to-point topic that does not name one client.
    #[error(
        "a p2p topic ends in one client id, <GroupID>@@@<DeviceID>, of at most {MAX_CLIENT_ID} characters"
    )]
    ClientId,
}

impl Topic {
    /// Reads a topic, already percent-decoded.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        if text.is_empty() {
            return Err(TopicError::Empty);
        }
        let mut levels = text.split('/');
        let parent = levels.next().unwrap_or_default();
        check_level(parent)?;
        let p2p = levels.clone().next() == Some("p2p");
        if p2p {
            let mut rest = levels.skip(1);
            let client = rest.next().ok_or(TopicError::ClientId)?;
            if rest.next().is_some() {
                return Err(TopicError::ClientId);
            }
            check_client_id(client)?;
        } else {
            levels.try_for_each(check_level)?;
        }
        if !(MIN_PARENT..=MAX_TOPIC).contains(&parent.len()) {
            return Err(TopicError::ParentLength(parent.len()));
        }
        if !p2p && text.len() > MAX_TOPIC {
            return Err(TopicError::Length(text.len()));
        }
        Ok(Self { parent: parent.len(), whole: text.into() })
    }

    /// The whole topic.
    pub fn as_str(&self) -> &str {
        &self.whole
    }

    /// The first level: what exists in the provider's console, and what is billed and labelled.
    pub fn parent(&self) -> &str {
        &self.whole[..self.parent]
    }
}

fn check_level(level: &str) -> Result<(), TopicError> {
    if level.is_empty() {
        return Err(TopicError::EmptyLevel);
    }
    match level.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))) {
        Some(c) => Err(TopicError::Character(c)),
        None => Ok(()),
    }
}

fn check_client_id(client: &str) -> Result<(), TopicError> {
    let (group, device) = client.split_once("@@@").ok_or(TopicError::ClientId)?;
    if client.len() > MAX_CLIENT_ID || group.is_empty() || device.is_empty() {
        return Err(TopicError::ClientId);
    }
    check_level(group)?;
    check_level(device)
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.whole, f)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.whole)
    }
}

// === TopicPattern ===

/// A pattern over topics, where `*` stands for any characters: `Alarm/*`, `TopicA`, `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPattern(Box<str>);

impl TopicPattern {
    /// Any string is a pattern.
    pub fn new(pattern: &str) -> Self {
        Self(pattern.into())
    }

    /// Whether the whole topic fits.
    pub fn matches(&self, topic: &Topic) -> bool {
        self.matches_text(topic.as_str())
    }

    /// Whether the whole text fits, be it a topic or a part of one.
    pub fn matches_text(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else { return false };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        true
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// === Message ===

/// Names one message from the door to its end, also in the log; ordered by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(uuid::Uuid);

impl MessageId {
    /// A new one.
    pub fn new() -> Self {
        Self(uuid::Uuid::now_v7())
    }
}

impl MessageId {
    /// No id comes after it.
    pub const MAX: Self = Self(uuid::Uuid::max());

    /// Its bits, for those who keep it.
    pub fn as_u128(self) -> u128 {
        self.0.as_u128()
    }

    /// The id with these bits.
    pub fn from_u128(bits: u128) -> Self {
        Self(uuid::Uuid::from_u128(bits))
    }
}

impl std::str::FromStr for MessageId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl Default for MessageId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

/// The instance a message goes to, such as `post-cn-0pp12gl0000`.
pub type InstanceId = Arc<str>;

/// The name of a caller that the configuration has.
pub type CallerName = Arc<str>;

/// What fails and recovers together: an instance and a parent topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane {
    /// The instance.
    pub instance: InstanceId,
    /// The parent topic.
    pub parent: Arc<str>,
}

/// One message on its way.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its name in logs and receipts.
    pub id: MessageId,
    /// Where it goes.
    pub instance: InstanceId,
    /// The MQTT topic it goes to.
    pub topic: Topic,
    /// What it carries.
    pub payload: Payload,
    /// Who has sent it; `None`: all callers are one.
    pub caller: Option<CallerName>,
    /// Its trace: its caller's, or the one that its request began.
    pub trace: Option<Trace>,
    /// Until when it is worth sending, and how urgent it is.
    pub terms: Terms,
}

impl Message {
    /// The span that its calls belong to; `None`: its trace is not sampled.
    pub fn span(&self) -> Option<SpanContext> {
        self.trace?.context()
    }

    /// What it fails and recovers with.
    pub fn lane(&self) -> Lane {
        Lane { instance: Arc::clone(&self.instance), parent: self.topic.parent().into() }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn topics_that_the_provider_takes() {
        let p2p = format!("TopicA/p2p/GID_x@@@{}", "D".repeat(MAX_CLIENT_ID - 8));
        for (text, parent) in [
            ("abc", "abc"),
            ("TopicA/sub1", "TopicA"),
            ("TopicA/sub1/sub-2_x/y", "TopicA"),
            ("TopicA/p2p/GID_x@@@DEVICE", "TopicA"),
            (p2p.as_str(), "TopicA"),
            (&"t".repeat(64), &"t".repeat(64)),
        ] {
            let topic = Topic::parse(text).unwrap();
            assert_eq!((topic.as_str(), topic.parent()), (text, parent));
        }
    }

    #[test]
    fn topics_that_it_does_not() {
        use TopicError::{Character, ClientId, Empty, EmptyLevel, Length, ParentLength};
        for (text, error) in [
            ("", Empty),
            ("/", EmptyLevel),
            ("/abc", EmptyLevel),
            ("abc/", EmptyLevel),
            ("abc//d", EmptyLevel),
            ("ab", ParentLength(2)),
            (&"t".repeat(65), ParentLength(65)),
            (&format!("abc/{}", "t".repeat(61)), Length(65)),
            ("abc/+", Character('+')),
            ("abc/#", Character('#')),
            ("$SYS/x", Character('$')),
            ("a b c", Character(' ')),
            ("abc\u{0}", Character('\u{0}')),
            ("abc/日本", Character('日')),
            ("abc/x@@@y", Character('@')),
            ("abc/p2p", ClientId),
            ("abc/p2p/", ClientId),
            ("abc/p2p/x", ClientId),
            ("abc/p2p/@@@x", ClientId),
            ("abc/p2p/x@@@", ClientId),
            ("abc/p2p/x@@@y/z", ClientId),
            ("abc/p2p/x@@@y@@@z", Character('@')),
            (&format!("abc/p2p/g@@@{}", "d".repeat(61)), ClientId),
        ] {
            assert_eq!(Topic::parse(text).unwrap_err(), error, "{text:?}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, topic, fits) in [
            ("Alarm/*", "Alarm/fire", true),
            ("Alarm/*", "Alarm", false),
            ("Alarm", "Alarm", true),
            ("Alarm", "Alarms", false),
            ("*", "Anything/at/all", true),
            ("*/p2p/*", "abc/p2p/g@@@d", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abcdef", false),
            ("abc*abc", "abc", false),
        ] {
            let topic = Topic::parse(topic).unwrap();
            assert_eq!(TopicPattern::new(pattern).matches(&topic), fits, "{pattern} {topic}");
        }
    }

    #[test]
    fn payloads_keep_to_the_limit_of_their_encoding() {
        let body = |n| Bytes::from(vec![0xff; n]);
        assert!(Payload::new(body(49_152), PayloadEncoding::Base64, 1 << 20).is_ok());
        assert_eq!(
            Payload::new(body(49_153), PayloadEncoding::Base64, 1 << 20),
            Err(PayloadError::TooLarge { limit: 49_152 })
        );
        assert_eq!(Payload::new(body(1), PayloadEncoding::Plain, 10), Err(PayloadError::NotUtf8));
        assert!(Payload::new(Bytes::new(), PayloadEncoding::Plain, 0).is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_a_topic_or_an_error(text in "\\PC{0,80}") {
            if let Ok(topic) = Topic::parse(&text) {
                prop_assert_eq!(topic.as_str(), &text);
                prop_assert!(text.starts_with(topic.parent()));
            }
        }
    }
}
