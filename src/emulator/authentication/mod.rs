//! Who calls, and did they sign what arrived.
//!
//! The canonical strings are rebuilt here from the decoded request, with code of this module's
//! own: a sender that encodes or signs wrongly must not find the same mistake on this side.

mod canonical;
mod key;
mod v1;
mod v3;
#[cfg(test)]
mod vectors;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::call::{ReceivedCall, Version};
use super::refusal::Refusal;
pub(super) use key::{KeyRing, KeyRole, KnownKey};

/// How far a call's time may be from the provider's.
const WINDOW: SignedDuration = SignedDuration::from_mins(15);

/// A call whose signature is right. Whether its nonce is fresh is for the caller to see.
pub(super) struct VerifiedSignature<'a> {
    pub(super) key: Arc<KnownKey>,
    pub(super) nonce: &'a str,
}

/// Checks a call against the keys at the provider's time `now`.
pub(super) fn check<'a>(
    call: &'a ReceivedCall<'_>,
    keys: &KeyRing,
    now: Timestamp,
) -> Result<VerifiedSignature<'a>, Refusal> {
    match call.version() {
        Version::V1 => v1::check(call, keys, now),
        Version::V3 => v3::check(call, keys, now),
    }
}

/// `yyyy-MM-ddTHH:mm:ssZ` and nothing else, at most [`WINDOW`] from now either way.
fn check_time(text: &str, now: Timestamp) -> Result<(), Refusal> {
    const SHAPE: &[u8] = b"0000-00-00T00:00:00Z";
    let shaped = text.len() == SHAPE.len()
        && text.bytes().zip(SHAPE).all(|(byte, &shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            _ => byte == shape,
        });
    let time = if shaped { text.parse::<Timestamp>().ok() } else { None };
    let time = time.ok_or_else(|| Refusal::new("InvalidTimeStamp.Format"))?;
    if now.duration_since(time).abs() > WINDOW {
        return Err(Refusal::new("InvalidTimeStamp.Expired"));
    }
    Ok(())
}

/// The way the provider says that a signature is wrong: clients compare the tail with their own.
fn does_not_match(string_to_sign: &str) -> Refusal {
    Refusal::new("SignatureDoesNotMatch").saying(format!(
        "Specified signature is not matched with our calculation. \
         server string to sign is:{string_to_sign}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_fifteen_minutes_either_way() {
        let now = "2024-01-02T03:04:05Z".parse::<Timestamp>().unwrap();
        let code = |text| check_time(text, now).err().map(|refusal| refusal.code.into_owned());
        let expired = Some("InvalidTimeStamp.Expired".to_owned());
        assert_eq!(code("2024-01-02T03:04:05Z"), None);
        assert_eq!(code("2024-01-02T02:49:05Z"), None);
        assert_eq!(code("2024-01-02T03:19:05Z"), None);
        assert_eq!(code("2024-01-02T02:49:04Z"), expired);
        assert_eq!(code("2024-01-02T03:19:06Z"), expired);
    }

    #[test]
    fn one_format_of_time() {
        let now = "2024-01-02T03:04:05Z".parse::<Timestamp>().unwrap();
        for text in [
            "",
            "2024-01-02 03:04:05Z",
            "2024-01-02T03:04:05.000Z",
            "2024-01-02T03:04:05+00:00",
            "2024-01-02T03:04:05",
            "2024-13-02T03:04:05Z",
            "2024-01-02T25:04:05Z",
            "1704164645",
            "２024-01-02T03:04:05",
        ] {
            let refusal = check_time(text, now).unwrap_err();
            assert_eq!(refusal.code, "InvalidTimeStamp.Format", "{text:?}");
        }
    }
}
