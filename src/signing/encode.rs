//! Percent-encoding as both signatures want it: RFC 3986, upper-case hex, a space is `%20`.

use std::fmt::Write;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Everything but `A-Z a-z 0-9 - _ . ~`.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Appends `text`, encoded.
pub fn append(to: &mut String, text: &str) {
    to.extend(utf8_percent_encode(text, RESERVED));
}

/// `name=value` pairs, encoded and joined by `&`, in the order given. Signatures want them sorted
/// by name.
pub fn pairs(params: &[(&str, &str)]) -> String {
    let room = params.iter().map(|(name, value)| name.len() + value.len() * 9 / 8 + 8).sum();
    let mut to = String::with_capacity(room);
    for (name, value) in params {
        if !to.is_empty() {
            to.push('&');
        }
        append(&mut to, name);
        to.push('=');
        append(&mut to, value);
    }
    to
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut to, byte| {
        // Writing to a String cannot fail.
        let _ok = write!(to, "{byte:02x}");
        to
    })
}
