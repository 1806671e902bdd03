//! The fleet's permits in Redis.

/// What Redis runs.
pub(super) const SCRIPT: &str = include_str!("permits.lua");
