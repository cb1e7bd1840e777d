//! The standard `process_*` metrics, read from `/proc` at each scrape.
//!
//! The prometheus crate's own collector counts CPU in whole seconds; this one in ticks of 10 ms.

use std::{collections::HashMap, fs, io};

use prometheus::{
    Registry,
    core::{Collector, Desc},
    proto::{MetricFamily, MetricType},
};

use crate::telemetry::family;

/// Linux's USER_HZ, which `/proc` counts in on every architecture we build for.
const TICKS_PER_SECOND: f64 = 100.0;

const FAMILIES: [(&str, &str, MetricType); 8] = [
    ("process_cpu_seconds_total", "User and system CPU time spent, in seconds.", MetricType::COUNTER),
    ("process_open_fds", "Open file descriptors.", MetricType::GAUGE),
    ("process_max_fds", "Limit of open file descriptors.", MetricType::GAUGE),
    ("process_virtual_memory_bytes", "Size of the virtual memory, in bytes.", MetricType::GAUGE),
    (
        "process_virtual_memory_max_bytes",
        "Limit of the virtual memory, in bytes; -1: none.",
        MetricType::GAUGE,
    ),
    ("process_resident_memory_bytes", "Size of the resident memory, in bytes.", MetricType::GAUGE),
    ("process_start_time_seconds", "Start of the process, in seconds since the epoch.", MetricType::GAUGE),
    ("process_threads", "Threads of the process.", MetricType::GAUGE),
];

/// Registers the metrics of this process. An error of `/proc` shows here, not at the first scrape.
pub(crate) fn register(registry: &Registry) -> Result<(), RegisterError> {
    let started_at = started_at()?;
    let descs = FAMILIES
        .iter()
        .map(|(name, help, _)| Desc::new((*name).to_owned(), (*help).to_owned(), vec![], HashMap::new()))
        .collect::<Result<_, _>>()?;
    registry.register(Box::new(Process { descs, started_at }))?;
    Ok(())
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    #[error("/proc cannot be read")]
    Proc(#[from] io::Error),
    #[error("the metrics of the process cannot be registered")]
    Metric(#[from] prometheus::Error),
}

struct Process {
    descs: Vec<Desc>,
    /// Seconds since the epoch.
    started_at: f64,
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    /// What `/proc` does not tell is left out of this scrape.
    fn collect(&self) -> Vec<MetricFamily> {
        let stat = Stat::read().ok();
        let (max_fds, max_memory) = limits();
        let values = [
            stat.as_ref().map(|s| s.cpu_ticks as f64 / TICKS_PER_SECOND),
            open_fds(),
            max_fds,
            stat.as_ref().map(|s| s.virtual_bytes as f64),
            max_memory,
            resident_bytes(),
            Some(self.started_at),
            stat.as_ref().map(|s| s.threads as f64),
        ];
        let families = FAMILIES.iter().zip(values);
        let one = |((name, help, kind), value): (&(&str, &str, MetricType), Option<f64>)| match kind {
            MetricType::COUNTER => Some(family::counter(name, help, value?)),
            _ => Some(family::gauge(name, help, value?)),
        };
        families.filter_map(one).collect()
    }
}

/// What of `/proc/self/stat` is used.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    /// Since boot.
    start_ticks: u64,
    virtual_bytes: u64,
}

impl Stat {
    fn read() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/self/stat")?;
        Self::parse(&text)
            .ok_or_else(|| io::Error::other("/proc/self/stat has another form than proc(5) says"))
    }

    fn parse(text: &str) -> Option<Self> {
        // The name of the program stands in brackets, and may hold spaces and brackets.
        let rest = text.rsplit_once(')')?.1;
        // The first field behind it is the third of proc(5).
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
        })
    }
}

fn started_at() -> io::Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let boot: f64 = text
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("/proc/stat has no btime"))?;
    Ok(boot + Stat::read()?.start_ticks as f64 / TICKS_PER_SECOND)
}

fn open_fds() -> Option<f64> {
    // Listing the folder opens one more.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

/// In KiB there, so that the size of a page need not be known.
fn resident_bytes() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_ascii_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
}

/// Soft limits of open files and of memory; -1: none.
fn limits() -> (Option<f64>, Option<f64>) {
    let text = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?;
        if value == "unlimited" { Some(-1.0) } else { value.parse().ok() }
    };
    (limit("Max open files"), limit("Max address space"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::encode::encode;

    #[test]
    fn a_name_with_brackets_and_spaces_is_no_field() {
        let text = "7 (a) b (c) S 1 1 1 0 -1 4194560 107 0 0 0 250 125 0 0 20 0 9 0 8600 1048576 200 18446744073709551615";
        assert_eq!(
            Stat::parse(text),
            Some(Stat { cpu_ticks: 375, threads: 9, start_ticks: 8600, virtual_bytes: 1 << 20 })
        );
        assert_eq!(Stat::parse("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_is_told_of() {
        let registry = Registry::new();
        register(&registry).expect("/proc is there");
        // Spend more than a tick.
        let started = std::time::Instant::now();
        while started.elapsed() < std::time::Duration::from_millis(30) {
            std::hint::black_box(0);
        }
        let (_, body) = encode(&registry.gather(), None, None);
        let value = |name: &str| -> f64 {
            let line =
                body.lines().find(|l| l.split(' ').next() == Some(name)).unwrap_or_else(|| panic!("{name}"));
            line.rsplit_once(' ').expect("a value").1.parse().expect("a number")
        };
        assert!(0.0 < value("process_cpu_seconds_total"));
        assert!(3.0 <= value("process_open_fds") && value("process_open_fds") < value("process_max_fds"));
        assert!(1e6 < value("process_resident_memory_bytes"));
        assert!(value("process_resident_memory_bytes") < value("process_virtual_memory_bytes"));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let age = now.as_secs_f64() - value("process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "started {age} s ago");
        assert!(1.0 <= value("process_threads"));
    }
}
