//! The span of a message's stay in the spool, which is made at its end.

use super::kept::KeptMessages;
use super::spans;
use crate::message::{MessageId, Trace};
use crate::spool::{Brief, State};
use crate::upstream::Upstream;

/// How a stay has ended, where the spool does not say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StayEnd {
    /// As the spool says.
    Recorded,
    /// The provider has refused the message, and its caller, who waited, was told so: nothing is left of it.
    Refused,
    /// Its bytes are damaged.
    Damaged,
}

impl<U: Upstream> KeptMessages<U> {
    /// The stay of this message has ended, which was to be delivered until now.
    pub(super) fn stay_ends(&self, id: MessageId) {
        if self.dispatcher.traces.is_on()
            && let Some(brief) = self.spool.find(id)
        {
            self.stay_ends_as(&brief, StayEnd::Recorded);
        }
    }

    /// The same of what is known of it.
    pub(super) fn stay_ends_as(&self, brief: &Brief, end: StayEnd) {
        let traces = &self.dispatcher.traces;
        let origin = brief.trace.filter(|_| traces.is_on()).and_then(Trace::context);
        let (Some(stay), Some(origin)) = (spans::stay(brief), origin) else { return };
        let mut span = traces.root(stay, origin, brief.kept_at);
        span.destination("spool", &brief.topic);
        span.text("messaging.message.id", &brief.id.to_string());
        span.number("tollgate.attempts", brief.attempts);
        let outcome = match (end, &brief.state) {
            (StayEnd::Refused, _) => "refused",
            (StayEnd::Damaged, _) => "damaged",
            (StayEnd::Recorded, State::Queued { .. }) => "queued",
            (StayEnd::Recorded, State::Dead(_)) => "dead",
            (StayEnd::Recorded, State::Delivered(_)) => "delivered",
            (StayEnd::Recorded, State::Dropped(_)) => "dropped",
            (StayEnd::Recorded, State::Expired(_)) => "expired",
        };
        span.word("tollgate.outcome", outcome);
        match &brief.state {
            State::Delivered(receipt) => {
                span.text("aliyun.request_id", &receipt.request_id);
                span.text("aliyun.msg_id", &receipt.msg_id);
            }
            State::Dead(death) => {
                if let Some(id) = &death.request_id {
                    span.text("aliyun.request_id", id);
                }
                span.fails(death.code.as_deref().unwrap_or(death.reason.as_str()));
            }
            _ => span.fails(outcome),
        }
        span.end();
    }
}
