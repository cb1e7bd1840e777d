#!/usr/bin/env bash
# openraft 0.10.0-alpha.37 gives up leading for good when it is asked to hand over to a member that never takes over: a
# transfer has no end. The call returns Ok, the leader takes no entries any more, and it goes on calling itself leader.
#
# One would expect the transfer to be refused, or to be over after an election timeout, as in the raft dissertation (3.10)
# and in etcd and hashicorp/raft. Here a leader with one learner, which is away, is asked to hand over to it. Output seen
# with rustc 1.95, election timeouts of 150 to 300 ms:
#
#   a write before: Ok
#   the transfer is asked for: Ok(())
#   writes in the ten seconds after: 0 of 100 taken
#   it is Leader in term 1, as before; current_leader is Some(1)
#
# With other voters one of them is elected in the end; without, nothing but a restart helps. blockraft looks at the target
# and asks it first, lets no change of members come in between, and asks others when nobody took over
# (src/leadership/handover.rs). Fails when it is otherwise.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$dir/target}"
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "transfer"
version = "0.0.0"
edition = "2021"

[dependencies]
openraft = "=0.10.0-alpha.37"
openraft-memstore = "=0.10.0-alpha.37"
tokio = { version = "1", features = ["rt-multi-thread", "macros", "time"] }

[workspace]
TOML
cat >"$dir/src/main.rs" <<'RS'
use std::{collections::BTreeMap, future::Future, io, io::Cursor, sync::Arc, time::Duration};

use openraft::async_runtime::watch::WatchReceiver;
use openraft::error::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::*;
use openraft::type_config::alias::{SnapshotOf, VoteOf};
use openraft_memstore::{ClientRequest, TypeConfig};

/// The other member is away.
struct Away;

fn away() -> Unreachable<TypeConfig> {
    Unreachable::new(&io::Error::from(io::ErrorKind::ConnectionRefused))
}

impl RaftNetworkFactory<TypeConfig> for Away {
    type Network = Away;

    async fn new_client(&mut self, _: u64, _: &()) -> Away {
        Away
    }
}

impl RaftNetworkV2<TypeConfig> for Away {
    type SnapshotData = Cursor<Vec<u8>>;

    async fn append_entries(
        &mut self,
        _: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(away().into())
    }

    async fn vote(
        &mut self,
        _: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(away().into())
    }

    async fn full_snapshot(
        &mut self,
        _: VoteOf<TypeConfig>,
        _: SnapshotOf<TypeConfig, Self::SnapshotData>,
        _: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(StreamingError::Unreachable(away()))
    }

    async fn transfer_leader(
        &mut self,
        _: TransferLeaderRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(away().into())
    }
}

fn request(serial: u64) -> ClientRequest {
    ClientRequest { client: "one".into(), serial, status: serial.to_string() }
}

#[tokio::main]
async fn main() {
    let (log, machine) = openraft_memstore::new_mem_store();
    let config = openraft::Config { election_timeout_min: 150, election_timeout_max: 300, ..Default::default() };
    let config = Arc::new(config.validate().expect("valid"));
    let raft = openraft::Raft::<TypeConfig, _>::new(1, config, Away, log, machine).await.expect("it starts");
    raft.initialize(BTreeMap::from([(1, ())])).await.expect("it leads itself");
    raft.wait(None).state(openraft::ServerState::Leader, "it leads").await.expect("at once");
    let before = raft.client_write(request(1)).await;
    raft.add_learner(2, (), false).await.expect("it needs nobody else");
    println!("a write before: {}", if before.is_ok() { "Ok" } else { "Err" });
    println!("the transfer is asked for: {:?}", raft.trigger().transfer_leader(2).await);
    let mut n_taken = 0;
    for serial in 2..102 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let written = tokio::time::timeout(Duration::from_secs(2), raft.client_write(request(serial))).await;
        n_taken += usize::from(matches!(written, Ok(Ok(_))));
    }
    println!("writes in the ten seconds after: {n_taken} of 100 taken");
    let metrics = raft.metrics().borrow_watched().clone();
    println!(
        "it is {:?} in term {}, as before; current_leader is {:?}",
        metrics.state, metrics.current_term, metrics.current_leader
    );
    let holds = before.is_ok() && n_taken == 0 && metrics.state == openraft::ServerState::Leader;
    std::process::exit(i32::from(!holds));
}
RS
cd "$dir"
if cargo run -q --release; then
  echo "finding holds: a transfer that nobody takes up leaves a leader that takes no entries, for good"
else
  echo "finding no longer holds" >&2
  exit 1
fi
