#!/usr/bin/env bash
# A follower of openraft 0.10.0-alpha.37 answers a heartbeat only once every entry that it took before is on its disk, and
# the leader waits for one heartbeat_interval (core/heartbeat/worker.rs). So a few slow syncs at the same moment on a
# majority of the followers end the leader's lease, and it refuses writes, though everybody heard it all the time.
#
# One would expect a heartbeat to be answered at once: all that a lease stands on is that the follower heard the leader and
# grants no vote meanwhile; and a vote is answered at once. Here a node is sent an entry whose write takes 400 ms, then a
# heartbeat and a pre-vote. Output seen with rustc 1.95:
#
#   a pre-vote is answered within 0.1 s: true
#   the entry, written in 400 ms, is answered within 0.3 s: false
#   a heartbeat behind it is answered within 0.3 s: false
#   once the entry is written both are answered: true
#
# blockraft answers a heartbeat once raft took it up and its vote for that leader is durable (src/peer/control.rs).
# Fails when it is otherwise.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$dir/target}"
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "heartbeat"
version = "0.0.0"
edition = "2021"

[dependencies]
openraft = "=0.10.0-alpha.37"
openraft-memstore = "=0.10.0-alpha.37"
tokio = { version = "1", features = ["rt-multi-thread", "macros", "time"] }

[workspace]
TOML
cat >"$dir/src/main.rs" <<'RS'
use std::{fmt::Debug, future::Future, io, ops::RangeBounds, sync::Arc, time::Duration};

use openraft::entry::RaftEntry;
use openraft::error::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::*;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::alias::{EntryOf, LogIdOf, SnapshotOf, VoteOf};
use openraft::{LogState, OptionalSend, RaftLogReader};
use openraft_memstore::{MemLogStore, TypeConfig};

type C = TypeConfig;

/// A log whose writes take a while, as on a busy disk.
#[derive(Clone)]
struct Slow(Arc<MemLogStore>);

impl RaftLogReader<C> for Slow {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<EntryOf<C>>> {
        self.0.try_get_log_entries(range).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<C>>> {
        self.0.read_vote().await
    }
}

impl RaftLogStorage<C> for Slow {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<C>> {
        self.0.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<C>) -> io::Result<()> {
        self.0.save_vote(vote).await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<C>) -> io::Result<()>
    where
        I: IntoIterator<Item = EntryOf<C>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.0.append(entries, IOFlushed::noop()).await?;
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(400)).await;
            callback.io_completed(Ok(()));
        });
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<C>>) -> io::Result<()> {
        self.0.truncate_after(last).await
    }

    async fn purge(&mut self, upto: LogIdOf<C>) -> io::Result<()> {
        self.0.purge(upto).await
    }
}

/// This node calls nobody.
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

async fn within<T>(ms: u64, answer: &mut tokio::task::JoinHandle<T>) -> bool {
    tokio::time::timeout(Duration::from_millis(ms), answer).await.is_ok()
}

#[tokio::main]
async fn main() {
    let (log, machine) = openraft_memstore::new_mem_store();
    let config = Arc::new(openraft::Config::default().validate().expect("valid"));
    let raft = openraft::Raft::<C, _>::new(1, config, Nobody, Slow(log), machine).await.expect("it starts");
    // Node 2 leads in term 1.
    let vote = VoteOf::<C>::new_committed(1, 2);
    let first = openraft::testing::log_id::<C>(1, 2, 0);
    let send = |prev: Option<LogIdOf<C>>, entries| {
        let (raft, request) =
            (raft.clone(), AppendEntriesRequest { vote, prev_log_id: prev, entries, leader_commit: None });
        tokio::spawn(async move { raft.append_entries(request).await.expect("it runs") })
    };
    let mut entry = send(None, vec![EntryOf::<C>::new_blank(first)]);
    tokio::time::sleep(Duration::from_millis(10)).await;
    let mut heartbeat = send(Some(first), Vec::new());
    let mut asked = {
        let raft = raft.clone();
        let request = VoteRequest::new(VoteOf::<C>::new(2, 3), Some(first));
        tokio::spawn(async move { raft.pre_vote(request).await.expect("it runs") })
    };
    let voted = within(100, &mut asked).await;
    println!("a pre-vote is answered within 0.1 s: {voted}");
    let (written, beaten) = (within(200, &mut entry).await, within(1, &mut heartbeat).await);
    println!("the entry, written in 400 ms, is answered within 0.3 s: {written}");
    println!("a heartbeat behind it is answered within 0.3 s: {beaten}");
    let both = within(2000, &mut entry).await && within(2000, &mut heartbeat).await;
    println!("once the entry is written both are answered: {both}");
    std::process::exit(i32::from(!voted || written || beaten || !both));
}
RS
cd "$dir"
if cargo run -q --release; then
  echo "finding holds: a heartbeat waits for the syncs of the entries before it"
else
  echo "finding no longer holds" >&2
  exit 1
fi
