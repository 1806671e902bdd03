//! The provider's operation that publishes one message.

use super::API_VERSION;
use crate::signing::Call;

/// The operation's name.
const ACTION: &str = "SendMessage";

/// The parameters of one `SendMessage`.
pub struct SendMessage<'a> {
    params: [(&'static str, &'a str); 3],
}

impl<'a> SendMessage<'a> {
    /// A message to this topic of an instance; the payload in the form in which it is sent.
    pub fn new(instance: &'a str, topic: &'a str, payload: &'a str) -> Self {
        Self { params: [("InstanceId", instance), ("MqttTopic", topic), ("Payload", payload)] }
    }

    /// The call to sign, for the `Host` header as it will be sent.
    pub fn call(&'a self, authority: &'a str) -> Call<'a> {
        Call { authority, action: ACTION, version: API_VERSION, params: &self.params }
    }
}
