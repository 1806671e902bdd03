//! MACs of records in Redis: a client that can write to Redis, and has no key, cannot make one.
//!
//! A MAC is HMAC-SHA256 under a key of `spool.mac_file`, over all that a record says: the account, the
//! message's id, and the words about it, with a digest of its body in them. It is the last member of
//! the words, so that sidecars of older versions read them as before. What is signed are the bytes
//! before it, as they lie in Redis: there is one way to read them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretSlice};
use sha2::{Digest, Sha256};

use crate::message::MessageId;

/// As long as the MAC: shorter keys are weaker than it.
const SHORTEST_KEY: usize = 32;
/// Two are enough for a rotation.
const MOST_KEYS: usize = 16;
const MOST_BYTES: usize = 16 * 1024;

/// Tells these MACs from others under the same key, and this layout from later ones.
const CONTEXT: &[u8] = b"tollgate spool record 1\0";
/// How the words end that have a MAC: this, the MAC in Base64, and [`END`].
const BEGIN: &[u8] = br#","mac":""#;
const END: &[u8] = br#""}"#;
const ENCODED: usize = 44;

/// Why the keys are not read. It repeats nothing that is in the file.
#[derive(Debug, thiserror::Error)]
pub enum MacFileError {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It has no line with a key.
    #[error("has no key")]
    Empty,
    /// It is no file of keys.
    #[error("has more than {MOST_BYTES} bytes or {MOST_KEYS} keys")]
    Large,
    /// This line is no key.
    #[error("line {0} is not Base64")]
    NotBase64(usize),
    /// The key in this line is too short.
    #[error("line {0} has a key of fewer than {SHORTEST_KEY} bytes")]
    Short(usize),
}

/// The keys of a file: the first signs, all verify. They are wiped when dropped, and never printed.
#[derive(Debug)]
pub struct MacKeys {
    keys: Vec<SecretSlice<u8>>,
}

/// What the MAC of a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MacCheck {
    /// The record is as one with a key has written it.
    Valid,
    /// There is none.
    Absent,
    /// None of the keys has made it for this record.
    Wrong,
}

impl MacKeys {
    /// Reads the file. Blocks.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn read(path: &Path) -> Result<Self, MacFileError> {
        // Asked before opening, since opening a named pipe would wait for its writer.
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::other("is not a file").into());
        }
        // As large as it can get: growing would leave copies behind that are not wiped.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MOST_BYTES + 64));
        let file = File::open(path)?;
        file.take(MOST_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        Self::parse(&bytes)
    }

    fn parse(file: &[u8]) -> Result<Self, MacFileError> {
        if file.len() > MOST_BYTES {
            return Err(MacFileError::Large);
        }
        let lines = file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let lines = (1..).zip(lines).filter(|(_, line)| !line.is_empty());
        let keys = lines.take(MOST_KEYS + 1).map(|(number, line)| {
            let mut key = Zeroizing::new(vec![0; line.len()]);
            let decoded = STANDARD.decode_slice(line, &mut key);
            let length = decoded.map_err(|_| MacFileError::NotBase64(number))?;
            if length < SHORTEST_KEY {
                return Err(MacFileError::Short(number));
            }
            Ok(SecretSlice::from(Box::<[u8]>::from(&key[..length])))
        });
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        match keys.len() {
            0 => Err(MacFileError::Empty),
            1..=MOST_KEYS => Ok(Self { keys }),
            _ => Err(MacFileError::Large),
        }
    }

    /// The words with their MAC: of a record of this message, in this account.
    pub(super) fn sign(&self, account: &str, id: MessageId, words: &[u8]) -> Vec<u8> {
        let signed = words.strip_suffix(b"}").unwrap_or(words);
        let mac = self.keys.first().and_then(|key| mac(key, account, id, signed));
        let mac = STANDARD.encode(mac.map(|mac| mac.finalize().into_bytes()).unwrap_or_default());
        [signed, BEGIN, mac.as_bytes(), END].concat()
    }

    /// What the MAC says that these words of a message may have.
    pub(super) fn verify(&self, account: &str, id: MessageId, words: &[u8]) -> MacCheck {
        let length = words.len().checked_sub(BEGIN.len() + ENCODED + END.len());
        let split = length.and_then(|length| words.split_at_checked(length));
        let split = split
            .and_then(|(signed, end)| Some((signed, end.strip_prefix(BEGIN)?.strip_suffix(END)?)));
        let Some((signed, encoded)) = split else { return MacCheck::Absent };
        let Ok(found) = STANDARD.decode(encoded) else { return MacCheck::Wrong };
        let is_its =
            |key| mac(key, account, id, signed).is_some_and(|mac| mac.verify_slice(&found).is_ok());
        if self.keys.iter().any(is_its) { MacCheck::Valid } else { MacCheck::Wrong }
    }

    /// Whether these are not the same keys in the same order.
    pub(super) fn differs(&self, other: &Self) -> bool {
        let mut pairs = self.keys.iter().zip(&other.keys);
        self.keys.len() != other.keys.len()
            || pairs.any(|(one, other)| one.expose_secret() != other.expose_secret())
    }
}

