//! The key from the environment. A process cannot see its environment change: what is missing at the start
//! stays so.

use std::ffi::OsString;

use secrecy::SecretString;

use super::error::{Flaw, KeyError};
use super::key::Key;
use super::source::{Pace, Source};

const ID: &str = "ALIBABA_CLOUD_ACCESS_KEY_ID";
const SECRET: &str = "ALIBABA_CLOUD_ACCESS_KEY_SECRET";
const TOKEN: &str = "ALIBABA_CLOUD_SECURITY_TOKEN";

/// The variables of this process.
pub struct EnvironmentKey;

impl Source for EnvironmentKey {
    fn as_str(&self) -> &'static str {
        "env"
    }

    fn place(&self) -> String {
        "the environment".to_owned()
    }

    fn pace(&self) -> Pace {
        Pace::BeforeExpiry
    }

    async fn load(&mut self) -> Result<Key, KeyError> {
        read(|name| std::env::var_os(name))
    }
}

/// Reads the key by `lookup`, which is the process environment's outside tests.
fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Key, KeyError> {
    // Manifests often set a variable to nothing instead of leaving it away.
    let text = |name, part| match lookup(name) {
        Some(value) if !value.is_empty() => value
            .into_string()
            .map(Some)
            .map_err(|_| KeyError::Invalid { part, flaw: Flaw::NotText }),
        _ => Ok(None),
    };
    let (id, secret) = match (text(ID, "access key id")?, text(SECRET, "access key secret")?) {
        (None, None) => return Err(KeyError::Absent(format!("{ID} is not set"))),
        (None, Some(_)) => return Err(KeyError::Missing(ID)),
        (Some(_), None) => return Err(KeyError::Missing(SECRET)),
        (Some(id), Some(secret)) => (id, secret),
    };
    let token = text(TOKEN, "security token")?;
    Key::new(id, SecretString::from(secret), token.map(SecretString::from), None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use secrecy::ExposeSecret;

    use super::*;

    fn read_from(variables: &[(&str, &[u8])]) -> Result<Key, KeyError> {
        read(|name| {
            let found = variables.iter().find(|(there, _)| *there == name)?;
            Some(OsString::from_vec(found.1.to_vec()))
        })
    }

    #[test]
    fn a_key_with_and_without_a_token() {
        let key = read_from(&[(ID, b"LTAIenv"), (SECRET, b"envSecret")]).unwrap();
        assert_eq!((key.id(), key.secret().expose_secret()), ("LTAIenv", "envSecret"));
        assert!(key.token().is_none());
        assert_eq!(key.expires(), None);

        let key = read_from(&[(ID, b"STS.x"), (SECRET, b"envSecret"), (TOKEN, b"tok")]).unwrap();
        assert_eq!(key.token().unwrap().expose_secret(), "tok");

        let key = read_from(&[(ID, b"LTAIenv"), (SECRET, b"envSecret"), (TOKEN, b"")]).unwrap();
        assert!(key.token().is_none(), "an empty variable counts as unset");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let id = (ID, b"LTAIenv".as_slice());
        let secret = (SECRET, b"hush".as_slice());
        for (variables, expected) in [
            (vec![], KeyError::Absent(format!("{ID} is not set"))),
            (vec![secret], KeyError::Missing(ID)),
            (vec![(ID, b"".as_slice()), secret], KeyError::Missing(ID)),
            (vec![id], KeyError::Missing(SECRET)),
            (vec![id, (SECRET, b"")], KeyError::Missing(SECRET)),
            (
                vec![id, (SECRET, b"hush hush")],
                KeyError::Invalid { part: "access key secret", flaw: Flaw::Character },
            ),
            (
                vec![id, (SECRET, b"hush\xff")],
                KeyError::Invalid { part: "access key secret", flaw: Flaw::NotText },
            ),
            (
                vec![id, secret, (TOKEN, b"hush\xff")],
                KeyError::Invalid { part: "security token", flaw: Flaw::NotText },
            ),
        ] {
            let error = read_from(&variables).unwrap_err();
            assert_eq!(error, expected);
            assert!(!format!("{error} {error:?}").contains("hush"));
        }
    }
}
