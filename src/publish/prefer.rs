//! `Prefer` (RFC 7240).

use std::time::Duration;

use http::HeaderMap;

/// The longest wait that is granted.
pub(super) const MAX_WAIT: Duration = Duration::from_mins(1);

/// A caller's preferences. Unknown ones are ignored, as RFC 7240 requires.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Prefer {
    /// `wait=<seconds>`
    pub(super) wait: Option<Duration>,
    /// `respond-async`
    pub(super) respond_async: bool,
    /// `stream`: results of a batch one by one, as they are known.
    pub(super) stream: bool,
}

impl Prefer {
    /// The first of each preference counts.
    pub(super) fn read(headers: &HeaderMap) -> Self {
        let mut prefer = Self::default();
        let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
        for preference in values.flat_map(|value| value.split(',')) {
            // Parameters follow a semicolon; these preferences have none.
            let preference = preference.split(';').next().unwrap_or_default();
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            let value = value.trim().trim_matches('"');
            if name.trim().eq_ignore_ascii_case("respond-async") {
                prefer.respond_async = true;
            }
            if name.trim().eq_ignore_ascii_case("stream") {
                prefer.stream = true;
            }
            if name.trim().eq_ignore_ascii_case("wait") && prefer.wait.is_none() {
                prefer.wait = value.parse().ok().map(Duration::from_secs);
            }
        }
        prefer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn preferences() {
        for (values, wait, respond_async) in [
            (&["wait=10"][..], Some(10), false),
            (&["respond-async, wait=10"], Some(10), true),
            (&["respond-async", "Wait = \"3\"; x=y"], Some(3), true),
            (&["wait=1, wait=2"], Some(1), false),
            (&["Stream, wait=2"], Some(2), false),
            (&["streams"], None, false),
            (&["wait"], None, false),
            (&["wait=-1"], None, false),
            (&["wait=1.5"], None, false),
            (&["wait=99999999999999999999999"], None, false),
            (&["return=minimal"], None, false),
            (&[""], None, false),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("prefer", HeaderValue::from_static(value));
            }
            let stream = values == ["Stream, wait=2"];
            let expected = Prefer { wait: wait.map(Duration::from_secs), respond_async, stream };
            assert_eq!(Prefer::read(&headers), expected, "{values:?}");
        }
    }
}
