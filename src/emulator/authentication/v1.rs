//! RPC 1.0: HMAC-SHA1 over all parameters, wherever they came.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use super::canonical::{canonical_query, encode_into, hmac_sha1};
use super::{KeyRing, ReceivedCall, Refusal, VerifiedSignature, check_time, does_not_match};

pub(super) fn check<'a>(
    call: &'a ReceivedCall<'_>,
    keys: &KeyRing,
    now: Timestamp,
) -> Result<VerifiedSignature<'a>, Refusal> {
    let of_signature = |name| call.parameter(name).ok_or_else(|| incomplete(name));
    let key_id = of_signature("AccessKeyId")?;
    let signature = of_signature("Signature")?;
    let nonce = of_signature("SignatureNonce")?;
    let timestamp = of_signature("Timestamp")?;
    if of_signature("SignatureMethod")? != "HMAC-SHA1" {
        return Err(Refusal::new("InvalidSignatureMethod"));
    }
    if of_signature("SignatureVersion")? != "1.0" {
        return Err(incomplete("SignatureVersion 1.0"));
    }
    check_time(timestamp, now)?;
    let key = keys.find(key_id, call.parameter("SecurityToken"), now)?;

    let string_to_sign = string_to_sign(call.method.as_str(), &canonical(call));
    let expected = hmac_sha1(&hmac_key(&key.pair.secret), &string_to_sign);
    if expected.is_none() || STANDARD.decode(signature).ok() != expected {
        return Err(does_not_match(&string_to_sign));
    }
    Ok(VerifiedSignature { key, nonce })
}

/// All parameters but the signature itself.
pub(super) fn canonical(call: &ReceivedCall<'_>) -> String {
    let all = call.query.iter().chain(&call.form);
    canonical_query(all.filter(|(name, _)| name != "Signature"))
}

pub(super) fn string_to_sign(method: &str, canonical: &str) -> String {
    let mut out = String::with_capacity(16 + canonical.len() * 2);
    out.push_str(method);
    out.push_str("&%2F&");
    encode_into(canonical, &mut out);
    out
}

pub(super) fn hmac_key(secret: &str) -> String {
    format!("{secret}&")
}

fn incomplete(what: &str) -> Refusal {
    Refusal::new("IncompleteSignature").saying(format!(
        "The request signature does not conform to Aliyun standards: {what} is needed."
    ))
}
