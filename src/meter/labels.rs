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
