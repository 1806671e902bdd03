//! The RPC signature, version 1.0: HMAC-SHA1 over every parameter.
//!
//! Parameters travel in a form body, where the size of a payload is nobody's concern; the official
//! `pop-core` SDK does the same. The SDKs call this version `v2`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::zeroize::Zeroizing;
use sha1::Sha1;

use super::{ACTION, Call, Credentials, FORM, Signed, Stamp, VERSION, encode};

/// Signs a call with its parameters in a form body.
pub fn sign(call: &Call, key: &Credentials, stamp: &Stamp) -> Signed {
    // In the order of their names, as bytes: signed and sent alike.
    let mut params = vec![
        ("AccessKeyId", key.id),
        ("Action", ACTION),
        ("Format", "JSON"),
        ("InstanceId", call.instance),
        ("MqttTopic", call.topic),
        ("Payload", call.payload),
    ];
    params.extend(key.token.map(|token| ("SecurityToken", token)));
    params.extend([
        ("SignatureMethod", "HMAC-SHA1"),
        ("SignatureNonce", &stamp.nonce),
        ("SignatureVersion", "1.0"),
        ("Timestamp", &stamp.time),
        ("Version", VERSION),
    ]);
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
