//! What it costs to be watched.
//!
//! | test | attacks |
//! | --- | --- |
//! | watching_takes_no_block_away | design 12: everything on beside everything off, taking turns on fresh clusters |
//!
//! On: spans to a receiver over gRPC, each node scraped once a second with exemplars, lines at info. Off: none
//! of it. No figure is asserted; `make observe-cost` is the long run, with the figures printed.

use std::{
    fmt::Write as _,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::Value;

use crate::support::{
    bench::{bench, cpu_seconds, median, number},
    cluster::Cluster,
    config::{Settings, settings},
    exposition::Scrape,
    http,
    otlp::Receiver,
};

/// One writer, and as many blocks in flight as a batch is worth.
const IN_FLIGHT: [u64; 2] = [1, 64];
const EVERY: Duration = Duration::from_secs(1);

/// One run on a cluster of its own.
struct Cell {
    in_flight: u64,
    is_on: bool,
    bench: Value,
    /// Of all nodes, for each block.
    cpu_us: f64,
    n_spans: f64,
}

impl Cell {
    fn per_second(&self) -> f64 {
        self.bench["blocksPerSecond"].as_f64().expect("a number")
    }

    fn p99_ms(&self) -> f64 {
        self.bench["latencyUs"]["p99"].as_f64().expect("a number") / 1e3
    }
}

/// Reads `/metrics` of every node once a second, as a server would.
struct Scraper {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<usize>,
}

impl Scraper {
    fn start(cluster: &Cluster) -> Self {
        let (stop, stopped) = mpsc::channel::<()>();
        let nodes = cluster.endpoints();
        let thread = thread::spawn(move || {
            let accept = [("Accept", "application/openmetrics-text; version=1.0.0")];
            let mut n_scrapes = 0;
            loop {
                for (_, api) in &nodes {
                    let answer = http::request(api, "GET", "/metrics", &accept, b"").expect("it answers");
                    assert_eq!(answer.status, 200);
                    n_scrapes += 1;
                }
                if stopped.recv_timeout(EVERY) != Err(mpsc::RecvTimeoutError::Timeout) {
                    return n_scrapes;
                }
            }
        });
        Self { stop, thread }
    }

    fn end(self) -> usize {
        drop(self.stop);
        self.thread.join().expect("every scrape is answered")
    }
}

#[test]
fn watching_takes_no_block_away() {
    let (rounds, seconds) = (number("OBSERVE_COST_ROUNDS", 1), number("OBSERVE_COST_SECONDS", 1));
    let mut cells = Vec::new();
    for round in 0..rounds {
        for in_flight in IN_FLIGHT {
            // Neither is always the first.
            for is_on in [round % 2 == 1, round % 2 == 0] {
                cells.push(cell(in_flight, is_on, seconds));
            }
        }
    }
    report(&cells);
}

fn cell(in_flight: u64, is_on: bool, seconds: u64) -> Cell {
    let receiver = Receiver::counting();
    let on = || {
        settings([
            ("telemetry.otlp_endpoint", receiver.endpoint.as_str().into()),
            ("telemetry.log_filter", "info".into()),
        ])
    };
    let off = || settings([("telemetry.log_filter", "off".into())]);
    let mut all: Settings = if is_on { on() } else { off() };
    all.extend(settings([("state.history_blocks", 10_000.into())]));
    let cluster = Cluster::three(all);
    let scraper = is_on.then(|| Scraper::start(&cluster));
    let cpu = |cluster: &Cluster| -> f64 {
        cluster.nodes.iter().map(|n| cpu_seconds(n.pid()).expect("it runs")).sum()
    };
    let (cpu_before, applied_before) = (cpu(&cluster), applied(&cluster));
    let found = bench(
        &cluster,
        &[
            ("--in-flight", in_flight.to_string()),
            ("--size", "256".into()),
            ("--duration", format!("{seconds}s")),
        ],
    );
    let n_blocks = applied(&cluster) - applied_before;
    let cpu_us = 1e6 * (cpu(&cluster) - cpu_before) / n_blocks;
    if let Some(scraper) = scraper {
        assert!(cluster.nodes.len() < scraper.end(), "each node was scraped more than once");
    }
    let n_spans: f64 = sum(&cluster, "blockraft_telemetry_spans_exported_total");
    let dropped = sum(&cluster, "blockraft_telemetry_spans_dropped_total");
    assert_eq!(is_on, 0 < receiver.n_requests(), "spans leave where they are asked for");
    assert!(dropped == 0.0, "{dropped} spans were dropped, {n_spans} exported");
    cluster.end();
    Cell { in_flight, is_on, bench: found, cpu_us, n_spans }
}

fn sum(cluster: &Cluster, name: &str) -> f64 {
    let of = |api: &str| {
        let answer = http::request(api, "GET", "/metrics", &[], b"").expect("it answers");
        Scrape::parse(&answer.text()).get(name, &[]).expect("it is there from the start")
    };
    cluster.endpoints().iter().map(|(_, api)| of(api)).sum()
}

/// Blocks, as the node with the most counts them.
fn applied(cluster: &Cluster) -> f64 {
    let heights = cluster.nodes.iter().map(|n| cluster.height(n.id));
    heights.max().expect("a node") as f64
}

/// For `benches/README.md`.
fn report(cells: &[Cell]) {
    let mut out = String::from(
        "| in flight | blocks/s off | blocks/s on | on ÷ off, by round | p99 ms off | p99 ms on | CPU µs a block off | on | spans a second |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for in_flight in IN_FLIGHT {
        let of = |is_on: bool| cells.iter().filter(move |c| c.in_flight == in_flight && c.is_on == is_on);
        let shown = |(middle, low, high): (f64, f64, f64), digits: usize| {
            format!("{middle:.digits$} ({low:.digits$}–{high:.digits$})")
        };
        let rate = |is_on| shown(median(of(is_on).map(Cell::per_second)), 0);
        let p99 = |is_on| shown(median(of(is_on).map(Cell::p99_ms)), 2);
        let cpu = |is_on| shown(median(of(is_on).map(|c| c.cpu_us)), 0);
        let ratios = of(true).zip(of(false)).map(|(on, off)| on.per_second() / off.per_second());
        let seconds = |c: &Cell| c.bench["measuredMs"].as_f64().expect("a number") / 1e3 + 1.0;
        let spans = median(of(true).map(|c| c.n_spans / seconds(c)));
        let _ = writeln!(
            out,
            "| {in_flight} | {} | {} | {} | {} | {} | {} | {} | {:.0} |",
            rate(false),
            rate(true),
            shown(median(ratios), 3),
            p99(false),
            p99(true),
            cpu(false),
            cpu(true),
            spans.0
        );
    }
    #[expect(clippy::print_stdout, reason = "the figures are what a long run is for")]
    {
        println!("{out}");
    }
}
