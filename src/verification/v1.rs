//! RPC 1.0: HMAC-SHA1 over all parameters, wherever they came.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};

use super::call::ReceivedCall;
use super::canonical::{canonical_query, encode_into, is_hmac_sha1};
use super::refusal::Refusal;
use super::{Claimed, check_time, does_not_match};

/// What the parameters say of the signature.
pub(super) struct SignedParameters<'a> {
    pub(super) claimed: Claimed<'a>,
    signature: &'a str,
}

impl<'a> SignedParameters<'a> {
    pub(super) fn read(call: &'a ReceivedCall<'_>, now: Timestamp) -> Result<Self, Refusal> {
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
        let time = check_time(timestamp, now)?;
        let token = call.parameter("SecurityToken");
        Ok(Self { claimed: Claimed { key_id, token, nonce, time }, signature })
    }

    pub(super) fn verify(&self, call: &ReceivedCall<'_>, secret: &str) -> Result<(), Refusal> {
        let string_to_sign = string_to_sign(call.method.as_str(), &canonical(call));
        let signature = STANDARD.decode(self.signature).unwrap_or_default();
        if is_hmac_sha1(hmac_key(secret).expose_secret(), &string_to_sign, &signature) {
            return Ok(());
        }
        Err(does_not_match(&string_to_sign))
    }
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

/// Wiped when dropped.
pub(super) fn hmac_key(secret: &str) -> SecretString {
    let mut key = String::with_capacity(secret.len() + 1);
    key.push_str(secret);
    key.push('&');
    key.into()
}

pub(super) fn incomplete(what: &str) -> Refusal {
    Refusal::new("IncompleteSignature").saying(format!(
        "The request signature does not conform to Aliyun standards: {what} is needed."
    ))
}
