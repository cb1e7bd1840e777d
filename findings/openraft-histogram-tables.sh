#!/usr/bin/env bash
# openraft 0.10.0-alpha.37 costs a process 25 MiB before it does anything: its first histogram (base2histogram 0.2.3, one
# per raft core, also with the feature runtime-stats off) makes lookup tables for all sixteen widths it knows.
#
# One would expect what the crate says of a histogram: 252 counters, 2 KiB. But the tables of all widths are one lazy
# static that is made whole at the first use of any of them, and that of the widest, which nobody asked for, has 1.6
# million edges of buckets. They are never read again, and stay. Output seen with rustc 1.95 on x86-64:
#
#   before: 2 MiB
#   after one histogram of 252 buckets: 28 MiB
#
# blockraft builds with a stand-in that computes the edges (patches/base2histogram). Fails when it is otherwise.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "tables"
version = "0.0.0"
edition = "2021"

[dependencies]
openraft = { version = "=0.10.0-alpha.37", default-features = false, features = ["tokio-rt"] }
base2histogram = "=0.2.3"

[workspace]
TOML
cat >"$dir/src/main.rs" <<'RS'
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("it is told");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
}

fn main() {
    let before = resident_mib();
    println!("before: {before} MiB");
    let mut histogram = openraft::stats::Histogram::<()>::new();
    histogram.record(1);
    let after = resident_mib();
    println!("after one histogram of 252 buckets: {after} MiB");
    if after < before + 20 {
        eprintln!("finding no longer holds: {} MiB", after - before);
        std::process::exit(1);
    }
}
RS
(cd "$dir" && CARGO_TARGET_DIR="$dir/target" cargo run -q --release)
echo "finding holds: one histogram costs more than 20 MiB"
