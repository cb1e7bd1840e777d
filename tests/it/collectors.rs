//! Collectors that do not take what they are sent: each shows in the counter that is meant for it and in one line, and no
//! block waits.
//!
//! | test | attacks |
//! | --- | --- |
//! | what_a_collector_rejects_… | a partial success counted as a whole one |
//! | a_collector_that_asks_for_patience_… | an exporter that sleeps, and a queue behind it that holds blocks up |
//! | a_redirect_is_a_failure_… | spans posted to somewhere nobody named |
//! | a_variable_that_is_wrong_… | a wrong variable that is silently taken for another |

use crate::support::{
    block::Block,
    cluster::Cluster,
    config::settings,
    otlp::{Manner, Receiver},
    stream::fill,
    wait::{LATER, wait_for},
};

/// One node that exports every block's tree.
fn exporting(receiver: &Receiver, words: &[&str]) -> Cluster {
    let mut cluster = Cluster::new(
        1,
        settings([
            ("telemetry.otlp_endpoint", receiver.endpoint.as_str().into()),
            ("telemetry.otlp_protocol", "http".into()),
            ("telemetry.traces_per_second", 1000.into()),
        ]),
    );
    words.iter().for_each(|w| cluster.allow(w));
    cluster.start();
    cluster
}

fn feed(cluster: &Cluster, heights: std::ops::RangeInclusive<u64>) {
    let blocks: Vec<_> = heights.map(|h| Block::new(h, "collected")).collect();
    fill(&cluster.node(1).api, &blocks);
}

fn exported(cluster: &Cluster) -> f64 {
    cluster.node(1).counted("blockraft_telemetry_spans_exported_total", &[])
}

fn dropped(cluster: &Cluster, reason: &str) -> f64 {
    cluster.node(1).counted("blockraft_telemetry_spans_dropped_total", &[("reason", reason)])
}

fn failures(cluster: &Cluster) -> f64 {
    cluster.node(1).counted("blockraft_telemetry_export_failures_total", &[])
}

/// How often the log says that spans are lost.
fn warnings(cluster: &Cluster) -> usize {
    cluster.node(1).lines().iter().filter(|l| l.names(&["spans cannot be exported"])).count()
}

const LOST: &str = "spans cannot be exported";

#[test]
fn what_a_collector_rejects_of_a_batch_is_not_counted_as_exported() {
    let receiver = Receiver::of_manner(Manner::Rejects(3));
    let cluster = exporting(&receiver, &[]);
    feed(&cluster, 1..=100);
    wait_for("every span is taken or rejected", LATER, || {
        let (n_sent, n_batches) = (receiver.all().len() as f64, receiver.n_requests() as f64);
        let (taken, rejected) = (exported(&cluster), dropped(&cluster, "rejected"));
        anyhow::ensure!(receiver.of("block.apply").len() == 100, "some blocks are on their way");
        anyhow::ensure!(rejected == 3.0 * n_batches, "{rejected} rejected of {n_batches} batches");
        anyhow::ensure!(taken + rejected == n_sent, "{taken} and {rejected} of {n_sent}");
        Ok(())
    });
    assert_eq!((failures(&cluster), dropped(&cluster, "export")), (0.0, 0.0));
    cluster.end();
}

#[test]
fn a_collector_that_asks_for_patience_costs_spans_and_no_block() {
    // Longer than this test may take: whoever slept for it would fail it.
    let receiver = Receiver::of_manner(Manner::IsBusy(15));
    let cluster = exporting(&receiver, &[LOST]);
    feed(&cluster, 1..=500);
    wait_for("the first batches are lost", LATER, || {
        anyhow::ensure!(1.0 <= failures(&cluster) && 0.0 < dropped(&cluster, "export"), "not yet");
        Ok(())
    });
    feed(&cluster, 501..=1000);
    assert_eq!(cluster.height(1), 1000);
    assert_eq!((exported(&cluster), dropped(&cluster, "rejected")), (0.0, 0.0));
    assert_eq!(warnings(&cluster), 1);
    cluster.end();
}

#[test]
fn a_redirect_is_a_failure_and_is_not_followed() {
    let receiver = Receiver::of_manner(Manner::Redirects);
    let cluster = exporting(&receiver, &[LOST]);
    feed(&cluster, 1..=200);
    wait_for("the spans are lost", LATER, || {
        anyhow::ensure!(200 <= receiver.of("block.apply").len() && 1.0 <= failures(&cluster), "not yet");
        Ok(())
    });
    // Followed, each batch would have come twice.
    assert_eq!(receiver.of("block.apply").len(), 200);
    assert_eq!(exported(&cluster), 0.0);
    assert_eq!(warnings(&cluster), 1);
    cluster.end();
}

#[test]
fn a_variable_that_is_wrong_is_told_by_its_name_and_costs_no_block() {
    let mut cluster = Cluster::new(1, settings([]));
    cluster.allow("a variable of OpenTelemetry is wrong");
    cluster.node_mut(1).env.push(("OTEL_TRACES_SAMPLER_ARG", "most of them".into()));
    cluster.start();
    feed(&cluster, 1..=10);
    cluster.node(1).wait_line(&["OTEL_TRACES_SAMPLER_ARG"]);
    let n = cluster.node(1).lines().iter().filter(|l| l.is_alarming()).count();
    assert_eq!(n, 1, "one line for one variable");
    cluster.end();
}
