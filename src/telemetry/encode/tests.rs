use prometheus::{
    Counter, CounterVec, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts,
    Registry,
    core::{Collector, Desc},
};

use super::*;
use crate::telemetry::buckets;

const OPEN: Option<&str> = Some("application/openmetrics-text; version=1.0.0");

fn registry() -> Registry {
    let registry = Registry::new();
    let applied =
        IntCounterVec::new(Opts::new("b_blocks_total", "Blocks\\applied.\nEach \"once\"."), &["kind"])
            .unwrap();
    applied.with_label_values(&["a\"b\\c\nd"]).inc_by(9_007_199_254_740_993);
    applied.with_label_values(&[""]).inc();
    let cpu = Counter::new("b_cpu_seconds_total", "CPU.").unwrap();
    cpu.inc_by(0.25);
    let info = IntGaugeVec::new(Opts::new("b_build_info", "Build."), &["version", "revision"]).unwrap();
    info.with_label_values(&["0.1.0", "abc"]).set(1);
    let odd = Gauge::new("b_odd", "Odd values.").unwrap();
    odd.set(f64::NEG_INFINITY);
    let seconds = HistogramOpts::new("b_stage_seconds", "Stages.").buckets(vec![50e-6, 1e-4, 1.0, 819.2]);
    let stages = HistogramVec::new(seconds, &["stage"]).unwrap();
    for value in [25e-6, 50e-6, 0.5, 1e3] {
        stages.with_label_values(&["queue"]).observe(value);
    }
    let plain =
        Histogram::with_opts(HistogramOpts::new("b_batch", "Batches.").buckets(vec![1.0, 4096.0])).unwrap();
    for collector in [
        Box::new(applied) as Box<dyn Collector>,
        Box::new(cpu),
        Box::new(info),
        Box::new(odd),
        Box::new(stages),
        Box::new(plain),
    ] {
        registry.register(collector).unwrap();
    }
    registry
}

#[test]
fn plain_text_to_the_byte() {
    let (content_type, body) = encode(&registry().gather(), None, None);
    assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(
        body,
        r#"# HELP b_batch Batches.
# TYPE b_batch histogram
b_batch_bucket{le="1.0"} 0
b_batch_bucket{le="4096.0"} 0
b_batch_bucket{le="+Inf"} 0
b_batch_sum 0
b_batch_count 0
# HELP b_blocks_total Blocks\\applied.\nEach "once".
# TYPE b_blocks_total counter
b_blocks_total{kind=""} 1
b_blocks_total{kind="a\"b\\c\nd"} 9007199254740992
# HELP b_build_info Build.
# TYPE b_build_info gauge
b_build_info{revision="abc",version="0.1.0"} 1
# HELP b_cpu_seconds_total CPU.
# TYPE b_cpu_seconds_total counter
b_cpu_seconds_total 0.25
# HELP b_odd Odd values.
# TYPE b_odd gauge
b_odd -Inf
# HELP b_stage_seconds Stages.
# TYPE b_stage_seconds histogram
b_stage_seconds_bucket{stage="queue",le="5e-05"} 2
b_stage_seconds_bucket{stage="queue",le="0.0001"} 2
b_stage_seconds_bucket{stage="queue",le="1.0"} 3
b_stage_seconds_bucket{stage="queue",le="819.2"} 3
b_stage_seconds_bucket{stage="queue",le="+Inf"} 4
b_stage_seconds_sum{stage="queue"} 1000.500075
b_stage_seconds_count{stage="queue"} 4
"#
    );
}

#[test]
fn open_metrics_to_the_byte() {
    let exemplars = Exemplars::default();
    let bounds = [50e-6, 1e-4, 1.0, 819.2];
    exemplars.series("b_stage_seconds", &[("stage", "queue")], &bounds).observe(1e3, [0xab; 16]);
    exemplars.series("b_stage_seconds", &[("stage", "queue")], &bounds).observe(50e-6, [0x01; 16]);
    exemplars.series("b_stage_seconds", &[("stage", "apply")], &bounds).observe(0.5, [0x02; 16]);
    let (content_type, body) = encode(&registry().gather(), Some(&exemplars), OPEN);
    assert_eq!(content_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    // The time of an exemplar is the clock's.
    let body: Vec<_> = body
        .lines()
        .map(|l| l.rsplit_once(" 1").filter(|_| l.contains(" # ")).map_or(l, |(l, _)| l))
        .collect();
    let expected = [
        "# HELP b_blocks Blocks\\\\applied.\\nEach \\\"once\\\".",
        "# TYPE b_blocks counter",
        "b_blocks_total{kind=\"\"} 1",
        "# TYPE b_cpu_seconds counter",
        "b_cpu_seconds_total 0.25",
        "b_stage_seconds_bucket{stage=\"queue\",le=\"5e-05\"} 2 # {trace_id=\"01010101010101010101010101010101\"} 0.00005",
        "b_stage_seconds_bucket{stage=\"queue\",le=\"+Inf\"} 4 # {trace_id=\"abababababababababababababababab\"} 1000",
    ];
    for line in expected {
        assert!(body.contains(&line), "{line} is not in\n{}", body.join("\n"));
    }
    assert_eq!(body.last(), Some(&"# EOF"));
    assert_eq!(body.iter().filter(|l| l.contains(" # ")).count(), 2);
}

/// Hands out a series twice, and a histogram whose buckets fall.
struct Broken(Desc);

impl Collector for Broken {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut metric = Metric::from_label(Vec::new());
        let mut histogram = prometheus::proto::Histogram::default();
        histogram.set_bucket(
            [(1.0, 5), (2.0, 3), (f64::INFINITY, 9)]
                .map(|(bound, n)| {
                    let mut bucket = prometheus::proto::Bucket::default();
                    bucket.set_upper_bound(bound);
                    bucket.set_cumulative_count(n);
                    bucket
                })
                .to_vec(),
        );
        histogram.set_sample_count(4);
        metric.set_histogram(histogram);
        let mut family = MetricFamily::default();
        family.set_name("b_broken".into());
        family.set_help("Broken.".into());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(vec![metric.clone(), metric]);
        vec![family]
    }
}

