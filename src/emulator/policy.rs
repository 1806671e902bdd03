//! Session policies: what a temporary key may do at most.

use serde_json::Value;

/// A policy, as it was given.
pub(super) struct Policy {
    json: Value,
    statements: Vec<Statement>,
}

struct Statement {
    effect: Effect,
    actions: Vec<String>,
    resources: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Allow,
    Deny,
}

impl Policy {
    /// `None`: it is none, or one with conditions, which are not emulated.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::of(serde_json::from_str(text).ok()?)
    }

    pub(super) fn of(json: Value) -> Option<Self> {
        if json.get("Version")?.as_str()? != "1" {
            return None;
        }
        let statements = match json.get("Statement")? {
            Value::Array(list) => list.iter().map(Statement::of).collect::<Option<_>>()?,
            one @ Value::Object(_) => vec![Statement::of(one)?],
            _ => return None,
        };
        Some(Self { json, statements })
    }

    pub(super) fn as_json(&self) -> Value {
        self.json.clone()
    }

    /// Whether a statement allows it and none denies it.
    pub(super) fn allows(&self, action: &str, resource: &str) -> bool {
        let says = |effect| {
            let mut those = self.statements.iter().filter(|one| one.effect == effect);
            those.any(|one| one.applies(action, resource))
        };
        says(Effect::Allow) && !says(Effect::Deny)
    }
}

impl Statement {
    fn of(json: &Value) -> Option<Self> {
        if json.get("Condition").is_some() {
            return None;
        }
        let effect = match json.get("Effect")?.as_str()? {
            "Allow" => Effect::Allow,
            "Deny" => Effect::Deny,
            _ => return None,
        };
        let list = |name: &str| match json.get(name)? {
            Value::String(one) => Some(vec![one.clone()]),
            Value::Array(all) => all.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        Some(Self { effect, actions: list("Action")?, resources: list("Resource")? })
    }

    fn applies(&self, action: &str, resource: &str) -> bool {
        let fits = |patterns: &[String], text: &str| {
            patterns.iter().any(|pattern| matches(pattern.as_bytes(), text.as_bytes()))
        };
        fits(&self.actions, action) && fits(&self.resources, resource)
    }
}

/// `*` stands for any characters, `?` for one. Takes no longer than the product of both lengths.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // The last star, and where its characters end so far.
    let mut star: Option<(usize, usize)> = None;
    while from < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(sign) if *sign == b'?' || *sign == text[from] => {
                at += 1;
                from += 1;
            }
            _ => {
                let Some((after, end)) = star else { return false };
                star = Some((after, end + 1));
                (at, from) = (after + 1, end + 1);
            }
        }
    }
    pattern[at..].iter().all(|sign| *sign == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(statements: &str) -> Policy {
        Policy::parse(&format!(r#"{{"Version":"1","Statement":[{statements}]}}"#)).unwrap()
    }

    #[test]
    fn what_is_allowed_and_not_denied() {
        const TOPIC: &str = "acs:mq:cn-x:1:topic/post-1/Alarm";
        for (statements, allowed) in [
            (r#"{"Effect":"Allow","Action":"mq:SendMessage","Resource":"*"}"#, true),
            (
                r#"{"Effect":"Allow","Action":["mq:Pub","mq:Send*"],"Resource":["acs:mq:*:*:topic/post-1/*"]}"#,
                true,
            ),
            (
                r#"{"Effect":"Allow","Action":"mq:*","Resource":"acs:mq:*:*:topic/post-?/Alarm"}"#,
                true,
            ),
            (r#"{"Effect":"Allow","Action":"mq:*","Resource":"acs:mq:*:*:topic/post-2/*"}"#, false),
            (r#"{"Effect":"Allow","Action":"sts:*","Resource":"*"}"#, false),
            ("", false),
            (
                r#"{"Effect":"Allow","Action":"*","Resource":"*"},{"Effect":"Deny","Action":"mq:*","Resource":"*/Alarm"}"#,
                false,
            ),
        ] {
            assert_eq!(policy(statements).allows("mq:SendMessage", TOPIC), allowed, "{statements}");
        }
    }

    #[test]
    fn what_is_no_policy() {
        for text in [
            "",
            "[]",
            r#"{"Version":"2","Statement":[]}"#,
            r#"{"Version":"1"}"#,
            r#"{"Version":"1","Statement":[{"Effect":"Allow","Action":"*"}]}"#,
            r#"{"Version":"1","Statement":[{"Effect":"Allow","Action":"*","Resource":"*","Condition":{}}]}"#,
        ] {
            assert!(Policy::parse(text).is_none(), "{text}");
        }
    }
}
