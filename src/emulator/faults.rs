//! Failures on demand: which calls fail, how, how often and for how long.

use std::time::Duration;

use jiff::SignedDuration;
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::verification::{is_known_code, known_codes};

/// A list longer than this is a mistake.
const MOST: usize = 1000;
/// The operation that faults hit unless they name another one.
pub(super) const SEND_MESSAGE: &str = "SendMessage";
/// Not an operation of the provider's API: its metadata service.
pub(super) const METADATA: &str = "metadata";
/// What a fault can hit.
pub const FAULT_ACTIONS: [&str; 12] = [
    SEND_MESSAGE,
    "AssumeRole",
    "AssumeRoleWithOIDC",
    "ApplyToken",
    "QueryToken",
    "RevokeToken",
    "CreateGroupId",
    "DeleteGroupId",
    "ListGroupId",
    "BatchQuerySessionByClientIds",
    "QuerySessionByClientId",
    METADATA,
];

/// A kind of failure. As JSON, `{"code":"SystemOverFlow","probability":0.3,"for":"10s"}`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The provider's code that is answered, with the status that goes with it. Another one only with a `status`.
    #[serde(default)]
    pub code: Option<String>,
    /// The share of calls that it hits.
    #[serde(default = "always")]
    pub probability: f64,
    /// How long it lasts, from when it was set.
    #[serde(default, rename = "for", deserialize_with = "duration")]
    pub lasts: Option<Duration>,
    /// The operation that it hits: `AssumeRole`, `AssumeRoleWithOIDC`, `metadata`, or another one that is emulated,
    /// as `ApplyToken`; absent, `SendMessage`.
    #[serde(default)]
    pub action: Option<String>,
    /// The parent topic or the whole topic that it hits; absent, every topic.
    #[serde(default)]
    pub topic: Option<String>,
    /// What happens.
    #[serde(default)]
    pub then: Then,
    /// Instead of the status that goes with the code.
    #[serde(default)]
    pub status: Option<u16>,
    /// Sent as `x-acs-retry-after` with the answer.
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
    /// Hits only so many calls.
    #[serde(default)]
    pub times: Option<u64>,
    /// Waited before the answer. Alone (no `code`), the call is slow and then accepted.
    #[serde(default, deserialize_with = "duration")]
    pub latency: Option<Duration>,
}

/// What happens to a call that a fault hits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// The code is answered.
    #[default]
    Answer,
    /// The connection closes without an answer; the message was not taken.
    Close,
    /// Nothing comes, until the caller gives up.
    Hang,
    /// 200 with an empty `MsgId`; the message was not taken.
    EmptyMsgid,
    /// A page of a proxy on the way, no JSON.
    #[serde(rename = "html-503")]
    Html503,
    /// The message is taken, and then the connection closes without an answer.
    DeliverThenClose,
}

