//! `RateLimit-Policy` and `RateLimit`, in the syntax of the IETF draft.

use std::fmt::{Display, Write as _};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::ceiling::{Ceiling, CeilingKind};

pub(super) const POLICY: &str = "ratelimit-policy";
pub(super) const RATE_LIMIT: &str = "ratelimit";

/// Adds the ceilings to the headers of an answer. A limit that is in them already is the reason of the
/// answer: it stays the one that `RateLimit` names.
pub(super) fn add(headers: &mut HeaderMap, ceiling: &Ceiling) {
    let room = ceiling.room();
    let mut policies = String::with_capacity(64);
    for (kind, limit) in CeilingKind::ALL.into_iter().zip(room.limits) {
        if let Some(limit) = limit {
            add_policy(&mut policies, &format_args!("\"{}\";q={limit};w=1", kind.policy()));
        }
    }
    if let Some(own) = headers.get(POLICY).and_then(|value| value.to_str().ok()) {
        add_policy(&mut policies, &own);
    }
    set(headers, POLICY, (!policies.is_empty()).then_some(policies));
    if headers.contains_key(RATE_LIMIT) {
        return;
    }
    let now = room.tightest.map(|(kind, free)| {
        let left = free.saturating_sub(room.waiting);
        let reset = room.next_in.as_secs() + 1;
        format!("\"{}\";r={left};t={reset}", kind.policy())
    });
    set(headers, RATE_LIMIT, now);
}

fn add_policy(policies: &mut String, policy: &dyn Display) {
    let comma = if policies.is_empty() { "" } else { ", " };
    // Writing to a string does not fail.
    let _written = write!(policies, "{comma}{policy}");
}

/// Takes them away, where callers are not to have them.
pub(super) fn remove(headers: &mut HeaderMap) {
    headers.remove(POLICY);
    headers.remove(RATE_LIMIT);
}

fn set(headers: &mut HeaderMap, name: &'static str, value: Option<String>) {
    if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
        headers.insert(HeaderName::from_static(name), value);
    }
}
