//! The audit log: what operators do with messages over the control socket, and which process asked for it.

use http::Request;
use serde_json::Value;

use crate::meter::{Meter, OperatorVerb};
use crate::server::{PeerProcess, RequestBody};
use crate::spool::{Affected, Selection};

/// The most characters of a topic pattern in a line.
const MAX_TOPIC: usize = 256;

/// An operator's request, to be recorded once it is done.
pub(super) struct Audit {
    meter: Meter,
    verb: OperatorVerb,
    peer: Option<PeerProcess>,
    selection: String,
}

impl Audit {
    /// The request to do `verb` with `selection`. The peer is the process that has opened the connection.
    pub(super) fn new(
        meter: &Meter,
        verb: OperatorVerb,
        peer: Option<PeerProcess>,
        selection: &Selection,
    ) -> Self {
        Self { meter: meter.clone(), verb, peer, selection: words(selection) }
    }

    /// It is done, with these messages.
    pub(super) fn record(self, affected: &Affected) {
        self.meter.operator_acted(self.verb);
        tracing::info!(
            target: "tollgate::audit",
            uid = self.peer.map(|peer| peer.uid),
            pid = self.peer.and_then(|peer| peer.pid),
            verb = self.verb.as_str(),
            selection = self.selection,
            messages = affected.messages,
            expired = (affected.expired > 0).then_some(affected.expired),
            ids = affected.ids(),
            "audit: an operator's request is done"
        );
    }
}

/// The process at the other end of the control socket.
pub(super) fn peer(request: &Request<RequestBody>) -> Option<PeerProcess> {
    request.extensions().get().copied()
}

/// A selection in a line, bounded: `state=dead topic=Alarm/*`.
fn words(selection: &Selection) -> String {
    let word = |value: Result<Value, serde_json::Error>| {
        value.ok().and_then(|value| value.as_str().map(str::to_owned))
    };
    let ids = selection.ids.iter().take(Affected::MAX_IDS).cloned().collect::<Vec<_>>().join(",");
    let left_out = selection.ids.len().saturating_sub(Affected::MAX_IDS);
    let more = if left_out > 0 { format!(" and {left_out} more") } else { String::new() };
    let topic = selection.topic.as_ref().map(|topic| topic.chars().take(MAX_TOPIC).collect());
    let parts = [
        ("ids", (!ids.is_empty()).then(|| format!("{ids}{more}"))),
        ("topic", topic),
        ("reason", selection.reason.and_then(|reason| word(serde_json::to_value(reason)))),
        ("state", selection.state.and_then(|state| word(serde_json::to_value(state)))),
        ("all", selection.all.then(|| "true".to_owned())),
    ];
    let parts = parts.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?)));
    parts.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{Reason, Which};

    #[test]
    fn a_selection_in_a_bounded_line() {
        let selection = Selection {
            topic: Some("a".repeat(1_000)),
            reason: Some(Reason::Refused),
            state: Some(Which::Dead),
            ids: vec!["0".repeat(32); 1_000],
            all: true,
        };
        let line = words(&selection);
        assert!(line.len() < 1_100, "{line}");
        assert!(line.contains(" and 980 more topic=aaa"), "{line}");
        assert!(line.ends_with("a reason=refused state=dead all=true"), "{line}");
        assert_eq!(words(&Selection { all: true, ..Selection::default() }), "all=true");
    }
}
