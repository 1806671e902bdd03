//! What a caller's keys may do at most.

use serde_json::json;

use super::keyring::KeyringCaller;

impl KeyringCaller {
    /// The session policy of its keys: publishing, to its instances and topics only, or what it has of its
    /// own.
    pub fn session_policy(&self) -> String {
        if let Some(policy) = &self.policy {
            return policy.clone();
        }
        let any = || vec!["*".to_owned()];
        let or_any = |names: &[String]| if names.is_empty() { any() } else { names.to_vec() };
        let resources = if self.instances.is_empty() && self.topics.is_empty() {
            any()
        } else {
            let topics = or_any(&self.topics);
            let of = |instance: &String| {
                let resource = |topic: &String| format!("acs:mq:*:*:topic/{instance}/{topic}");
                topics.iter().map(resource).collect::<Vec<_>>()
            };
            or_any(&self.instances).iter().flat_map(of).collect()
        };
        let statement =
            json!({ "Effect": "Allow", "Action": ["mq:SendMessage"], "Resource": resources });
        json!({ "Version": "1", "Statement": [statement] }).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::super::keyring::CallerProof;
    use super::*;

    #[test]
    fn only_publishing_and_only_to_what_the_caller_has() {
        for (instances, topics, resources) in [
            (vec![], vec![], r#"["*"]"#),
            (vec!["i"], vec![], r#"["acs:mq:*:*:topic/i/*"]"#),
            (vec![], vec!["A"], r#"["acs:mq:*:*:topic/*/A"]"#),
            (vec!["i", "j"], vec!["A"], r#"["acs:mq:*:*:topic/i/A","acs:mq:*:*:topic/j/A"]"#),
        ] {
            let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
            let caller = KeyringCaller {
                name: "shop".to_owned(),
                proof: CallerProof::TokenFile("t".into()),
                instances: owned(instances),
                topics: owned(topics),
                role_arn: None,
                policy: None,
            };
            let policy = caller.session_policy();
            let expected = format!(
                r#"{{"Statement":[{{"Action":["mq:SendMessage"],"Effect":"Allow","Resource":{resources}}}],"Version":"1"}}"#
            );
            let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
            assert_eq!(read(&policy), read(&expected));
            let own = KeyringCaller { policy: Some("own".to_owned()), ..caller };
            assert_eq!(own.session_policy(), "own");
        }
    }
}