/// A list of faults that cannot be played.
#[derive(Debug, Error)]
pub enum FaultError {
    /// No JSON list of faults.
    #[error("not a list of faults: {0}")]
    Json(#[from] serde_json::Error),
    /// One of the list makes no sense.
    #[error("fault {index}: {reason}")]
    Invalid {
        /// Its place in the list, from 0.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The list is too long.
    #[error("{0} faults, at most {MOST} are played")]
    TooMany(usize),
}

impl Fault {
    /// A fault that answers `code` to every call.
    pub fn answer(code: impl Into<String>) -> Self {
        Self { code: Some(code.into()), ..Self::new(Then::Answer) }
    }

    /// A fault that hits every call.
    pub fn new(then: Then) -> Self {
        Self {
            code: None,
            probability: always(),
            lasts: None,
            action: None,
            topic: None,
            then,
            status: None,
            retry_after_ms: None,
            times: None,
            latency: None,
        }
    }

    /// Reads and checks a JSON list.
    pub fn parse_list(json: &[u8]) -> Result<Vec<Self>, FaultError> {
        let list: Vec<Self> = serde_json::from_slice(json)?;
        check(&list)?;
        Ok(list)
    }

    fn reason_against(&self) -> Option<String> {
        if !(0.0..=1.0).contains(&self.probability) {
            return Some("probability is from 0 to 1".to_owned());
        }
        if self.status.is_some_and(|status| !(200..=599).contains(&status)) {
            return Some("status is from 200 to 599".to_owned());
        }
        let action = self.action.as_deref();
        if let Some(action) = action.filter(|action| !FAULT_ACTIONS.contains(action)) {
            let meant = meant(action, FAULT_ACTIONS.into_iter());
            return Some(format!("{action:?} is no operation that is emulated{meant}"));
        }
        match (self.then, &self.code) {
            (Then::Answer, None) if self.latency.is_none() => {
                Some("an answer needs a code".to_owned())
            }
            (_, Some(code)) if code.is_empty() || code.len() > 128 => {
                Some("a code has 1 to 128 characters".to_owned())
            }
            (_, Some(code)) if self.status.is_none() && !is_known_code(code) => {
                let meant = meant(code, known_codes().map(|(known, _)| known));
                let any = "with a \"status\", any code is answered";
                Some(format!("{code:?} is no code of the provider's{meant}; {any}"))
            }
            _ => None,
        }
    }

    fn hits(&self, action: &str, topic: &str) -> bool {
        self.action.as_deref().unwrap_or(SEND_MESSAGE) == action && self.hits_topic(topic)
    }

    fn hits_topic(&self, topic: &str) -> bool {
        let parent = topic.split('/').next().unwrap_or_default();
        self.topic.as_deref().is_none_or(|wanted| wanted == topic || wanted == parent)
    }
}

/// A hint at the name that was probably meant.
fn meant(word: &str, mut names: impl Iterator<Item = &'static str>) -> String {
    let meant = names.find(|name| name.eq_ignore_ascii_case(word));
    meant.map(|name| format!(" (did you mean {name:?}?)")).unwrap_or_default()
}

/// Refuses a list that cannot be played.
pub(super) fn check(list: &[Fault]) -> Result<(), FaultError> {
    if list.len() > MOST {
        return Err(FaultError::TooMany(list.len()));
    }
    for (index, fault) in list.iter().enumerate() {
        if let Some(reason) = fault.reason_against() {
            return Err(FaultError::Invalid { index, reason });
        }
    }
    Ok(())
}

/// The faults being played.
#[derive(Debug)]
pub(super) struct Faults {
    playing: Vec<Playing>,
    chance: fastrand::Rng,
}

#[derive(Debug)]
struct Playing {
    fault: Fault,
    /// Nanoseconds on the emulator's clock.
    ends: Option<u64>,
    left: Option<u64>,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        Self { playing: Vec::new(), chance: fastrand::Rng::with_seed(seed) }
    }

    /// Plays these instead of the former ones.
    pub(super) fn set(&mut self, list: Vec<Fault>, now: u64) {
        let play = |fault: Fault| {
            let lasts = fault.lasts.and_then(|lasts| u64::try_from(lasts.as_nanos()).ok());
            Playing { ends: lasts.map(|lasts| now.saturating_add(lasts)), left: fault.times, fault }
        };
        self.playing = list.into_iter().map(play).collect();
    }

    /// The first fault of the list that hits this call of an operation.
    pub(super) fn draw(&mut self, action: &str, topic: &str, now: u64) -> Option<Fault> {
        let chance = &mut self.chance;
        let hit = self.playing.iter_mut().find(|playing| {
            playing.ends.is_none_or(|ends| now < ends)
                && playing.left != Some(0)
                && playing.fault.hits(action, topic)
                && chance.f64() < playing.fault.probability
        })?;
        hit.left = hit.left.map(|left| left - 1);
        Some(hit.fault.clone())
    }
}

fn always() -> f64 {
    1.0
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    parse_duration(&text).map(Some).map_err(serde::de::Error::custom)
}

/// Reads `"10s"`, `"1m 30s"`, `"250ms"`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = text.parse::<SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok());
    duration.ok_or_else(|| format!("{text:?} is no duration such as \"10s\" or \"250ms\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(json: &str) -> Faults {
        let mut faults = Faults::new(7);
        faults.set(Fault::parse_list(json.as_bytes()).unwrap(), 0);
        faults
    }

    #[test]
    fn the_contracts_example() {
        let json = r#"[{"code":"SystemOverFlow","probability":0.3,"for":"10s","topic":"A","then":"answer"}]"#;
        let list = Fault::parse_list(json.as_bytes()).unwrap();
        let expected = Fault {
            probability: 0.3,
            lasts: Some(Duration::from_secs(10)),
            topic: Some("A".to_owned()),
            ..Fault::answer("SystemOverFlow")
        };
        assert_eq!(list, [expected]);
        for (text, then) in [
            ("close", Then::Close),
            ("hang", Then::Hang),
            ("empty-msgid", Then::EmptyMsgid),
            ("html-503", Then::Html503),
            ("deliver-then-close", Then::DeliverThenClose),
        ] {
            let list = Fault::parse_list(format!(r#"[{{"then":"{text}"}}]"#).as_bytes()).unwrap();
            assert_eq!(list, [Fault::new(then)]);
        }
    }

    #[test]
    fn refuses_nonsense() {
        for json in [
            "{}",
            "[{}]",
            r#"[{"code":""}]"#,
            r#"[{"code":"SystemOverFlow","probability":1.5}]"#,
            r#"[{"code":"SystemOverFlow","status":42}]"#,
            r#"[{"code":"SystemOverFlow","for":"soon"}]"#,
            r#"[{"code":"SystemOverFlow","for":"-1s"}]"#,
            r#"[{"code":"SystemOverFlow","then":"explode"}]"#,
            r#"[{"code":"SystemOverFlow","probabilty":0.5}]"#,
        ] {
            assert!(Fault::parse_list(json.as_bytes()).is_err(), "{json}");
        }
    }

    #[test]
    fn refuses_names_that_the_provider_does_not_have() {
        let error =
            |json: &str| Fault::parse_list(json.as_bytes()).map_err(|error| error.to_string());
        for (json, hint) in [
            (r#"[{"code":"SystemOverflow"}]"#, r#"did you mean "SystemOverFlow"?"#),
            (r#"[{"code":"Throttling.Users"}]"#, r#"with a "status""#),
            (r#"[{"code":"X","then":"close"}]"#, r#""X" is no code"#),
            (r#"[{"code":"NoPermission","action":"assumeRole"}]"#, r#"did you mean "AssumeRole"?"#),
            (r#"[{"code":"InternalError","action":"SendMessages"}]"#, r#""SendMessages" is no"#),
        ] {
            let error = error(json).unwrap_err();
            assert!(error.contains(hint), "{json}: {error}");
        }
        for json in [
            r#"[{"code":"X","status":418}]"#,
            r#"[{"code":"InvalidParameter.Topic"}]"#,
            r#"[{"code":"Throttling.User","action":"ApplyToken"}]"#,
            r#"[{"code":"InternalError","action":"metadata"}]"#,
        ] {
            assert!(error(json).is_ok(), "{json}");
        }
    }

    #[test]
    fn topic_time_and_times() {
        let mut faults = faults(r#"[{"code":"InternalError","topic":"A","for":"1s","times":3}]"#);
        assert!(faults.draw(SEND_MESSAGE, "B", 0).is_none());
        assert!(faults.draw(SEND_MESSAGE, "AB", 0).is_none());
        assert!(faults.draw(SEND_MESSAGE, "A", 0).is_some());
        assert!(
            faults.draw(SEND_MESSAGE, "A/sub", 0).is_some(),
            "a parent stands for its sub-topics"
        );
        assert!(faults.draw(SEND_MESSAGE, "A", 1_000_000_000).is_none(), "over after a second");
        assert!(faults.draw(SEND_MESSAGE, "A", 999_999_999).is_some());
        assert!(faults.draw(SEND_MESSAGE, "A", 0).is_none(), "three calls and no more");
    }

    #[test]
    fn chance_is_near_the_share_and_repeats_with_the_seed() {
        let run = |mut faults: Faults| {
            (0..10_000).map(|_| faults.draw(SEND_MESSAGE, "A", 0).is_some()).collect()
        };
        let json = r#"[{"code":"InternalError","probability":0.3}]"#;
        let first: Vec<bool> = run(faults(json));
        let hits = first.iter().filter(|hit| **hit).count();
        assert!((2800..3200).contains(&hits), "{hits} of 10,000");
        assert_eq!(first, run(faults(json)));
    }
}
