#!/usr/bin/env bash
# The `prometheus` crate (0.14.0, feature `process`) exports process_cpu_seconds_total in whole seconds: a process that has
# used 0.9 s of CPU time has used none.
#
# One would expect the hundredths that the kernel counts, as Prometheus' own libraries for Go and Python export them: a
# sample is a floating point number, and the unit of the metric is the second. The crate keeps it in an integer. Output seen with rustc 1.95 on Linux, CPU time as the kernel tells it beside the metric:
#
#   0.9 s used: process_cpu_seconds_total 0
#   1.9 s used: process_cpu_seconds_total 1
#
# rate() over a minute of a service that takes 1 % is zero most of the time and a peak now and then, so an alert on CPU
# time has nothing to go by. blockraft exports its own (telemetry/process.rs). Fails when the crate does otherwise.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$dir/target}"
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "seconds"
version = "0.0.0"
edition = "2021"

[dependencies]
prometheus = { version = "=0.14.0", features = ["process"] }

[workspace]
TOML
cat >"$dir/src/main.rs" <<'RS'
/// CPU time of this process so far, in the kernel's ticks of 10 ms.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let (_, fields) = stat.rsplit_once(')').expect("the name is in parentheses");
    let field = |n: usize| fields.split_whitespace().nth(n).and_then(|f| f.parse::<u64>().ok()).expect("a number");
    field(11) + field(12)
}

fn exported() -> String {
    let text = prometheus::TextEncoder::new().encode_to_string(&prometheus::gather()).expect("it is text");
    let line = text.lines().find(|l| l.starts_with("process_cpu_seconds_total ")).expect("it is exported");
    line.to_owned()
}

fn main() {
    let mut seen = Vec::new();
    for upto in [90, 190] {
        while ticks() < upto {
            std::hint::black_box((0..100_000u64).fold(0, |sum, n| std::hint::black_box(sum ^ n)));
        }
        let line = exported();
        println!("{:.1} s used: {line}", upto as f64 / 100.0);
        seen.push(line);
    }
    if seen != ["process_cpu_seconds_total 0", "process_cpu_seconds_total 1"] {
        eprintln!("finding no longer holds");
        std::process::exit(1);
    }
}
RS
cd "$dir"
cargo run -q --release
echo "finding holds: CPU time is exported in whole seconds"