fn mac(key: &SecretSlice<u8>, account: &str, id: MessageId, signed: &[u8]) -> Option<Hmac<Sha256>> {
    // HMAC takes keys of any length: this is never `None`.
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose_secret()).ok()?;
    mac.update(CONTEXT);
    // No account has this byte in its name, and every id has sixteen bytes.
    mac.update(account.as_bytes());
    mac.update(b"\0");
    mac.update(&id.as_u128().to_be_bytes());
    mac.update(signed);
    Some(mac)
}

/// What the words about a message say of its body.
pub(super) fn digest(body: &[u8]) -> [u8; 32] {
    Sha256::digest(body).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(byte: u8, length: usize) -> String {
        STANDARD.encode(vec![byte; length])
    }

    fn keys(bytes: &[u8]) -> MacKeys {
        let lines: Vec<_> = bytes.iter().map(|byte| line(*byte, 32)).collect();
        MacKeys::parse(lines.join("\n").as_bytes()).unwrap()
    }

    const WORDS: &[u8] = br#"{"instance":"i","topic":"abc/d"}"#;

    #[test]
    fn a_mac_holds_for_its_record_and_no_other() {
        let (keys, id) = (keys(&[1]), MessageId::new());
        let signed = keys.sign("a", id, WORDS);
        assert_eq!(keys.verify("a", id, &signed), MacCheck::Valid);
        let parsed: serde_json::Value = serde_json::from_slice(&signed).unwrap();
        assert_eq!(parsed["topic"], "abc/d", "older sidecars read it");
        assert_eq!(keys.verify("b", id, &signed), MacCheck::Wrong, "of another account");
        assert_eq!(keys.verify("a", MessageId::new(), &signed), MacCheck::Wrong, "another's");
        assert_eq!(keys.verify("a", id, WORDS), MacCheck::Absent);
        for at in 0..signed.len() {
            let mut changed = signed.clone();
            changed[at] ^= 1;
            assert_ne!(keys.verify("a", id, &changed), MacCheck::Valid, "{at}");
        }
        for cut in 0..signed.len() {
            assert_ne!(keys.verify("a", id, &signed[..cut]), MacCheck::Valid, "{cut}");
        }
        // More words behind those that are signed, with the true MAC in them.
        let more = [&signed[..signed.len() - 1], br#","topic":"xyz","mac":""#, &[b'A'; 44], END];
        assert_eq!(keys.verify("a", id, &more.concat()), MacCheck::Wrong);
    }

    /// What another implementation makes of the same, such as Python's `hmac`.
    #[test]
    fn a_known_mac() {
        let id = MessageId::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        let signed = String::from_utf8(keys(&[7]).sign("a", id, WORDS)).unwrap();
        assert_eq!(signed, KNOWN);
    }

    const KNOWN: &str = concat!(
        r#"{"instance":"i","topic":"abc/d","mac":""#,
        r#"pHCJ5hbSIaCdIELKk6obhWKa3qn6CYgdafkIeo38QPc="}"#
    );

    #[test]
    fn keys_are_rotated() {
        let (old, both, new) = (keys(&[1]), keys(&[2, 1]), keys(&[2]));
        let id = MessageId::new();
        let by_old = old.sign("a", id, WORDS);
        assert_eq!(both.verify("a", id, &by_old), MacCheck::Valid);
        assert_eq!(new.verify("a", id, &by_old), MacCheck::Wrong);
        let by_both = both.sign("a", id, WORDS);
        assert_eq!(new.verify("a", id, &by_both), MacCheck::Valid, "the first signs");
        assert_eq!(old.verify("a", id, &by_both), MacCheck::Wrong);
        assert!(
            both.differs(&old) && both.differs(&keys(&[1, 2])) && !both.differs(&keys(&[2, 1]))
        );
    }

    #[test]
    fn a_file_that_is_no_file_of_keys() {
        let error = |text: &str| MacKeys::parse(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(error("\n \n"), "has no key");
        assert_eq!(error(&format!("{}\nhush!\n", line(1, 32))), "line 2 is not Base64");
        assert_eq!(error(&line(1, 31)), "line 1 has a key of fewer than 32 bytes");
        assert!(error(&format!("{}\n", line(1, 32)).repeat(17)).contains("16 keys"));
        assert!(error(&"A".repeat(20_000)).contains("16384 bytes"));
        let missing = MacKeys::read(Path::new("/nowhere/keys")).unwrap_err();
        assert!(missing.to_string().contains("No such file"), "{missing}");
        // Windows line ends, blank lines and no last newline.
        let text = format!("{}\r\n\n{}", line(1, 32), line(2, 64));
        assert_eq!(MacKeys::parse(text.as_bytes()).unwrap().keys.len(), 2);
    }

    #[test]
    fn no_key_is_printed() {
        let text = format!("{:?}", keys(&[0x41]));
        assert!(!text.contains("65") && !text.contains("QUFB") && !text.contains("AAA"), "{text}");
    }
}
