//! One access key: valid once made, wiped when dropped.

use std::fmt;

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};

use super::error::{Flaw, KeyError};

// The provider publishes no lengths. Ids and secrets in use have about 30 characters, tokens about
// a thousand; these leave room and still tell a key from a wrong file.
const MAX_ID: usize = 128;
const MAX_SECRET: usize = 256;
const MAX_TOKEN: usize = 8_192;

/// How many characters of an access key id may be shown at each of its ends.
const SHOWN: usize = 4;

/// One access key.
pub struct Key {
    id: String,
    secret: SecretString,
    token: Option<SecretString>,
    expires: Option<Timestamp>,
}

impl Key {
    /// Checks the parts; a newline at an end, as editors and `echo` leave it, is cut off.
    pub fn new(
        id: impl Into<String>,
        secret: SecretString,
        token: Option<SecretString>,
        expires: Option<Timestamp>,
    ) -> Result<Self, KeyError> {
        let id = id.into();
        Ok(Self {
            id: check("access key id", &id, MAX_ID)?.to_owned(),
            secret: check_secret("access key secret", secret, MAX_SECRET)?,
            token: token
                .map(|token| check_secret("security token", token, MAX_TOKEN))
                .transpose()?,
            expires,
        })
    }

    /// The access key id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What signs.
    pub fn secret(&self) -> &SecretString {
        &self.secret
    }

    /// What a short-lived key carries along.
    pub fn token(&self) -> Option<&SecretString> {
        self.token.as_ref()
    }

    /// When it stops working.
    pub fn expires(&self) -> Option<Timestamp> {
        self.expires
    }

    /// Whether it has ended by this time.
    pub(super) fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }

    /// The id as logs and pages may show it: both ends of a long id, so that two keys of an account can be
    /// told apart; the last characters of a shorter one; none of a short one. At least half stays hidden.
    pub(crate) fn masked(&self) -> String {
        let id = &*self.id;
        // Valid ids are ASCII.
        let first = id.get(..SHOWN).filter(|_| id.len() >= 4 * SHOWN).unwrap_or_default();
        let last = id.len().checked_sub(SHOWN).filter(|_| id.len() >= 2 * SHOWN);
        let last = last.and_then(|from| id.get(from..)).unwrap_or_default();
        format!("{first}****{last}")
    }

    /// Whether the provider would see the same key. When it expires is not part of that.
    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.id == other.id
            && self.secret.expose_secret() == other.secret.expose_secret()
            && self.token().map(ExposeSecret::expose_secret)
                == other.token().map(ExposeSecret::expose_secret)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.masked())
    }
}

fn check_secret(
    part: &'static str,
    value: SecretString,
    max: usize,
) -> Result<SecretString, KeyError> {
    let checked = check(part, value.expose_secret(), max)?;
    if checked.len() == value.expose_secret().len() {
        return Ok(value);
    }
    Ok(SecretString::from(Box::<str>::from(checked)))
}

fn check<'a>(part: &'static str, value: &'a str, max: usize) -> Result<&'a str, KeyError> {
    let value = value.trim_end_matches(['\r', '\n']);
    let flaw = if value.is_empty() {
        Flaw::Empty
    } else if value.len() > max {
        Flaw::Long(max)
    } else if !value.bytes().all(|byte| byte.is_ascii_graphic()) {
        Flaw::Character
    } else {
        return Ok(value);
    };
    Err(KeyError::Invalid { part, flaw })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str, secret: &str, token: Option<&str>) -> Result<Key, KeyError> {
        Key::new(id, SecretString::from(secret), token.map(SecretString::from), None)
    }

    #[test]
    fn a_trailing_newline_is_not_part_of_the_key() {
        let key = key("LTAI5tExample\n", "s3cr3tPart\r\n", Some("t0k3nPart\n")).unwrap();
        assert_eq!(key.id(), "LTAI5tExample");
        assert_eq!(key.secret().expose_secret(), "s3cr3tPart");
        assert_eq!(key.token().unwrap().expose_secret(), "t0k3nPart");
    }

    #[test]
    fn parts_that_cannot_be_are_refused_without_being_repeated() {
        let long = |n| "hushhush".repeat(n);
        for (id, secret, token, part, flaw) in [
            ("", "hush", None, "access key id", Flaw::Empty),
            ("\n", "hush", None, "access key id", Flaw::Empty),
            ("hush hush", "hush", None, "access key id", Flaw::Character),
            (&long(20), "hush", None, "access key id", Flaw::Long(MAX_ID)),
            ("id", "", None, "access key secret", Flaw::Empty),
            ("id", "hush\0", None, "access key secret", Flaw::Character),
            ("id", "hush\nhush", None, "access key secret", Flaw::Character),
            ("id", " hush", None, "access key secret", Flaw::Character),
            ("id", "hushé", None, "access key secret", Flaw::Character),
            ("id", &long(40), None, "access key secret", Flaw::Long(MAX_SECRET)),
            ("id", "hush", Some(""), "security token", Flaw::Empty),
            ("id", "hush", Some("hush\thush"), "security token", Flaw::Character),
            ("id", "hush", Some(&long(2_000)), "security token", Flaw::Long(MAX_TOKEN)),
        ] {
            let error = key(id, secret, token).unwrap_err();
            assert_eq!(error, KeyError::Invalid { part, flaw }, "{id:.9?}");
            assert!(!format!("{error} {error:?}").contains("hush"));
        }
    }

    #[test]
    fn debug_shows_the_masked_id_and_nothing_else() {
        for (id, masked) in [
            ("LTAI5tExampleOfAnId2abcd", "LTAI****abcd"),
            ("LTAI5tExample123", "LTAI****e123"),
            ("LTAI5tExample12", "****le12"),
            ("LTAI0001", "****0001"),
            ("LTAI001", "****"),
            ("abcd", "****"),
            ("a", "****"),
        ] {
            let shown = format!("{:#?}", key(id, "s3cr3t", Some("t0k3n")).unwrap());
            assert_eq!(shown, format!("Key({masked})"));
        }
    }

    #[test]
    fn any_part_makes_another_key_but_its_expiry_does_not() {
        let one = key("id", "secret", Some("token")).unwrap();
        let later = Key {
            expires: Some(Timestamp::UNIX_EPOCH),
            ..key("id", "secret", Some("token")).unwrap()
        };
        assert!(one.same_as(&later));
        assert!(!one.same_as(&key("id2", "secret", Some("token")).unwrap()));
        assert!(!one.same_as(&key("id", "secret2", Some("token")).unwrap()));
        assert!(!one.same_as(&key("id", "secret", Some("token2")).unwrap()));
        assert!(!one.same_as(&key("id", "secret", None).unwrap()));
    }
}
