#!/usr/bin/env bash
# openraft 0.10.0-alpha.37 with Pre-Vote names a leader that is dead for as long as no other is elected: `current_leader` of a
# follower that hears nobody stays Some, its state Follower, its term what it was.
#
# One would expect what it does without Pre-Vote, and what etcd and hashicorp/raft do with it: an election timeout after the
# last heartbeat there is no leader. But `current_leader` is read off the vote, and Pre-Vote is there to leave the vote alone.
# Here a voter of three hears a leader once, and then nobody. Output seen with rustc 1.95, election timeouts of 150 to 300 ms:
#
#   enable_pre_vote = false, 5 s after the leader: Candidate, current_leader None, the term rose: true
#   enable_pre_vote = true, 5 s after the leader: Follower, current_leader Some(2), the term rose: false
#
# With Pre-Vote switched on, what sends callers to the leader sends them to a dead node, and an alert on "no leader" is silent,
# in a cluster that has lost its quorum. blockraft names a leader for one and a half heartbeat_timeout after its last message,
# by its own clock (src/consensus/status.rs). Fails when it is otherwise.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$dir/target}"
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "dead-leader"
version = "0.0.0"
edition = "2021"

[dependencies]
openraft = "=0.10.0-alpha.37"
openraft-memstore = "=0.10.0-alpha.37"
tokio = { version = "1", features = ["rt-multi-thread", "macros", "time"] }

[workspace]
TOML
cat >"$dir/src/main.rs" <<'RS'
use std::{collections::BTreeSet, future::Future, io, sync::Arc, time::Duration};

use openraft::async_runtime::watch::WatchReceiver;
use openraft::error::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::*;
use openraft::testing::{log_id, membership_ent};
use openraft::type_config::alias::{SnapshotOf, VoteOf};
use openraft::{RaftMetrics, ServerState};
use openraft_memstore::TypeConfig;

type C = TypeConfig;

/// Everybody else is away.
struct Nobody;

fn away() -> Unreachable<C> {
    Unreachable::new(&io::Error::from(io::ErrorKind::ConnectionRefused))
}

impl RaftNetworkFactory<C> for Nobody {
    type Network = Nobody;

    async fn new_client(&mut self, _: u64, _: &()) -> Nobody {
        Nobody
    }
}

impl RaftNetworkV2<C> for Nobody {
    type SnapshotData = io::Cursor<Vec<u8>>;

    async fn append_entries(
        &mut self,
        _: AppendEntriesRequest<C>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<C>, RPCError<C>> {
        Err(away().into())
    }

    async fn vote(&mut self, _: VoteRequest<C>, _: RPCOption) -> Result<VoteResponse<C>, RPCError<C>> {
        Err(away().into())
    }

    async fn pre_vote(&mut self, _: VoteRequest<C>, _: RPCOption) -> Result<VoteResponse<C>, RPCError<C>> {
        Err(away().into())
    }

    async fn full_snapshot(
        &mut self,
        _: VoteOf<C>,
        _: SnapshotOf<C, Self::SnapshotData>,
        _: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<C>, StreamingError<C>> {
        Err(StreamingError::Unreachable(away()))
    }
}

/// What a voter shows while it hears the leader, and five seconds later.
async fn seen(pre_vote: bool) -> [RaftMetrics<C>; 2] {
    let (log, machine) = openraft_memstore::new_mem_store();
    let config = openraft::Config {
        election_timeout_min: 150,
        election_timeout_max: 300,
        enable_pre_vote: Some(pre_vote),
        ..Default::default()
    };
    let config = Arc::new(config.validate().expect("valid"));
    let raft = openraft::Raft::<C, _>::new(1, config, Nobody, log, machine).await.expect("it starts");
    // Node 2 leads in term 1.
    let first = log_id::<C>(1, 2, 0);
    let request = AppendEntriesRequest {
        vote: VoteOf::<C>::new_committed(1, 2),
        prev_log_id: None,
        entries: vec![membership_ent::<C>(1, 2, 0, vec![BTreeSet::from([1, 2, 3])])],
        leader_commit: Some(first),
    };
    raft.append_entries(request).await.expect("it takes it");
    let heard = raft.wait(Some(Duration::from_secs(5))).current_leader(2, "it heard the leader").await.expect("at once");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let later = raft.metrics().borrow_watched().clone();
    raft.shutdown().await.expect("it runs");
    [heard, later]
}

#[tokio::main]
async fn main() {
    let mut is_as_stated = [false; 2];
    for pre_vote in [false, true] {
        let [heard, later] = seen(pre_vote).await;
        let rose = heard.current_term < later.current_term;
        println!(
            "enable_pre_vote = {pre_vote}, 5 s after the leader: {:?}, current_leader {:?}, the term rose: {rose}",
            later.state, later.current_leader
        );
        is_as_stated[usize::from(pre_vote)] = match pre_vote {
            false => later.current_leader.is_none() && rose,
            true => later.current_leader == Some(2) && later.state == ServerState::Follower && !rose,
        };
    }
    std::process::exit(i32::from(is_as_stated != [true; 2]));
}
RS
cd "$dir"
if cargo run -q --release; then
  echo "finding holds: with Pre-Vote a dead leader goes on being named"
else
  echo "finding no longer holds" >&2
  exit 1
fi
