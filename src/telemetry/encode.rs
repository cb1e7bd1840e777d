//! Metric families as text: Prometheus 0.0.4, or OpenMetrics 1.0 with exemplars.
//!
//! `le` is written as Go writes it in both, so that Prometheus 2 and 3 store the same series. Every
//! series is written once, and the buckets of a histogram are cumulative up to `+Inf` = count.

use std::{collections::HashSet, fmt::Write};

use prometheus::proto::{Histogram, LabelPair, Metric, MetricFamily, MetricType};

use crate::telemetry::exemplars::{Exemplar, Exemplars};

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    OpenMetrics,
}

/// Content type and body for what a scraper accepts.
pub(crate) fn encode(
    families: &[MetricFamily],
    exemplars: Option<&Exemplars>,
    accept: Option<&str>,
) -> (&'static str, String) {
    let format = negotiate(accept);
    // By eye: 16 KiB hold the families of a node that has just started.
    let mut text = Text { out: String::with_capacity(16 << 10), format, seen: HashSet::new() };
    for family in families {
        text.family(family, exemplars.filter(|_| format == Format::OpenMetrics));
    }
    match format {
        Format::Text => (TEXT, text.out),
        Format::OpenMetrics => {
            text.out.push_str("# EOF\n");
            (OPEN_METRICS, text.out)
        }
    }
}

/// OpenMetrics only where it is asked for by name, and not less than plain text.
fn negotiate(accept: Option<&str>) -> Format {
    let mut best = (Format::Text, 0.0);
    for range in accept.unwrap_or_default().split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let mut quality = 1.0;
        let mut is_known_version = true;
        for part in parts {
            match part.split_once('=') {
                Some(("q" | "Q", q)) => quality = q.parse().unwrap_or(0.0),
                Some(("version", v)) => is_known_version = matches!(v, "0.0.1" | "1.0.0" | "0.0.4"),
                _ => {}
            }
        }
        let format = match media.as_str() {
            "application/openmetrics-text" => Format::OpenMetrics,
            "text/plain" | "text/*" | "*/*" => Format::Text,
            _ => continue,
        };
        if is_known_version && best.1 < quality {
            best = (format, quality);
        }
    }
    best.0
}

struct Text {
    out: String,
    format: Format,
    /// Label sets of the family being written.
    seen: HashSet<String>,
}

impl Text {
    fn family(&mut self, family: &MetricFamily, exemplars: Option<&Exemplars>) {
        let name = family.name();
        let kind = match family.get_field_type() {
            MetricType::COUNTER => "counter",
            MetricType::GAUGE => "gauge",
            MetricType::HISTOGRAM => "histogram",
            MetricType::SUMMARY => "summary",
            // The crate makes none.
            MetricType::UNTYPED => return,
        };
        // OpenMetrics names the family without the ending of its samples.
        let is_open_counter = self.format == Format::OpenMetrics && kind == "counter";
        let family_name = if is_open_counter { name.strip_suffix("_total").unwrap_or(name) } else { name };
        self.out.push_str("# HELP ");
        self.out.push_str(family_name);
        self.out.push(' ');
        escape(&mut self.out, family.help(), self.format == Format::OpenMetrics);
        let _ = writeln!(self.out, "\n# TYPE {family_name} {kind}");
        let sample = if is_open_counter { format!("{family_name}_total") } else { name.to_owned() };
        self.seen.clear();
        for metric in family.get_metric() {
            let labels = label_text(metric.get_label());
            // Collectors that hand out the same series twice would spoil the whole scrape.
            if self.seen.contains(&labels) {
                continue;
            }
            self.metric(&sample, kind, metric, &labels, exemplars);
            self.seen.insert(labels);
        }
    }

