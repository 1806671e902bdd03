//! `Idempotency-Key`: a structured-field string (RFC 9651), as the IETF draft requires. A bare token is
//! accepted, too, since many clients send one.

use bytes::Bytes;
use http::HeaderMap;
use sha2::{Digest, Sha256};

use crate::callers::Caller;
use crate::message::Topic;
use crate::spool::Claim;

/// The most bytes of a key.
pub(super) const MAX_KEY: usize = 256;

/// The claim of a request's `Idempotency-Key`, if it has one.
///
/// # Errors
/// The header is not a valid key.
pub(super) fn claim(
    headers: &HeaderMap,
    caller: Option<&Caller>,
    topic: &Topic,
    body: &Bytes,
) -> Result<Option<Claim>, &'static str> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err("there are several Idempotency-Key headers");
    }
    let text = value.to_str().map_err(|_| "the Idempotency-Key is not ASCII")?;
    let key = unquote(text.trim()).ok_or("the Idempotency-Key is not a quoted string")?;
    of(&key, caller, topic, body).map(Some)
}

/// The claim of this key for this topic and body. Each caller has keys of its own.
///
/// # Errors
/// The key is empty or too long.
pub(super) fn of(
    key: &str,
    caller: Option<&Caller>,
    topic: &Topic,
    body: &Bytes,
) -> Result<Claim, &'static str> {
    if key.is_empty() || key.len() > MAX_KEY {
        return Err("the Idempotency-Key must have 1 to 256 characters");
    }
    Ok(of_any_length(key, caller, topic, body))
}

/// As [`of`], of a key that is not a caller's to choose at will.
pub(super) fn of_any_length(
    key: &str,
    caller: Option<&Caller>,
    topic: &Topic,
    body: &Bytes,
) -> Claim {
    let topic_len = (topic.as_str().len() as u64).to_le_bytes();
    // No name has a blank, and no key begins with one that the name before it does not.
    let of_caller = caller.map(|caller| format!("{} ", caller.name())).unwrap_or_default();
    Claim {
        key: digest(&[of_caller.as_bytes(), key.as_bytes()]),
        print: digest(&[&topic_len, topic.as_str().as_bytes(), body]),
    }
}

/// The first half of SHA-256: 128 bits make a collision as good as impossible.
fn digest(parts: &[&[u8]]) -> u128 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    let hash = hash.finalize();
    hash.iter().take(16).fold(0, |bits, byte| bits << 8 | u128::from(*byte))
}

fn unquote(text: &str) -> Option<String> {
    let Some(rest) = text.strip_prefix('"') else {
        let token = text.bytes().all(|b| b.is_ascii_graphic() && !b"\",;\\".contains(&b));
        return token.then(|| text.to_owned());
    };
    let mut key = String::new();
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        key.push(match c {
            // Parameters may follow; none is defined, so they say nothing.
            '"' => return matches!(chars.next(), None | Some(';')).then_some(key),
            '\\' => chars.next().filter(|c| matches!(c, '"' | '\\'))?,
            c if c.is_control() => return None,
            c => c,
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        for (text, key) in [
            (
                r#""8e03978e-40d5-43dd-bc93-6894a57f9324""#,
                Some("8e03978e-40d5-43dd-bc93-6894a57f9324"),
            ),
            ("bare-token", Some("bare-token")),
            (r#""a \"quoted\" \\ one""#, Some(r#"a "quoted" \ one"#)),
            (r#""with"; a="b""#, Some("with")),
            (r#""a"b""#, None),
            (r#""open"#, None),
            (r#""ends\""#, None),
            ("two words", None),
            ("a;b=c", None),
        ] {
            assert_eq!(unquote(text).as_deref(), key, "{text}");
        }
    }
}
