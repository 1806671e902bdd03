//! The answer to a message that a budget refuses.

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use jiff::Timestamp;

use super::answered::Answered;
use super::rate_limit::{POLICY, RATE_LIMIT};
use crate::meter::{OverBudget, OverBudgetReason, Published};
use crate::server::{Problem, Slug};

/// A caller that would have to wait longer does better to give up.
const SOON: Duration = Duration::from_hours(1);

/// The answer at this time. `RateLimit` names the budget, since no ceiling is the reason.
pub(super) fn answer(over: &OverBudget, calls: u32, now: Timestamp) -> Answered {
    // A call before this one failed for certain, or there would be no retry.
    let (done, outcome) = match calls {
        0 => ("Nothing was sent", "not-sent"),
        _ => ("It was not delivered, and is not tried again", "refused"),
    };
    let OverBudget { budget, reason, until, messages, period } = over;
    let detail = match reason {
        OverBudgetReason::UsedUp => format!(
            "The budget {budget:?} (billing.budgets) is used up until {until}. {done}. Send the message \
             again then, or raise the budget."
        ),
        OverBudgetReason::NotGranted => format!(
            "The budget {budget:?} (billing.budgets) is shared by the fleet, and the fleet's Redis has not granted \
             this sidecar a part of it. {done}. Send the message again later; see `tollgate status`."
        ),
    };
    let left = Duration::try_from(until.duration_since(now)).unwrap_or_default();
    let problem =
        Problem::new(StatusCode::TOO_MANY_REQUESTS, Slug::Budget, "Over the budget", detail)
            .outcome(outcome)
            .attempts(calls)
            .retry_after(left);
    let problem = if left > SOON { problem.not_retryable() } else { problem };
    let mut answered = Answered::problem(Published::OverBudget, problem).with_calls(calls);
    // Names of budgets have no character that a quoted string escapes.
    let policy = messages.map(|messages| format!("\"{budget}\";q={messages};w={period}"));
    let now = format!("\"{budget}\";r=0;t={}", left.as_secs() + 1);
    let headers = [(RATE_LIMIT, Some(now)), (POLICY, policy)];
    for (name, value) in headers {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            answered.reply.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    answered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers_at(now: i64, messages: Option<u64>) -> (Vec<String>, bool) {
        let until = Timestamp::from_second(86_400).unwrap();
        let (budget, reason) = ("alarms".to_owned(), OverBudgetReason::UsedUp);
        let over = OverBudget { budget, reason, until, messages, period: 86_400 };
        let answered = answer(&over, 0, Timestamp::from_second(now).unwrap());
        assert_eq!(answered.published.as_str(), "over_budget");
        assert_eq!(answered.reply.status(), 429);
        let header = |name: &str| {
            let value = answered.reply.headers().get(name);
            value.map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
        };
        let headers = [header("retry-after"), header(RATE_LIMIT), header(POLICY)];
        let retryable = format!("{:?}", answered.reply.body()).contains(r#"\"retryable\":true"#);
        (headers.into(), retryable)
    }

    #[test]
    fn a_long_wait_is_honest_and_not_worth_it() {
        let headers = |a: &str, b: &str, c: &str| [a, b, c].map(str::to_owned).to_vec();
        let policy = "\"alarms\";q=3;w=86400";
        assert_eq!(
            headers_at(0, Some(3)),
            (headers("86400", "\"alarms\";r=0;t=86401", policy), false)
        );
        assert_eq!(
            headers_at(86_400 - 3_601, Some(3)),
            (headers("3601", "\"alarms\";r=0;t=3602", policy), false)
        );
        assert_eq!(
            headers_at(86_400 - 3_600, None),
            (headers("3600", "\"alarms\";r=0;t=3601", ""), true)
        );
        assert_eq!(headers_at(86_399, None), (headers("1", "\"alarms\";r=0;t=2", ""), true));
    }
}
