//! The keys that may sign, and the tokens that temporary ones need.

use std::collections::HashMap;

use super::super::options::KeyPair;
use super::super::refusal::Refusal;

/// Keys by id.
pub(in super::super) struct KeyRing(HashMap<String, KeyPair>);

impl KeyRing {
    pub(in super::super) fn new(keys: Vec<KeyPair>) -> Self {
        Self(keys.into_iter().map(|key| (key.id.clone(), key)).collect())
    }

    /// The key of that id, if the token that came is the one that must come.
    pub(super) fn find(&self, id: &str, token: Option<&str>) -> Result<&KeyPair, Refusal> {
        let key = self.0.get(id).ok_or_else(|| Refusal::new("InvalidAccessKeyId.NotFound"))?;
        match (key.token.as_deref(), token) {
            (None, None) => Ok(key),
            (Some(_), None) => Err(Refusal::new("MissingSecurityToken")),
            (Some(expected), Some(token)) if expected == token => Ok(key),
            (_, Some(token)) if self.anybody_has(token) => {
                Err(Refusal::new("InvalidSecurityToken.MismatchWithAccessKey"))
            }
            (_, Some(_)) => Err(Refusal::new("InvalidSecurityToken.Malformed")),
        }
    }

    fn anybody_has(&self, token: &str) -> bool {
        self.0.values().any(|key| key.token.as_deref() == Some(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_belongs_to_its_key() {
        let keys = KeyRing::new(vec![
            KeyPair::new("lasting", "s"),
            KeyPair::with_token("one", "s", "token-1"),
            KeyPair::with_token("two", "s", "token-2"),
        ]);
        let code = |id, token| keys.find(id, token).err().map(|refusal| refusal.code);
        assert_eq!(code("lasting", None), None);
        assert_eq!(code("one", Some("token-1")), None);
        assert_eq!(code("nobody", None).unwrap(), "InvalidAccessKeyId.NotFound");
        assert_eq!(code("one", None).unwrap(), "MissingSecurityToken");
        assert_eq!(code("one", Some("nonsense")).unwrap(), "InvalidSecurityToken.Malformed");
        for id in ["one", "lasting"] {
            let mismatch = code(id, Some("token-2")).unwrap();
            assert_eq!(mismatch, "InvalidSecurityToken.MismatchWithAccessKey");
        }
    }
}
