//! `RateLimit-Policy` and `RateLimit`, in the syntax of the IETF draft.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::ceiling::Ceiling;

pub(super) const POLICY: &str = "ratelimit-policy";
pub(super) const RATE_LIMIT: &str = "ratelimit";

/// Adds the ceilings to the headers of an answer. A limit that is in them already is the reason of the
/// answer: it stays the one that `RateLimit` names.
pub(super) fn add(headers: &mut HeaderMap, ceiling: &Ceiling) {
    let status = ceiling.status();
    let policies = status
        .ceilings
        .iter()
        .filter_map(|c| Some(format!("\"{}\";q={};w=1", c.kind.policy(), c.limit?)));
    let own = headers.get(POLICY).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let policies: Vec<_> = policies.chain(own).collect();
    set(headers, POLICY, (!policies.is_empty()).then(|| policies.join(", ")));
    if headers.contains_key(RATE_LIMIT) {
        return;
    }
    let now = status.tightest().map(|tightest| {
        let left = tightest.free.unwrap_or(0).saturating_sub(status.waiting);
        let reset = status.next_in.as_secs() + 1;
        format!("\"{}\";r={left};t={reset}", tightest.kind.policy())
    });
    set(headers, RATE_LIMIT, now);
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
