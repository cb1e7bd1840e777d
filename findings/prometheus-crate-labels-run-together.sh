#!/usr/bin/env bash
# The `prometheus` crate (0.14.0) counts two sets of label values as one when their values, written one behind the other, are
# the same text: from="1", to="12" and from="11", to="2" are one counter.
#
# One would expect what its documentation says, a new metric for each combination of values. But a child is found by a hash
# over the bytes of all values with nothing between them, and what is found is not compared. Prometheus' library for Go
# puts a byte between that cannot occur, and compares. Output seen with rustc 1.95:
#
#   ("1", "12") counted 5, ("11", "2") counted 7, and then:
#   messages_total{from="1",to="12"} 12
#   ("11", "2") is removed, and then:
#   (nothing)
#
# Nodes are numbered, and from 11 on a metric by two of them adds up two links under the name of the one that came first; so
# do a port and a shard, or an empty value before or behind another. Put a letter in one of the values. No two labels
# of blockraft's stand side by side with values that can be taken so. Fails when the crate does otherwise.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$dir/target}"
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "labels"
version = "0.0.0"
edition = "2021"

[dependencies]
prometheus = { version = "=0.14.0", default-features = false }

[workspace]
TOML
cat >"$dir/src/main.rs" <<'RS'
use prometheus::{Encoder, IntCounterVec, Opts, Registry, TextEncoder};

/// The samples, without the comments.
fn samples(registry: &Registry) -> String {
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text).expect("it is text");
    let text = String::from_utf8(text).expect("it is text");
    text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
}

fn main() {
    let registry = Registry::new();
    let opts = Opts::new("messages_total", "Messages between two nodes.");
    let messages = IntCounterVec::new(opts, &["from", "to"]).expect("a name");
    registry.register(Box::new(messages.clone())).expect("nothing else is there");
    messages.with_label_values(&["1", "12"]).inc_by(5);
    messages.with_label_values(&["11", "2"]).inc_by(7);
    let counted = samples(&registry);
    println!("(\"1\", \"12\") counted 5, (\"11\", \"2\") counted 7, and then:\n{counted}");
    messages.remove_label_values(&["11", "2"]).expect("it is there");
    let left = samples(&registry);
    println!("(\"11\", \"2\") is removed, and then:\n{}", if left.is_empty() { "(nothing)" } else { &left });
    let holds = counted == r#"messages_total{from="1",to="12"} 12"# && left.is_empty();
    std::process::exit(i32::from(!holds));
}
RS
cd "$dir"
if cargo run -q --release; then
  echo "finding holds: label values that run together to the same text are one metric"
else
  echo "finding no longer holds" >&2
  exit 1
fi
