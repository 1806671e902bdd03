//! A short-lived key as all of the provider's services word it.

use jiff::fmt::temporal::Pieces;
use jiff::{SignedDuration, Timestamp};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};

use super::key::Key;

/// A key with its end, in JSON.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CredentialsAnswer {
    code: Option<String>,
    access_key_id: Option<String>,
    #[serde(default, deserialize_with = "secret")]
    access_key_secret: Option<SecretString>,
    #[serde(default, deserialize_with = "secret")]
    security_token: Option<SecretString>,
    expiration: Option<String>,
}

impl CredentialsAnswer {
    /// The key, or what is wrong with the answer. Its end is by the server's clock, which is `skew` ahead of
    /// ours; the key's is by ours.
    pub(super) fn into_key(self, skew: SignedDuration) -> Result<Key, String> {
        if self.code.is_some_and(|code| code != "Success") {
            return Err("its answer's Code is not Success".to_owned());
        }
        let missing = |name| format!("its answer has no {name}");
        // A key without an end would never be renewed.
        let expires = self.expiration.ok_or_else(|| missing("Expiration"))?;
        let expires = moment(&expires).ok_or("its answer's Expiration is not a time")?;
        let id = self.access_key_id.ok_or_else(|| missing("AccessKeyId"))?;
        let secret = self.access_key_secret.ok_or_else(|| missing("AccessKeySecret"))?;
        let token = self.security_token.filter(|token| !token.expose_secret().is_empty());
        let key = Key::new(id, secret, token, Some(by_our_clock(expires, skew)));
        key.map_err(|error| error.to_string())
    }
}

/// Reads JSON of a kind. serde's own words would quote what they stumble over.
pub(super) fn read_json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("its answer is no JSON of a key (line {line}, column {column})")
    })
}

/// The edges of time mean that a key never ends, or has long ended: they stay what they are.
fn by_our_clock(at: Timestamp, skew: SignedDuration) -> Timestamp {
    if at == Timestamp::MAX || at == Timestamp::MIN {
        return at;
    }
    at.saturating_sub(skew).unwrap_or(at)
}

/// A moment with an offset from UTC. One that is too far away for a [`Timestamp`], such as the
/// `9999-12-31T23:59:59Z` of a key that never ends, is the nearest that is one.
pub(super) fn moment(text: &str) -> Option<Timestamp> {
    if let Ok(at) = text.parse() {
        return Some(at);
    }
    let pieces = Pieces::parse(text).ok()?;
    let at = pieces.date().to_datetime(pieces.time()?);
    let offset = pieces.to_numeric_offset()?;
    let far = if at.year() > 0 { Timestamp::MAX } else { Timestamp::MIN };
    Some(offset.to_timestamp(at).unwrap_or(far))
}

