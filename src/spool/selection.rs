//! Which kept messages an operator means, and how they are shown.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::record::{Brief, Change, Doubt, Reason, Record, State};
use super::{Effect, Noted, Spool};
use crate::message::{Expiry, MessageId, TopicPattern, Urgency};

/// What has become of a message, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// To be delivered.
    Queued,
    /// A dead letter.
    Dead,
    /// Delivered; only its receipt is left.
    Delivered,
    /// Dropped; only its receipt is left.
    Dropped,
    /// Its time to live has ended; only its receipt is left.
    Expired,
}

/// Which messages are meant: all conditions that are given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Selection {
    /// These.
    pub ids: Vec<String>,
    /// Topics that match this pattern.
    pub topic: Option<String>,
    /// Dead letters of this reason.
    pub reason: Option<Reason>,
    /// In this state.
    pub state: Option<Which>,
    /// Whatever they are.
    pub all: bool,
}

impl Selection {
    /// Whether no condition is given.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads it once, before many messages are held against it. What could mean no message is a
    /// mistake: "0 dropped" would say that all is well.
    pub fn pick(&self) -> Result<Picked, SelectionError> {
        let id = |text: &String| text.parse().map_err(|_| SelectionError::Id(text.clone()));
        let ids = self.ids.iter().map(id).collect::<Result<_, _>>()?;
        if let Some(topic) = self.topic.as_ref().filter(|topic| topic.contains(['+', '#'])) {
            return Err(SelectionError::Filter(topic.clone()));
        }
        let topic = self.topic.as_deref().map(TopicPattern::new);
        Ok(Picked { ids, topic, reason: self.reason, state: self.state })
    }
}

/// Why a selection cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// An id is none.
    #[error("{0:?} is no message id")]
    Id(String),
    /// A topic pattern is an MQTT filter.
    #[error("{0:?} is an MQTT filter; patterns have neither + nor #, but *: 'Alarm/*'")]
    Filter(String),
}

/// A selection, ready to be held against messages.
#[derive(Debug, Clone, Default)]
pub struct Picked {
    ids: HashSet<MessageId>,
    topic: Option<TopicPattern>,
    reason: Option<Reason>,
    state: Option<Which>,
}

impl Picked {
    /// Whether it means this one.
    pub fn means(&self, brief: &Brief) -> bool {
        let reason = |reason: Reason| matches!(&brief.state, State::Dead(d) if d.reason == reason);
        (self.ids.is_empty() || self.ids.contains(&brief.id))
            && self.topic.as_ref().is_none_or(|topic| topic.matches(&brief.topic))
            && self.reason.is_none_or(reason)
            && self.state.is_none_or(|state| state == which(&brief.state))
    }

    /// The dead letters it means that can be replayed: their time to live has not ended.
    pub fn means_replayable(&self, brief: &Brief) -> bool {
        self.means_dead(brief) && !brief.expiry.is_some_and(Expiry::is_over)
    }

    fn means_dead(&self, brief: &Brief) -> bool {
        which(&brief.state) == Which::Dead && self.means(brief)
    }

    /// What may be dropped: dead letters, and messages that are to be delivered only if they are
    /// named, or asked for by their state.
    pub fn means_droppable(&self, brief: &Brief) -> bool {
        let named = !self.ids.is_empty() || self.state.is_some();
        match which(&brief.state) {
            Which::Dead => self.means(brief),
            Which::Queued => named && self.means(brief),
            Which::Delivered | Which::Dropped | Which::Expired => false,
        }
    }
}

fn which(state: &State) -> Which {
    match state {
        State::Queued { .. } => Which::Queued,
        State::Dead(_) => Which::Dead,
        State::Delivered(_) => Which::Delivered,
        State::Dropped(_) => Which::Dropped,
        State::Expired(_) => Which::Expired,
    }
}

/// A message as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "named as in the contract")]
pub struct Listed {
    pub id: String,
    pub status: Which,
    pub topic: String,
    pub instance: String,
    pub attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub msg_id: Option<String>,
    pub accepted_at: Timestamp,
    /// When its time to live ends, or has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Where it is not `normal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urgency: Option<Urgency>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<usize>,
}

