#!/usr/bin/env bash
# openraft 0.10.0-alpha.37 costs a process 26 MiB of memory before it holds one entry: each raft core has a histogram
# (base2histogram 0.2.3), with the feature runtime-stats off too, and the first one makes lookup tables for all sixteen
# widths that the crate knows.
#
# One would expect what it says of a histogram: 252 counters, 2 KiB. But the tables of all widths are one lazy static that
# is made whole at the first use of any; that of the widest, which nobody asked for, has 1.6 million edges of buckets.
# They are never read, and stay. Output seen with rustc 1.95 on x86-64, anonymous memory, a store in memory:
#
#   one raft node: 26 MiB more
#   one histogram: 25 MiB more
#
# blockraft builds with a stand-in that computes the edges (patches/base2histogram). Fails when it is otherwise.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$dir/target}"
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "tables"
version = "0.0.0"
edition = "2021"

[dependencies]
openraft = "=0.10.0-alpha.37"
openraft-memstore = "=0.10.0-alpha.37"
base2histogram = "=0.2.3"
tokio = { version = "1", features = ["rt-multi-thread", "macros"] }

[workspace]
TOML
cat >"$dir/src/main.rs" <<'RS'
use std::{future::Future, io::Cursor, sync::Arc};

use openraft::error::{RPCError, ReplicationClosed, StreamingError};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::*;
use openraft::type_config::alias::{SnapshotOf, VoteOf};
use openraft_memstore::TypeConfig;

/// The one node has nobody to call.
struct Nobody;

impl RaftNetworkFactory<TypeConfig> for Nobody {
    type Network = Nobody;

    async fn new_client(&mut self, _: u64, _: &()) -> Nobody {
        Nobody
    }
}

impl RaftNetworkV2<TypeConfig> for Nobody {
    type SnapshotData = Cursor<Vec<u8>>;

    async fn append_entries(
        &mut self,
        _: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        unreachable!()
    }

    async fn vote(
        &mut self,
        _: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        unreachable!()
    }

    async fn full_snapshot(
        &mut self,
        _: VoteOf<TypeConfig>,
        _: SnapshotOf<TypeConfig, Self::SnapshotData>,
        _: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        unreachable!()
    }
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).expect("it is told");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
}

#[tokio::main]
async fn main() {
    let histogram = std::env::args().nth(1).as_deref() == Some("histogram");
    let before = resident_mib();
    if histogram {
        base2histogram::Histogram::<()>::new().record(1);
    } else {
        let (log, machine) = openraft_memstore::new_mem_store();
        let config = Arc::new(openraft::Config::default().validate().expect("the defaults"));
        let raft = openraft::Raft::<TypeConfig, _>::new(1, config, Nobody, log, machine).await.expect("it starts");
        raft.initialize(std::collections::BTreeMap::from([(1, ())])).await.expect("it leads itself");
    }
    let more = resident_mib() - before;
    println!("{}: {more} MiB more", if histogram { "one histogram" } else { "one raft node" });
    if more < 20 {
        eprintln!("finding no longer holds");
        std::process::exit(1);
    }
}
RS
cd "$dir"
cargo run -q --release
cargo run -q --release histogram
echo "finding holds: one raft node, or one histogram, takes more than 20 MiB"
