//! What a run found, while it runs and at its end.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::json;
use tokio::time::Instant;

use crate::cli::{
    bench::{Args, Path, Run, tally::Tally},
    out,
    table::{Cell, Table, Tone},
    units,
};

/// Between two lines of progress.
const EVERY: Duration = Duration::from_secs(1);

/// A line on stderr each second; never ends.
pub(crate) async fn progress(run: &Run) {
    let mut tick = tokio::time::interval_at(run.arrivals.start() + EVERY, EVERY);
    let mut before = 0;
    loop {
        tick.tick().await;
        let tally = run.tally();
        let since = run.arrivals.start().elapsed().as_secs();
        let mut line = format!("{since:>3} s  {:>7} blocks/s", tally.acked - before);
        if !tally.latencies.is_empty() {
            line += &format!("  p50 {}  p99 {}", at(&tally.latencies, 0.5), at(&tally.latencies, 0.99));
        }
        let refused: u64 = tally.refused.values().sum();
        if 0 < refused {
            line += &format!("  refused {refused}");
        }
        before = tally.acked;
        drop(tally);
        out::note(&line);
    }
}

fn at(latencies: &Histogram<u64>, quantile: f64) -> String {
    units::duration(Duration::from_micros(latencies.value_at_quantile(quantile)))
}

/// Of one run, as it is printed.
pub(crate) struct Findings<'a> {
    args: &'a Args,
    tally: &'a Tally,
    in_flight: usize,
    measured: Duration,
    longest_gap: Duration,
}

impl<'a> Findings<'a> {
    pub(crate) fn new(args: &'a Args, tally: &'a Tally, in_flight: usize) -> Self {
        let now = Instant::now();
        Self { args, tally, in_flight, measured: tally.measured(now), longest_gap: tally.longest_gap(now) }
    }

    fn throughput(&self) -> f64 {
        let seconds = self.measured.as_secs_f64();
        if seconds == 0.0 { 0.0 } else { self.tally.acked_in_window as f64 / seconds }
    }

    /// Of the arrivals that were due, the part that was acknowledged at all.
    fn achieved(&self) -> Option<f64> {
        (0 < self.tally.planned).then(|| self.tally.latencies.len() as f64 / self.tally.planned as f64)
    }

    fn refused(&self) -> u64 {
        self.tally.refused.values().sum()
    }

    pub(crate) fn table(&self, is_colored: bool) -> String {
        let mut t = Table::pairs();
        let load = match self.args.rate {
            Some(rate) => format!("open loop, {rate} blocks/s, at most {} in flight", self.in_flight),
            None => format!("closed loop, {} in flight", self.in_flight),
        };
        let path = match self.args.path {
            Path::Stream => "ordered stream",
            Path::Http => "one HTTP request a block",
            Path::Rpc => "one JSON-RPC call a block",
        };
        let size = units::size(self.args.size as u64);
        t.pair("load", format!("{load}, {size}, {path}, {}", units::duration(self.measured)));
        let throughput = self.throughput();
        let bytes = units::size((throughput * self.args.size as f64) as u64);
        t.pair("throughput", Cell::new(format!("{throughput:.0} blocks/s, {bytes}/s"), Tone::Strong));
        if let Some(achieved) = self.achieved() {
            let tone = if achieved < 0.99 { Tone::Warn } else { Tone::Plain };
            t.pair("achieved", Cell::new(format!("{:.1} % of what was due", 100.0 * achieved), tone));
        }
        let h = &self.tally.latencies;
        if !h.is_empty() {
            let latency = format!(
                "p50 {}  p90 {}  p99 {}  p99.9 {}  max {}",
                at(h, 0.5),
                at(h, 0.9),
                at(h, 0.99),
                at(h, 0.999),
                units::duration(Duration::from_micros(h.max()))
            );
            t.pair("latency", latency);
        }
        t.pair("longest gap", units::duration(self.longest_gap));
        if 0 < self.refused() {
            let by: Vec<String> = self.tally.refused.iter().map(|(why, n)| format!("{why} {n}")).collect();
            t.pair("refused", Cell::new(by.join(", "), Tone::Warn));
        }
        if 0 < self.tally.reconnects {
            t.pair("opened again", Cell::new(self.tally.reconnects.to_string(), Tone::Warn));
        }
        if 0 < self.tally.duplicates {
            t.pair("again", format!("{} blocks were there already", self.tally.duplicates));
        }
        t.render(is_colored)
    }

    pub(crate) fn json(&self) -> String {
        let h = &self.tally.latencies;
        let path = match self.args.path {
            Path::Stream => "stream",
            Path::Http => "http",
            Path::Rpc => "rpc",
        };
        let value = json!({
            "path": path,
            "rate": self.args.rate,
            "inFlight": self.in_flight,
            "sizeBytes": self.args.size,
            "measuredMs": self.measured.as_millis() as u64,
            "blocks": self.tally.acked_in_window,
            "blocksPerSecond": self.throughput(),
            "planned": self.args.rate.map(|_| self.tally.planned),
            "achieved": self.achieved(),
            "latencyUs": {
                "count": h.len(), "min": h.min(), "mean": h.mean(), "p50": h.value_at_quantile(0.5),
                "p90": h.value_at_quantile(0.9), "p99": h.value_at_quantile(0.99),
                "p999": h.value_at_quantile(0.999), "max": h.max(),
            },
            "longestGapMs": self.longest_gap.as_millis() as u64,
            "refused": self.refused(),
            "refusedBy": self.tally.refused,
            "duplicates": self.tally.duplicates,
            "reconnects": self.tally.reconnects,
        });
        let raw = serde_json::value::to_raw_value(&value).expect("a value is JSON");
        out::pretty(&raw) + "\n"
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &str) -> Args {
        Line::try_parse_from(std::iter::once("bench").chain(line.split_whitespace()))
            .expect("well-formed")
            .args
    }

    fn tally() -> Tally {
        let to = Instant::now();
        let from = to - Duration::from_secs(2);
        let mut tally = Tally::new(from, to);
        tally.planned = 2_000;
        for i in 0..1_980 {
            let due = from + Duration::from_millis(i);
            tally.acked(due, due + Duration::from_micros(500), false);
        }
        tally.refused("gap");
        tally
    }

    #[test]
    fn an_open_loop_says_what_was_achieved() {
        let (args, tally) = (args("--rate 1000 --size 1KiB"), tally());
        let result = Findings::new(&args, &tally, 2_048);
        let text = result.table(false);
        for want in
            ["990 blocks/s, 990.0 KiB/s", "99.0 % of what was due", "p50 0.50 ms", "refused      gap 1"]
        {
            assert!(text.contains(want), "{want} in {text}");
        }
        let json: serde_json::Value = serde_json::from_str(&result.json()).expect("JSON");
        assert_eq!(json["blocks"], 1_980);
        assert_eq!(json["refusedBy"]["gap"], 1);
        assert_eq!(json["achieved"], 0.99);
        assert_eq!(json["latencyUs"]["p50"], 500);
    }

    #[test]
    fn a_closed_loop_has_no_plan() {
        let (args, mut tally) = (args("--in-flight 8 --path rpc"), tally());
        tally.planned = 0;
        let json: serde_json::Value =
            serde_json::from_str(&Findings::new(&args, &tally, 8).json()).expect("JSON");
        assert!(json["achieved"].is_null() && json["planned"].is_null());
        assert_eq!(json["path"], "rpc");
    }
}
