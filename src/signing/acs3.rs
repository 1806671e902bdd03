//! `ACS3-HMAC-SHA256`, version 3: the default of today's official SDKs.
//!
//! Parameters travel in the query, as the SDKs send them. A payload that makes the query longer
//! than an HTTP library can hold goes into a form body, which the signature's definition covers.
//! The provider does not publish whether it accepts that, nor the longest query it accepts.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::{Call, Credentials, FORM, Signed, Stamp, encode};

/// The longest query. The `http` crate holds a URI of at most 65,534 bytes.
pub const MAX_QUERY: usize = 65_500;

/// SHA-256 of nothing.
pub const EMPTY_HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Signs a call with its parameters in the query, or in a form body where they are too long.
pub fn sign(call: &Call, key: &Credentials, stamp: &Stamp) -> Signed {
    debug_assert!(call.params.is_sorted_by_key(|(name, _)| *name));
    let params = encode::pairs(call.params);
    let in_query = params.len() <= MAX_QUERY;
    let (query, body) = if in_query { (params, String::new()) } else { (String::new(), params) };
    let hash = if in_query { EMPTY_HASH.to_owned() } else { encode::hex(&Sha256::digest(&body)) };

    // What must be signed: host, content-type if there is one, every x-acs-*; sorted by name.
    // Fewer headers survive more proxies.
    let mut headers = Vec::with_capacity(9);
    if !in_query {
        headers.push(("content-type", FORM.to_owned()));
    }
    headers.extend([
        ("host", call.authority.to_owned()),
        ("x-acs-action", call.action.to_owned()),
        ("x-acs-content-sha256", hash),
        ("x-acs-date", stamp.time.clone()),
    ]);
    if let Some(token) = key.token {
        headers.push(("x-acs-security-token", token.to_owned()));
    }
    headers.extend([
        ("x-acs-signature-nonce", stamp.nonce.clone()),
        ("x-acs-version", call.version.to_owned()),
    ]);
    // "signature-nonce" sorts behind "security-token".
    debug_assert!(headers.is_sorted_by_key(|(name, _)| *name));

    let pairs: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let names = signed_headers(&pairs);
    let request = canonical_request("POST", &query, &pairs);
    let signature = signature(key.secret, &string_to_sign(&request));
    let authorization = authorization(key.id, &names, &signature);
    // The HTTP client sends Host itself, from the same authority.
    headers.retain(|(name, _)| *name != "host");
    headers.push(("authorization", authorization));
    Signed { query, headers, body }
}

/// The names of the signed headers, joined by `;`.
pub fn signed_headers(headers: &[(&str, &str)]) -> String {
    headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";")
}

/// Each signed header on a line of its own.
pub fn canonical_headers(headers: &[(&str, &str)]) -> String {
    headers.iter().flat_map(|(name, value)| [name, ":", value.trim(), "\n"]).collect()
}

/// Method, path, query, headers, their names and the body's hash, a line each. Headers are sorted
/// by name and contain `x-acs-content-sha256`.
pub fn canonical_request(method: &str, query: &str, headers: &[(&str, &str)]) -> String {
    let hash = headers.iter().find(|(name, _)| *name == "x-acs-content-sha256");
    let hash = hash.map_or(EMPTY_HASH, |(_, value)| *value);
    let names = signed_headers(headers);
    let headers = canonical_headers(headers);
    [method, "\n/\n", query, "\n", &headers, "\n", &names, "\n", hash].concat()
}

/// The algorithm's name and the hash of the canonical request.
pub fn string_to_sign(canonical_request: &str) -> String {
    format!("ACS3-HMAC-SHA256\n{}", encode::hex(&Sha256::digest(canonical_request)))
}

/// Hexadecimal HMAC-SHA256 under the secret.
pub fn signature(secret: &str, string_to_sign: &str) -> String {
    // HMAC takes keys of any length, so this is never an error.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else {
        return String::new();
    };
    mac.update(string_to_sign.as_bytes());
    encode::hex(&mac.finalize().into_bytes())
}

/// The `Authorization` header.
pub fn authorization(id: &str, signed_headers: &str, signature: &str) -> String {
    format!("ACS3-HMAC-SHA256 Credential={id},SignedHeaders={signed_headers},Signature={signature}")
}
