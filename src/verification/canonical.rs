//! What both signatures share: the encoding, the sorted query, hashes as text.

use std::borrow::Cow;

use hmac::digest::{InvalidLength, KeyInit};
use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Appends `text` with everything but RFC 3986's unreserved bytes as `%XX`.
pub(super) fn encode_into(text: &str, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            _ => {
                out.push('%');
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
}

/// Pairs sorted by name in byte order, encoded, joined.
pub(super) fn canonical_query<'p>(
    pairs: impl Iterator<Item = &'p (Cow<'p, str>, Cow<'p, str>)>,
) -> String {
    let mut sorted: Vec<_> = pairs.collect();
    sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut out = String::with_capacity(512);
    for (name, value) in sorted {
        if !out.is_empty() {
            out.push('&');
        }
        encode_into(name, &mut out);
        out.push('=');
        encode_into(value, &mut out);
    }
    out
}

/// Compares in constant time.
pub(super) fn is_hmac_sha1(key: &str, text: &str, signature: &[u8]) -> bool {
    is_mac(Hmac::<Sha1>::new_from_slice(key.as_bytes()), text, signature)
}

/// Compares in constant time.
pub(super) fn is_hmac_sha256(key: &str, text: &str, signature: &[u8]) -> bool {
    is_mac(Hmac::<Sha256>::new_from_slice(key.as_bytes()), text, signature)
}

/// HMAC takes keys of any length, so there is always a `mac`.
fn is_mac<M: Mac>(mac: Result<M, InvalidLength>, text: &str, signature: &[u8]) -> bool {
    mac.is_ok_and(|mut mac| {
        mac.update(text.as_bytes());
        mac.verify_slice(signature).is_ok()
    })
}

pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        out.push(char::from(HEX[usize::from(byte >> 4)]));
        out.push(char::from(HEX[usize::from(byte & 15)]));
        out
    })
}

/// The bytes of lower-case hexadecimal text.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_encoding() {
        let mut out = String::new();
        encode_into("aZ09-_.~ *+/=!'()@é\u{0}", &mut out);
        assert_eq!(out, "aZ09-_.~%20%2A%2B%2F%3D%21%27%28%29%40%C3%A9%00");
    }

    #[test]
    fn hexadecimal_text() {
        assert_eq!(unhex("00ff1a").unwrap(), [0, 255, 26]);
        assert_eq!(hex(&unhex("0123456789abcdef").unwrap()), "0123456789abcdef");
        for wrong in ["0", "0G", "FF", "é"] {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn upper_case_sorts_first() {
        let pair = |n: &'static str| (Cow::Borrowed(n), Cow::Borrowed("1"));
        let pairs = [pair("a"), pair("B"), pair("A")];
        assert_eq!(canonical_query(pairs.iter()), "A=1&B=1&a=1");
    }
}
