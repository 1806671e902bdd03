//! Parts of a spool: so many messages with so many bytes.

use std::ops::{Add, AddAssign, Sub, SubAssign};

/// A part of what is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// How many.
    pub messages: u64,
    /// Their bytes on the disk.
    pub bytes: u64,
}

impl Share {
    /// Whether it is within these bounds.
    pub(super) fn fits(self, max: Self) -> bool {
        self.messages <= max.messages && self.bytes <= max.bytes
    }

    /// Half of it.
    pub(super) fn half(self) -> Self {
        Self { messages: self.messages / 2, bytes: self.bytes / 2 }
    }

    /// This part of it, 0 to 1.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "part of a message is none"
    )]
    pub(super) fn part(self, part: f64) -> Self {
        let of = |figure: u64| (figure as f64 * part) as u64;
        Self { messages: of(self.messages), bytes: of(self.bytes) }
    }

    /// The smaller of both, of each figure.
    pub(super) fn min(self, other: Self) -> Self {
        Self { messages: self.messages.min(other.messages), bytes: self.bytes.min(other.bytes) }
    }

    /// The difference, at least 0.
    pub(super) fn minus(self, other: Self) -> Self {
        Self {
            messages: self.messages.saturating_sub(other.messages),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

impl Add for Share {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { messages: self.messages + other.messages, bytes: self.bytes + other.bytes }
    }
}

impl Sub for Share {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { messages: self.messages - other.messages, bytes: self.bytes - other.bytes }
    }
}

impl AddAssign for Share {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Share {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}
