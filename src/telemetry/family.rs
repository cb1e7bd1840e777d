//! Families of one value without labels, for collectors that read at scrape time.

use prometheus::proto::{Counter, Gauge, Metric, MetricFamily, MetricType};

pub(crate) fn gauge(name: &str, help: &str, value: f64) -> MetricFamily {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = Metric::from_label(Vec::new());
    metric.set_gauge(gauge);
    family(name, help, MetricType::GAUGE, metric)
}

pub(crate) fn counter(name: &str, help: &str, value: f64) -> MetricFamily {
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut metric = Metric::from_label(Vec::new());
    metric.set_counter(counter);
    family(name, help, MetricType::COUNTER, metric)
}

fn family(name: &str, help: &str, kind: MetricType, metric: Metric) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(vec![metric]);
    family
}
