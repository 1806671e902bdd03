//! The label values that counts are kept under.

/// How a request to publish ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Published {
    /// Delivered.
    Delivered,
    /// Kept, to be delivered.
    Queued,
    /// Refused because of a ceiling, ours or the provider's.
    OverCeiling,
    /// Refused because a budget is used up.
    OverBudget,
    /// Refused by the provider.
    Refused,
    /// Not delivered.
    Failed,
    /// Perhaps delivered.
    Unknown,
    /// Not a message.
    Invalid,
    /// Refused while stopping.
    Draining,
    /// Refused because too many wait.
    Full,
}

impl Published {
    /// All, in order.
    pub const ALL: [Self; 10] = [
        Self::Delivered,
        Self::Queued,
        Self::OverCeiling,
        Self::OverBudget,
        Self::Refused,
        Self::Failed,
        Self::Unknown,
        Self::Invalid,
        Self::Draining,
        Self::Full,
    ];

    /// What it is to the caller.
    pub const fn result(self) -> CallerResult {
        match self {
            Self::Delivered => CallerResult::Delivered,
            Self::Queued => CallerResult::Stored,
            Self::OverCeiling | Self::OverBudget | Self::Draining | Self::Full => {
                CallerResult::Refused
            }
            Self::Failed | Self::Unknown => CallerResult::Failed,
            Self::Invalid | Self::Refused => CallerResult::Invalid,
        }
    }

    /// The word for it in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Queued => "queued",
            Self::OverCeiling => "over_ceiling",
            Self::OverBudget => "over_budget",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Invalid => "invalid",
            Self::Draining => "draining",
            Self::Full => "full",
        }
    }
}

/// What an outcome is to a caller. The recording rules in `deploy/prometheus` count the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallerResult {
    /// Its message was delivered (200).
    Delivered,
    /// Its message was stored for delivery (202).
    Stored,
    /// A ceiling, a budget or a bound was reached, or the sidecar stops (429, 503).
    Refused,
    /// It failed, or its outcome is unknown (502, 504, 410).
    Failed,
    /// It was no message, or one that the provider refuses: the caller's mistake, which says nothing of
    /// the service that callers get.
    Invalid,
}

impl CallerResult {
    /// All, in order.
    pub const ALL: [Self; 5] =
        [Self::Delivered, Self::Stored, Self::Refused, Self::Failed, Self::Invalid];
}

/// How a call of another operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionResult {
    /// Done.
    Ok,
    /// Refused by the provider.
    Refused,
    /// Refused because of a ceiling, ours or the provider's.
    Throttled,
    /// Not done.
    Failed,
    /// Perhaps done.
    Unknown,
}

impl ActionResult {
    /// All, in order.
    pub const ALL: [Self; 5] =
        [Self::Ok, Self::Refused, Self::Throttled, Self::Failed, Self::Unknown];

    /// The word for it in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Throttled => "throttled",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a call was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CallKind {
    /// A message's first try.
    First,
    /// A later one.
    Retry,
    /// One that finds out whether a lane works again.
    Probe,
}

impl CallKind {
    /// The word for it in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Retry => "retry",
            Self::Probe => "probe",
        }
    }
}

/// What an operator does with stored messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperatorVerb {
    /// Drops them.
    Drop,
    /// Delivers dead letters after all.
    Replay,
    /// Reads one, with its payload.
    Show,
}

impl OperatorVerb {
    /// All, in order.
    pub const ALL: [Self; 3] = [Self::Drop, Self::Replay, Self::Show];

    /// The word for it in metrics and the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Replay => "replay",
            Self::Show => "show",
        }
    }
}

/// What is known of a message whose time to live has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpiredAs {
    /// No call has delivered it.
    NotSent,
    /// A call may have delivered it.
    Unknown,
}

impl ExpiredAs {
    /// All, in order.
    pub const ALL: [Self; 2] = [Self::NotSent, Self::Unknown];

    /// The word for it in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::Unknown => "unknown",
        }
    }
}

/// What a call means for the bill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Billed {
    /// Each successful call is one message.
    Yes,
    /// May be one message: the answer is missing or ambiguous.
    Uncertain,
    /// Not a successful call.
    No,
}

impl Billed {
    /// All, in order.
    pub const ALL: [Self; 3] = [Self::Yes, Self::Uncertain, Self::No];

    /// The `result` of a call in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "delivered",
            Self::Uncertain => "unknown",
            Self::No => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page's share of accepted requests is that of the alerts.
    #[test]
    fn results_are_those_of_the_recording_rules() {
        let rules = include_str!("../../deploy/prometheus/rules.yaml");
        let outcomes = |record: &str| {
            let rule = rules.split("record: ").find(|rule| rule.starts_with(record)).unwrap();
            let words = rule.split_once("outcome").unwrap().1.split('"').nth(1).unwrap();
            let mut words: Vec<_> = words.split('|').collect();
            words.sort_unstable();
            words
        };
        let of = |results: &[CallerResult]| {
            let all = Published::ALL.into_iter();
            let mut words: Vec<_> = all
                .filter(|outcome| results.contains(&outcome.result()))
                .map(Published::as_str)
                .collect();
            words.sort_unstable();
            words
        };
        let requests = "cluster_namespace_service:tollgate_publish_requests";
        for (record, results) in [
            ("_accepted:ratio_rate5m", &[CallerResult::Delivered, CallerResult::Stored][..]),
            ("_refused:ratio_rate5m", &[CallerResult::Refused]),
            ("_failed:ratio_rate5m", &[CallerResult::Failed]),
            // What is left out.
            (":rate5m", &[CallerResult::Invalid]),
        ] {
            assert_eq!(outcomes(&format!("{requests}{record}")), of(results), "{record}");
        }
    }
}
