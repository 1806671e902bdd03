//! One metric with its series, from values that other modules keep.

use prometheus::core::Metric as _;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// Families of one kind; those without a value are left out.
pub(super) type Families = Vec<Option<MetricFamily>>;

/// A metric under construction.
pub(super) struct Family {
    family: MetricFamily,
    metrics: Vec<Metric>,
}

impl Family {
    fn new(name: &str, help: &str, kind: MetricType) -> Self {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        Self { family, metrics: Vec::new() }
    }

    pub(super) fn counter(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::COUNTER)
    }

    pub(super) fn gauge(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::GAUGE)
    }

    pub(super) fn histogram(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::HISTOGRAM)
    }

    /// A counter's or a gauge's series.
    pub(super) fn value(mut self, labels: &[(&str, &str)], value: f64) -> Self {
        let mut metric = Metric::from_label(pairs(labels));
        if self.family.get_field_type() == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.metrics.push(metric);
        self
    }

    /// A histogram's series.
    pub(super) fn series(mut self, labels: &[(&str, &str)], from: &prometheus::Histogram) -> Self {
        let mut metric = Metric::from_label(pairs(labels));
        metric.set_histogram(from.metric().get_histogram().clone());
        self.metrics.push(metric);
        self
    }

    /// The finished metric; `None` if it has no series.
    pub(super) fn done(mut self) -> Option<MetricFamily> {
        if self.metrics.is_empty() {
            return None;
        }
        self.family.set_metric(self.metrics);
        Some(self.family)
    }
}

fn pairs(labels: &[(&str, &str)]) -> Vec<LabelPair> {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    labels.iter().map(pair).collect()
}
