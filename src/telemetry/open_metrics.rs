//! The text formats of metrics, and what `OpenMetrics` has besides.

use crate::meter::{Exemplar, Published};

/// The text format that a scraper asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Prometheus,
    OpenMetrics,
}

impl Format {
    pub(super) fn wanted(accept: &str) -> Self {
        let quality = |wanted: &str| {
            let ranges = accept.split(',').filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let is_it = parts.next()?.eq_ignore_ascii_case(wanted);
                let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok());
                is_it.then_some(quality.unwrap_or(1.0))
            });
            ranges.fold(0.0, f32::max)
        };
        let open = quality("application/openmetrics-text");
        if open > 0.0 && open >= quality("text/plain") {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// `OpenMetrics` names a counter without `_total` in its comments, has exemplars, and ends with a line.
pub(super) fn open_metrics(
    text: &str,
    exemplar: &dyn Fn(Published, usize) -> Option<Exemplar>,
) -> String {
    let mut buckets = Buckets::default();
    let mut counters = text.lines().filter_map(|line| {
        line.strip_prefix("# TYPE ")?.strip_suffix(" counter")?.strip_suffix("_total")
    });
    let counters: std::collections::BTreeSet<_> = counters.by_ref().collect();
    let mut to = String::with_capacity(text.len() + 8);
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        let (hash, kind) = (words.next(), words.next());
        let name = words.next().and_then(|name| name.strip_suffix("_total"));
        match (hash, kind, name, words.next()) {
            (Some("#"), Some(kind), Some(name), Some(rest)) if counters.contains(name) => {
                to.extend(["# ", kind, " ", name, " ", rest, "\n"]);
            }
            _ => {
                to.push_str(line);
                if let Some((outcome, bucket)) = buckets.next(line)
                    && let Some(exemplar) = exemplar(outcome, bucket)
                {
                    to.push_str(&in_words(&exemplar));
                }
                to.push('\n');
            }
        }
    }
    to.push_str("# EOF\n");
    to
}

/// The buckets that have exemplars, as their lines come.
#[derive(Default)]
struct Buckets {
    outcome: Option<Published>,
    seen: usize,
}

impl Buckets {
    /// The outcome of this line, and the place of its bucket, if it is one of these.
    fn next(&mut self, line: &str) -> Option<(Published, usize)> {
        let labels = line.strip_prefix("tollgate_publish_duration_seconds_bucket{")?;
        let outcome = labels.split_once("outcome=\"")?.1.split('"').next()?;
        let outcome = Published::ALL.into_iter().find(|known| known.as_str() == outcome)?;
        self.seen = if self.outcome.replace(outcome) == Some(outcome) { self.seen + 1 } else { 0 };
        Some((outcome, self.seen))
    }
}

fn in_words(Exemplar { span, seconds, at }: &Exemplar) -> String {
    let (trace, span) = (span.trace, span.span);
    // In milliseconds a number with a fraction has a Unix time exactly.
    let at = at.as_millisecond() as f64 / 1_000.0;
    format!(" # {{trace_id=\"{trace}\",span_id=\"{span}\"}} {seconds} {at:.3}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::SpanContext;

    #[test]
    fn open_metrics_where_it_is_asked_for() {
        for (accept, open) in [
            ("", false),
            ("*/*", false),
            ("application/openmetrics-text", true),
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3",
                true,
            ),
            ("text/plain, application/OpenMetrics-text; q=0.4", false),
            ("application/openmetrics-text;q=0", false),
        ] {
            let format = if open { Format::OpenMetrics } else { Format::Prometheus };
            assert_eq!(Format::wanted(accept), format, "{accept:?}");
        }
    }

    #[test]
    fn open_metrics_differs_where_it_must() {
        let text = "# HELP a_total A b\n# TYPE a_total counter\na_total{x=\"y z\"} 1\n\
                    # HELP g_total G\n# TYPE g_total gauge\ng_total 2\n";
        let expected = "# HELP a A b\n# TYPE a counter\na_total{x=\"y z\"} 1\n\
                        # HELP g_total G\n# TYPE g_total gauge\ng_total 2\n# EOF\n";
        assert_eq!(open_metrics(text, &|_, _| None), expected);
    }

    #[test]
    fn exemplars_stand_behind_their_buckets() {
        let bucket = |outcome: &str, le: &str| {
            format!(
                "tollgate_publish_duration_seconds_bucket{{outcome=\"{outcome}\",le=\"{le}\"}} 3"
            )
        };
        let lines = [
            bucket("delivered", "0.001"),
            bucket("delivered", "+Inf"),
            bucket("queued", "0.001"),
            "tollgate_ceiling_wait_seconds_bucket{ceiling=\"account\",le=\"0.001\"} 3".to_owned(),
        ];
        let span = SpanContext {
            trace: "4bf92f3577b34da6a3ce929d0e0e4736".parse().unwrap(),
            span: "00f067aa0ba902b7".parse().unwrap(),
        };
        let exemplar = |outcome, bucket| {
            let at = "2026-01-01T00:00:00.25Z".parse().unwrap();
            let seconds = if bucket == 0 { 0.0005 } else { 12.5 };
            (outcome == Published::Delivered).then_some(Exemplar { span, seconds, at })
        };
        let text = open_metrics(&lines.join("\n"), &exemplar);
        let ids = "# {trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\",span_id=\"00f067aa0ba902b7\"}";
        let expected = [
            format!("{} {ids} 0.0005 1767225600.250", lines[0]),
            format!("{} {ids} 12.5 1767225600.250", lines[1]),
            lines[2].clone(),
            lines[3].clone(),
            "# EOF\n".to_owned(),
        ];
        assert_eq!(text, expected.join("\n"));
    }
}