#[test]
fn every_series_once_and_buckets_never_fall() {
    let registry = registry();
    let desc =
        Desc::new("b_broken".into(), "Broken.".into(), vec![], std::collections::HashMap::new()).unwrap();
    registry.register(Box::new(Broken(desc))).unwrap();
    for accept in [None, OPEN] {
        let (_, body) = encode(&registry.gather(), None, accept);
        assert!(body.ends_with('\n') && !body.contains("\n\n") && !body.contains('\r'));
        let mut seen = HashSet::new();
        let mut last: Option<(String, u64)> = None;
        for line in body.lines().filter(|l| !l.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            assert!(seen.insert(series.to_owned()), "{series} twice");
            if let Some((name, _)) = series.split_once("le=\"") {
                let n: u64 = value.parse().expect("a count");
                assert!(last.as_ref().is_none_or(|(of, before)| of != name || *before <= n), "{line}");
                last = Some((name.to_owned(), n));
            } else if series.split('{').next().is_some_and(|n| n.ends_with("_count")) {
                assert_eq!(
                    last.take().map(|(_, n)| n.to_string()).as_deref(),
                    Some(value),
                    "+Inf is not the count"
                );
            }
        }
        assert!(body.contains("b_broken_bucket{le=\"+Inf\"} 5\n") && body.contains("b_broken_count 5\n"));
    }
}

#[test]
fn a_family_of_floats_keeps_them() {
    let registry = Registry::new();
    let seconds = CounterVec::new(Opts::new("s_total", "S."), &["db"]).unwrap();
    seconds.with_label_values(&["log"]).inc_by(1e-9);
    registry.register(Box::new(seconds)).unwrap();
    assert!(encode(&registry.gather(), None, None).1.contains("s_total{db=\"log\"} 0.000000001\n"));
}

#[test]
fn numbers_as_go_writes_them() {
    for (value, text) in [
        (5e-05, "5e-05"),
        (1e-4, "0.0001"),
        (0.0004, "0.0004"),
        (1.0, "1.0"),
        (13.1072, "13.1072"),
        (4096.0, "4096.0"),
        (655.36, "655.36"),
        (1e6, "1e+06"),
        (123_456.0, "123456.0"),
        (1.25e-7, "1.25e-07"),
        (0.0, "0.0"),
        (f64::INFINITY, "+Inf"),
    ] {
        assert_eq!(go_float(value), text);
    }
    let stages: Vec<_> = buckets::stage().into_iter().map(go_float).collect();
    assert_eq!(stages[..4], ["5e-05", "0.0001", "0.0002", "0.0004"]);
    assert_eq!(stages.last().map(String::as_str), Some("13.1072"));
    assert_eq!(buckets::snapshot().into_iter().map(go_float).next_back().as_deref(), Some("655.36"));
}

#[test]
fn open_metrics_only_where_it_is_asked_for() {
    let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    for (accept, format) in [
        (Some(prometheus_2), Format::OpenMetrics),
        (Some(prometheus_3), Format::OpenMetrics),
        (Some("application/openmetrics-text"), Format::OpenMetrics),
        (Some("Application/OpenMetrics-Text; Version=1.0.0"), Format::OpenMetrics),
        (Some("application/openmetrics-text;version=2.0.0"), Format::Text),
        (Some("application/openmetrics-text;q=0"), Format::Text),
        (Some("text/plain,application/openmetrics-text;q=0.5"), Format::Text),
        (Some("*/*"), Format::Text),
        (Some("text/html,application/xhtml+xml"), Format::Text),
        (Some(""), Format::Text),
        (None, Format::Text),
    ] {
        assert_eq!(negotiate(accept), format, "{accept:?}");
    }
}
