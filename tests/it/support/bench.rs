//! `blockraft bench` against a cluster of a test, and what it costs the nodes.

use std::{fs, process::Stdio};

use anyhow::Context;
use serde_json::Value;

use crate::support::{cluster::Cluster, node::binary};

/// Ticks of a second in `/proc/PID/stat`: fixed by the kernel's interface.
const TICKS: f64 = 100.0;

/// A bound of a long run, from the environment.
pub(crate) fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{name}={v} is no number")))
}

/// One run after a second of warm-up; what it measured.
#[track_caller]
pub(crate) fn bench(cluster: &Cluster, args: &[(&str, String)]) -> Value {
    let endpoints: Vec<String> = cluster.endpoints().into_iter().map(|(_, api)| api).collect();
    let output = binary()
        .args(["bench", "--yes", "--json", "--warmup", "1s", "--endpoints", &endpoints.join(",")])
        .args(args.iter().flat_map(|(name, value)| [*name, value.as_str()]))
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts");
    assert!(output.status.success(), "bench: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Seconds of CPU that a process has used.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may hold anything.
    let (_, rest) = stat.rsplit_once(')').context("no name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).context("no ticks");
    // utime and stime: 14 and 15, counted from the pid.
    Ok((ticks(11)? + ticks(12)?) / TICKS)
}

/// What a process holds in memory, in MiB.
pub(crate) fn rss_mib(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? >> 10)
}

/// The one in the middle, and the two at the ends.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> (f64, f64, f64) {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    assert!(!values.is_empty(), "nothing was measured");
    let n = values.len();
    ((values[(n - 1) / 2] + values[n / 2]) / 2.0, values[0], values[n - 1])
}