/// Wraps at once, so that a mistake further on in the JSON drops it wiped.
pub(super) fn secret<'de, D: Deserializer<'de>>(json: D) -> Result<Option<SecretString>, D::Error> {
    let text = Option::<String>::deserialize(json)?.map(Zeroizing::new);
    // Copied, and the copy that may be larger than its text wiped.
    Ok(text.map(|text| SecretString::from(&**text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str, skew: i64) -> Result<Key, String> {
        let answer = read_json::<CredentialsAnswer>(json.as_bytes())?;
        answer.into_key(SignedDuration::from_secs(skew))
    }

    #[test]
    fn the_documented_answer_is_a_key() {
        let key = read(
            r#"{"Code":"Success","AccessKeyId":"STS.abc","AccessKeySecret":"s\/x",
                "SecurityToken":"t0k","Expiration":"2024-01-02T09:04:05Z","LastUpdated":"x"}"#,
            0,
        )
        .unwrap();
        assert_eq!((key.id(), key.secret().expose_secret()), ("STS.abc", "s/x"));
        assert_eq!(key.token().unwrap().expose_secret(), "t0k");
        assert_eq!(key.expires(), Some("2024-01-02T09:04:05Z".parse().unwrap()));
    }

    #[test]
    fn code_and_token_may_be_absent() {
        for rest in ["", r#","SecurityToken":"""#, r#","SecurityToken":null,"Code":null"#] {
            let json = format!(
                r#"{{"AccessKeyId":"i","AccessKeySecret":"s","Expiration":"2024-01-02T09:04:05Z"{rest}}}"#
            );
            assert!(read(&json, 0).unwrap().token().is_none(), "{rest}");
        }
    }

    /// A key of an hour is not taken for an expired one where a clock is off by as much.
    #[test]
    fn an_end_is_read_by_the_clock_of_the_server() {
        for (end, skew, ours) in [
            ("2024-01-02T10:00:00Z", 3_600, "2024-01-02T09:00:00Z"),
            ("2024-01-02T10:00:00Z", -3_600, "2024-01-02T11:00:00Z"),
            ("9999-12-31T23:59:59Z", 3_600, "9999-12-30T22:00:00.999999999Z"),
            ("9999-12-30T22:00:00Z", -3_600, "9999-12-30T22:00:00.999999999Z"),
        ] {
            let json =
                format!(r#"{{"AccessKeyId":"i","AccessKeySecret":"s","Expiration":"{end}"}}"#);
            let expires = read(&json, skew).unwrap().expires();
            assert_eq!(expires, Some(ours.parse().unwrap()), "{end} {skew}");
        }
    }

    #[test]
    fn an_end_at_the_edge_of_time_is_clamped() {
        for (text, end) in [
            ("9999-12-31T23:59:59Z", Some(Timestamp::MAX)),
            ("9999-12-30T22:00:01Z", Some(Timestamp::MAX)),
            ("9999-12-31T23:59:59.999999999-23:00", Some(Timestamp::MAX)),
            ("9999-12-30T22:00:00Z", Some("9999-12-30T22:00:00Z".parse().unwrap())),
            ("-009999-01-01T00:00:00Z", Some(Timestamp::MIN)),
            ("2024-01-02T09:04:05Z", Some("2024-01-02T09:04:05Z".parse().unwrap())),
            ("9999-12-31", None),
            ("9999-12-31T23:59:59", None),
            ("9999-13-31T23:59:59Z", None),
            ("never", None),
        ] {
            assert_eq!(moment(text), end, "{text}");
            let json =
                format!(r#"{{"AccessKeyId":"i","AccessKeySecret":"s","Expiration":"{text}"}}"#);
            assert_eq!(read(&json, 0).ok().and_then(|key| key.expires()), end, "{text}");
        }
    }

    #[test]
    fn other_answers_are_refused_without_being_repeated() {
        let end = r#""Expiration":"2024-01-02T09:04:05Z""#;
        for (json, expected) in [
            (String::new(), "no JSON of a key (line 1, column 0)"),
            ("hush".to_owned(), "no JSON of a key"),
            ("[]".to_owned(), "no JSON of a key"),
            (r#"{"AccessKeySecret":{"hush":1}}"#.to_owned(), "no JSON of a key"),
            (r#"{"AccessKeyId":"hush","AccessKeySecret":17}"#.to_owned(), "no JSON of a key"),
            (r#"{"Expiration":"hush"}"#.to_owned(), "Expiration is not a time"),
            (r#"{"Code":"hush"}"#.to_owned(), "Code is not Success"),
            (r#"{"AccessKeyId":"hush","AccessKeySecret":"hush"}"#.to_owned(), "no Expiration"),
            (format!(r#"{{"AccessKeySecret":"hush",{end}}}"#), "no AccessKeyId"),
            (format!(r#"{{"AccessKeyId":"hush",{end}}}"#), "no AccessKeySecret"),
            (
                format!(r#"{{"AccessKeyId":"hush","AccessKeySecret":"hush hush",{end}}}"#),
                "the access key secret has white space",
            ),
        ] {
            let error = read(&json, 0).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