impl From<&Brief> for Listed {
    fn from(brief: &Brief) -> Self {
        let mut listed = Self {
            id: brief.id.to_string(),
            status: which(&brief.state),
            topic: brief.topic.to_string(),
            instance: brief.lane.instance.to_string(),
            attempts: brief.attempts,
            reason: None,
            code: None,
            request_id: None,
            msg_id: None,
            accepted_at: brief.kept_at,
            expires_at: brief.expiry.map(Expiry::timestamp),
            urgency: Some(brief.urgency).filter(|urgency| *urgency != Urgency::default()),
            payload_base64: None,
            bytes: None,
        };
        match &brief.state {
            State::Queued { .. } | State::Dropped(_) => {}
            // A call may have delivered it.
            State::Expired(_) => listed.reason = brief.doubt.then_some(Reason::Unknown),
            State::Dead(death) => {
                listed.reason = Some(death.reason);
                listed.code = death.code.as_deref().map(str::to_owned);
                listed.request_id = death.request_id.as_deref().map(str::to_owned);
            }
            State::Delivered(receipt) => {
                listed.msg_id = Some(receipt.msg_id.to_string());
                listed.request_id = Some(receipt.request_id.to_string());
            }
        }
        listed
    }
}

/// Messages that an operator's request was about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Affected {
    /// How many.
    pub messages: usize,
    /// The first of them, up to [`Self::MAX_IDS`].
    pub first: Vec<MessageId>,
    /// Dead letters that were to be replayed, and are not sent any more: their time to live has ended.
    pub expired: usize,
}

impl Affected {
    /// The most ids that are kept.
    pub const MAX_IDS: usize = 20;

    /// The first ids, with commas, for a line of the log.
    pub fn ids(&self) -> String {
        self.first.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// One more.
    pub fn add(&mut self, id: MessageId) {
        self.messages += 1;
        if self.first.len() < Self::MAX_IDS {
            self.first.push(id);
        }
    }
}

/// Messages that are changed at an operator's wish before the next are looked for.
const PAGE: usize = 500;

impl Spool {
    /// Lets `note` note a change of each that is meant, a page at a time, and calls `then` for each,
    /// once that is durable, with what came of it: another operator may have been first, and a peer may
    /// have the message. Returns which it has changed. Both get the message as it was before.
    pub async fn change(
        &self,
        meant: &(dyn Fn(&Brief) -> bool + Send + Sync),
        note: &(dyn Fn(&Brief) -> Noted + Send + Sync),
        then: &(dyn Fn(&Brief, Effect) + Send + Sync),
    ) -> Affected {
        let (mut changed, mut after) = (Affected::default(), None);
        loop {
            let page = self.list(after, PAGE, &mut |brief| meant(brief));
            let Some(last) = page.last() else { return changed };
            after = Some(last.id);
            // All of a page are noted before the first is waited for: they share a few commits.
            let noted: Vec<_> = page.iter().map(note).collect();
            for (brief, noted) in page.iter().zip(noted) {
                let effect = noted.await;
                if effect == Effect::Made {
                    changed.add(brief.id);
                }
                then(brief, effect);
            }
        }
    }

    /// How many dead letters that it means are not sent any more: their time to live has ended.
    pub fn count_expired(&self, selection: &Picked) -> usize {
        let expired =
            |brief: &Brief| selection.means_dead(brief) && !selection.means_replayable(brief);
        self.list(None, usize::MAX, &mut |brief| expired(brief)).len()
    }

    /// Drops a message. A receipt stays, so that a caller that asks for it, or repeats its key, is answered with
    /// what became of it. `doubt`: of calls that the spool does not know of.
    pub fn dropped(doubt: Doubt) -> Change {
        Change::Dropped { at: Timestamp::now(), doubt: doubt.into() }
    }

    /// At most `limit` of those it means, from the first after `after`.
    pub fn select(
        &self,
        selection: &Picked,
        after: Option<MessageId>,
        limit: usize,
    ) -> Vec<Listed> {
        let briefs = self.list(after, limit, &mut |brief| selection.means(brief));
        briefs.iter().map(Listed::from).collect()
    }

    /// One message, with its payload as long as it has one.
    pub async fn show(&self, id: MessageId) -> Option<Listed> {
        let mut listed = Listed::from(&self.find(id)?);
        if let Ok(Record { message, .. }) = self.read(id).await {
            let payload = message.payload.as_bytes();
            listed.payload_base64 = Some(STANDARD.encode(payload));
            listed.bytes = Some(payload.len());
        }
        Some(listed)
    }
}
