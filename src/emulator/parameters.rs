//! What `SendMessage` demands of its three parameters.

use crate::verification::{ReceivedCall, Refusal};

const MOST_TOPIC: usize = 64;
/// 64 KB, taken to mean the characters as sent.
const MOST_PAYLOAD: usize = 65_536;

/// A message as the call asks for it.
pub(super) struct Request<'a> {
    pub(super) instance: &'a str,
    pub(super) topic: &'a str,
    pub(super) payload: &'a str,
}

impl<'a> Request<'a> {
    pub(super) fn read(call: &'a ReceivedCall<'_>) -> Result<Self, Refusal> {
        let mandatory = |name| call.parameter(name).ok_or_else(|| Refusal::missing(name));
        let request = Self {
            instance: mandatory("InstanceId")?,
            topic: mandatory("MqttTopic")?,
            // MQTT has empty messages; whether the provider takes one is not published.
            payload: call.possibly_empty("Payload").ok_or_else(|| Refusal::missing("Payload"))?,
        };
        match reason_against(request.topic) {
            None => Ok(request),
            Some(reason) => Err(Refusal::new("ParameterCheckFailed").saying(reason)),
        }
    }

    /// Too large for a message. The provider then answers 200 with an empty `MsgId`.
    pub(super) fn is_oversize(&self) -> bool {
        self.payload.len() > MOST_PAYLOAD
    }
}

/// 3 to 64 characters in all, each level of letters, digits, `-` and `_`; and `parent/p2p/client`
/// with a client id of its own bound.
fn reason_against(topic: &str) -> Option<&'static str> {
    let mut levels = topic.split('/');
    let parent = levels.next().unwrap_or_default();
    if parent.len() < 3 {
        return Some("MqttTopic: the parent topic has at least 3 characters.");
    }
    if let Some((parent, client)) = topic.split_once("/p2p/") {
        let fine = is_level(parent) && parent.len() <= MOST_TOPIC && is_client(client);
        let reason = "MqttTopic: parent/p2p/GroupID@@@DeviceID, the client id at most 64.";
        return (!fine).then_some(reason);
    }
    if topic.len() > MOST_TOPIC {
        return Some("MqttTopic: at most 64 characters.");
    }
    let fine = is_level(parent) && levels.all(is_level);
    (!fine).then_some("MqttTopic: levels are letters, digits, '-' and '_', none empty.")
}

fn is_level(level: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    !level.is_empty() && level.bytes().all(allowed)
}

fn is_client(client: &str) -> bool {
    let halves = client.split_once("@@@");
    let fine = |half: &str| !half.is_empty() && !half.contains(['/', '+', '#', '@']);
    client.len() <= MOST_TOPIC && halves.is_some_and(|(group, device)| fine(group) && fine(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics() {
        let long = "a".repeat(60);
        for fine in ["abc", "TopicA/sub-1/x_y", "TopicA/p2p/GID_test@@@DEVICE_001"] {
            assert_eq!(reason_against(fine), None, "{fine}");
        }
        assert_eq!(reason_against(&format!("{long}/123")), None);
        assert_eq!(reason_against(&format!("{long}/p2p/G@@@{long}")), None, "p2p may be longer");
        for wrong in [
            "",
            "ab",
            "/abc",
            "abc/",
            "abc//d",
            "abc/+",
            "abc/#",
            "ab c",
            "$SYS",
            "abc/é",
            "abc/p2p/",
            "abc/p2p/G",
            "abc/p2p/@@@D",
            "abc/p2p/G@@@D@@@E",
            "abc/p2p/G@@@D/e",
        ] {
            assert!(reason_against(wrong).is_some(), "{wrong}");
        }
        assert!(reason_against(&format!("{long}/1234")).is_some());
        assert!(reason_against(&format!("abc/p2p/GGGG@@@{long}")).is_some());
    }
}
