//! Signed calls as they arrive: decoded, and their signatures checked.
//!
//! The canonical strings are built here from the decoded call, with code of this module's own: a sender in
//! this process that encodes or signs wrongly must not find the same mistake on the receiving side.

mod call;
mod canonical;
mod codes;
mod refusal;
mod v1;
mod v3;
#[cfg(test)]
mod vectors;

use jiff::{SignedDuration, Timestamp};

pub use call::{Pairs, ReceivedCall, SignatureKind};
pub use codes::{is_known_code, known_codes, status_and_message};
pub use refusal::Refusal;

/// How far a call's time may be from the receiver's, either way, as the provider has it.
pub const WINDOW: SignedDuration = SignedDuration::from_mins(15);

/// What a caller may have signed with.
pub trait SigningKey {
    /// The secret that both sides know.
    fn secret(&self) -> &str;
}

impl<K: SigningKey> SigningKey for std::sync::Arc<K> {
    fn secret(&self) -> &str {
        (**self).secret()
    }
}

/// A call whose signature is right. Whether its nonce is fresh is for the receiver to see.
#[derive(Debug)]
pub struct VerifiedSignature<'a, K> {
    /// What it was signed with.
    pub key: K,
    /// What no other call with this key may have.
    pub nonce: &'a str,
    /// When it was signed, by the caller's clock.
    pub time: Timestamp,
}

/// What a call says of its signature, before that is checked.
struct Claimed<'a> {
    key_id: &'a str,
    token: Option<&'a str>,
    nonce: &'a str,
    time: Timestamp,
}

/// Checks a call at the time `now`. `find`: the key of an id and the token that came with it.
pub fn check<'a, K: SigningKey>(
    call: &'a ReceivedCall<'_>,
    find: impl FnOnce(&str, Option<&str>) -> Result<K, Refusal>,
    now: Timestamp,
) -> Result<VerifiedSignature<'a, K>, Refusal> {
    match call.kind() {
        SignatureKind::Rpc => {
            let signed = v1::SignedParameters::read(call, now)?;
            let key = find(signed.claimed.key_id, signed.claimed.token)?;
            signed.verify(call, key.secret())?;
            Ok(signed.claimed.verified(key))
        }
        SignatureKind::Acs3 => {
            let signed = v3::SignedRequest::read(call, now)?;
            let key = find(signed.claimed.key_id, signed.claimed.token)?;
            signed.verify(call, key.secret())?;
            Ok(signed.claimed.verified(key))
        }
    }
}

impl<'a> Claimed<'a> {
    fn verified<K>(self, key: K) -> VerifiedSignature<'a, K> {
        VerifiedSignature { key, nonce: self.nonce, time: self.time }
    }
}

/// The id of the key that a call says it is signed with; nothing is checked.
pub fn key_id<'a>(call: &'a ReceivedCall<'_>) -> Result<&'a str, Refusal> {
    match call.kind() {
        SignatureKind::Rpc => {
            call.parameter("AccessKeyId").ok_or_else(|| v1::incomplete("AccessKeyId"))
        }
        SignatureKind::Acs3 => v3::key_id(call),
    }
}

/// `yyyy-MM-ddTHH:mm:ssZ` and nothing else, at most [`WINDOW`] from now either way.
fn check_time(text: &str, now: Timestamp) -> Result<Timestamp, Refusal> {
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
    Ok(time)
}

/// The longest string to sign that an answer shows: a larger answer would cost more memory than its call.
const MAX_SHOWN: usize = 4 << 10;

/// The way the provider says that a signature is wrong: clients compare the tail with their own.
fn does_not_match(string_to_sign: &str) -> Refusal {
    let refusal = Refusal::new("SignatureDoesNotMatch");
    if string_to_sign.len() > MAX_SHOWN {
        return refusal;
    }
    refusal.saying(format!(
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