    fn metric(
        &mut self,
        name: &str,
        kind: &str,
        metric: &Metric,
        labels: &str,
        exemplars: Option<&Exemplars>,
    ) {
        match kind {
            "counter" => self.sample(name, labels, "", metric.get_counter().get_value()),
            "gauge" => self.sample(name, labels, "", metric.get_gauge().get_value()),
            "histogram" => {
                let exemplars = exemplars.and_then(|e| e.of(name, metric.get_label()));
                self.histogram(name, metric.get_histogram(), labels, &exemplars.unwrap_or_default());
            }
            _ => {
                let summary = metric.get_summary();
                for quantile in summary.get_quantile() {
                    let label = format!("quantile=\"{}\"", go_float(quantile.quantile()));
                    self.sample(name, labels, &label, quantile.value());
                }
                self.sample(&format!("{name}_sum"), labels, "", summary.sample_sum());
                self.count(&format!("{name}_count"), labels, "", summary.sample_count(), None);
            }
        }
    }

    fn histogram(&mut self, name: &str, histogram: &Histogram, labels: &str, exemplars: &[Option<Exemplar>]) {
        let count = histogram.get_sample_count();
        let bucket_name = format!("{name}_bucket");
        let mut before = 0;
        for (i, bucket) in histogram.get_bucket().iter().enumerate() {
            if bucket.upper_bound().is_infinite() {
                continue;
            }
            // A collector of somebody else may have counted in between: buckets never fall.
            before = before.max(bucket.cumulative_count());
            let le = format!("le=\"{}\"", go_float(bucket.upper_bound()));
            self.count(&bucket_name, labels, &le, before, exemplars.get(i).and_then(Option::as_ref));
        }
        let last = exemplars.get(histogram.get_bucket().len()).and_then(Option::as_ref);
        let count = count.max(before);
        self.count(&bucket_name, labels, "le=\"+Inf\"", count, last);
        self.sample(&format!("{name}_sum"), labels, "", histogram.get_sample_sum());
        self.count(&format!("{name}_count"), labels, "", count, None);
    }

    fn head(&mut self, name: &str, labels: &str, more: &str) {
        self.out.push_str(name);
        if !labels.is_empty() || !more.is_empty() {
            self.out.push('{');
            self.out.push_str(labels);
            if !labels.is_empty() && !more.is_empty() {
                self.out.push(',');
            }
            self.out.push_str(more);
            self.out.push('}');
        }
        self.out.push(' ');
    }

    fn sample(&mut self, name: &str, labels: &str, more: &str, value: f64) {
        self.head(name, labels, more);
        match (value.is_nan(), value.is_infinite()) {
            (true, _) => self.out.push_str("NaN"),
            (_, true) => self.out.push_str(if value < 0.0 { "-Inf" } else { "+Inf" }),
            // Integers stay integers, and nothing is rounded.
            (false, false) => {
                let _ = write!(self.out, "{value}");
            }
        }
        self.out.push('\n');
    }

    fn count(&mut self, name: &str, labels: &str, more: &str, value: u64, exemplar: Option<&Exemplar>) {
        self.head(name, labels, more);
        let _ = write!(self.out, "{value}");
        if let Some(Exemplar { trace_id, value, at }) = exemplar {
            let _ = write!(self.out, " # {{trace_id=\"{trace_id}\"}} {value} {at:.3}");
        }
        self.out.push('\n');
    }
}

fn label_text(labels: &[LabelPair]) -> String {
    let mut text = String::new();
    for label in labels {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(label.name());
        text.push_str("=\"");
        escape(&mut text, label.value(), true);
        text.push('"');
    }
    text
}

fn escape(out: &mut String, text: &str, with_quotes: bool) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if with_quotes => out.push_str("\\\""),
            // No escape is known for it, and OpenMetrics allows none in a line.
            '\r' => out.push(' '),
            c => out.push(c),
        }
    }
}

/// As Go's OpenMetrics writer does: the shortest digits, an exponent below 1e-4 and from 1e6, and a
/// fraction in every number without one.
fn go_float(value: f64) -> String {
    if value == f64::INFINITY {
        return "+Inf".into();
    }
    // `{:e}` has the shortest digits: "5e-5", "1.024e2".
    let text = format!("{value:e}");
    let exponent: i32 = text.rsplit_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    if value != 0.0 && !(-4..6).contains(&exponent) {
        let digits = text.rsplit_once('e').map_or(text.as_str(), |(digits, _)| digits);
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = value.to_string();
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

#[cfg(test)]
mod tests;
