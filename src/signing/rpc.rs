//! The RPC signature, version 1.0: HMAC-SHA1 over every parameter.
//!
//! Parameters travel in a form body, which has no limit of its own on a payload's size; the official
//! `pop-core` SDK does the same. The SDKs call this version `v2`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::zeroize::Zeroizing;
use sha1::Sha1;

use super::{Call, Credentials, FORM, Signed, Stamp, encode};

/// Signs a call with its parameters in a form body.
pub fn sign(call: &Call, key: &Credentials, stamp: &Stamp) -> Signed {
    let mut params = Vec::with_capacity(9 + call.params.len());
    params.extend([
        ("AccessKeyId", key.id),
        ("Action", call.action),
        ("Format", "JSON"),
        ("SignatureMethod", "HMAC-SHA1"),
        ("SignatureNonce", &stamp.nonce),
        ("SignatureVersion", "1.0"),
        ("Timestamp", &stamp.time),
        ("Version", call.version),
    ]);
    params.extend(key.token.map(|token| ("SecurityToken", token)));
    params.extend(call.params);
    // By name, as bytes: they are signed in the order in which they are sent.
    params.sort_unstable_by_key(|(name, _)| *name);
    let mut body = encode::pairs(&params);
    let signature = signature(key.secret, &string_to_sign("POST", &body));
    body.push_str("&Signature=");
    encode::append(&mut body, &signature);
    Signed { query: String::new(), headers: vec![("content-type", FORM.to_owned())], body }
}

/// The method, the path and the canonical parameters, which are thus encoded twice.
pub fn string_to_sign(method: &str, canonical: &str) -> String {
    let mut to = String::with_capacity(method.len() + 5 + canonical.len() * 5 / 4);
    to.push_str(method);
    to.push_str("&%2F&");
    encode::append(&mut to, canonical);
    to
}

/// Base64 of the HMAC-SHA1 under the secret and `&`.
pub fn signature(secret: &str, string_to_sign: &str) -> String {
    let key = Zeroizing::new(format!("{secret}&"));
    // HMAC takes keys of any length, so this is never an error.
    let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(key.as_bytes()) else { return String::new() };
    mac.update(string_to_sign.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}
