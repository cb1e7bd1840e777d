//! What one part needs of another, as the traits it defined: the joints between them.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::watch;

use crate::audit;
use crate::consensus;
use crate::consensus::{BoxFuture, Fitness, Handover, agreement::Evidence, snapshots};
use crate::instants::Instants;
use crate::leadership;
use crate::machine::apply::View;
use crate::node::agreement::Agreement;
use crate::node::doubts::Doubts;
use crate::node::members;
use crate::node::remembered::Remembered;
use crate::peer::{self, Floor, HashMark, Incarnation, Receiving, SendOutcome};
use crate::proposals;
use crate::store;
use crate::store::snapshot::receive::ReceiveError;
use crate::types::member::Removed;
use crate::types::{
    Height, LogIndex, NodeId, Term, block::Block, error::Accepted, position::LogPos, proto::SnapshotManifest,
};

/// The applied state, for those who propose.
pub(super) struct Chain(pub(super) store::Reader);

impl proposals::Chain for Chain {
    fn view(&self) -> Arc<View> {
        self.0.view()
    }

    fn find_same(&self, block: &Block) -> Option<Accepted> {
        // Most proposals are for the next height, and no disk is asked about those.
        let view = self.0.view();
        if view.head.as_ref().is_none_or(|head| head.height < block.height) {
            return None;
        }
        self.0.find_same(block)
    }

    fn holds(&self, height: Height) -> Option<bool> {
        match self.0.provenance(height) {
            Ok(_) => Some(true),
            Err(store::reader::ReadError::NotFound { .. }) => Some(false),
            Err(_) => None,
        }
    }
}

/// What compaction asks of the store.
pub(super) struct Compacted {
    pub(super) reader: store::Reader,
    pub(super) snapshots: store::Snapshots,
}

impl snapshots::Compacted for Compacted {
    fn log_bytes_after(&self, index: LogIndex) -> u64 {
        self.reader.log_bytes_after(index)
    }

    fn log_moves(&self) -> watch::Receiver<u64> {
        self.reader.log_moves()
    }

    fn flush_ahead(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.reader.flush_ahead())
    }

    fn built(&self, n: u64) -> BoxFuture<'_, snapshots::Built> {
        let mut progress = self.snapshots.progress();
        Box::pin(async move {
            match progress.wait_for(|p| n < p.ended).await.map(|p| p.ended) {
                Ok(n_ended) => snapshots::Built { n_ended, newest: self.snapshots.newest_index() },
                // The store lives as long as this does.
                Err(_) => std::future::pending().await,
            }
        })
    }
}

/// The incarnations of other nodes, in this node's own records, and this node's identity.
pub(super) struct Incarnations {
    pub(super) remembered: Remembered,
    pub(super) reader: store::Reader,
    pub(super) data_dir: PathBuf,
    /// As in the data folder. Guards the one change that there may be of it.
    pub(super) identity: Mutex<store::Identity>,
}

impl peer::Incarnations for Incarnations {
    fn known(&self, node_id: NodeId) -> Option<Incarnation> {
        self.remembered.known(node_id)
    }

    fn remember(&self, node_id: NodeId, incarnation: Incarnation) -> io::Result<()> {
        self.remembered.remember(node_id, incarnation)
    }

    fn may_adopt_epoch(&self) -> bool {
        self.reader.is_blank()
    }

    fn adopt_epoch(&self, epoch: u64) -> io::Result<()> {
        let mut identity = self.identity.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if identity.epoch == epoch {
            return Ok(());
        }
        if identity.epoch != 0 || !self.reader.is_blank() {
            return Err(io::Error::other("this node holds data of another epoch"));
        }
        let adopted = store::Identity { epoch, ..identity.clone() };
        adopted.write(&self.data_dir)?;
        *identity = adopted;
        Ok(())
    }
}

/// What the transport tells other nodes of this one, and learns of them.
pub(super) struct Notices {
    pub(super) reader: store::Reader,
    pub(super) health: store::Health,
    pub(super) leadership: Arc<std::sync::OnceLock<crate::leadership::Handle>>,
    pub(super) instants: Arc<Instants>,
    pub(super) remembered: Remembered,
    pub(super) raft: Arc<std::sync::OnceLock<consensus::handle::Handle>>,
    pub(super) history: audit::history::History,
    pub(super) agreement: Arc<Agreement>,
}

impl peer::Notices for Notices {
    fn floor(&self, node_id: NodeId) -> Option<LogPos> {
        // What a leader sees now is written down a moment later.
        let held = self.raft.get().map(consensus::handle::Handle::held_by_others).unwrap_or_default();
        let seen = held.into_iter().find(|(id, _)| *id == node_id).map(|(_, pos)| pos);
        seen.max(self.remembered.floor(node_id))
    }

    fn floors(&self) -> Vec<Floor> {
        self.remembered.floors()
    }

    fn floors_told(&self, floors: Vec<Floor>) {
        floors.into_iter().for_each(|floor| self.remembered.floor_told(floor));
    }

    fn commands_known(&self, node_id: NodeId, commands: &[(u8, u8)]) {
        self.remembered.set_commands(node_id, commands);
    }

    fn lacks(&self, node_id: NodeId, kind: u8, version: u8) -> bool {
        self.remembered.lacks(node_id, kind, version)
    }

    fn not_member(&self, told_by: NodeId, version: LogIndex) {
        if let Some(raft) = self.raft.get() {
            members::told_not_member(raft, &self.remembered, &self.history, Removed { version, told_by });
        }
    }

    fn own_last(&self) -> Option<LogPos> {
        self.reader.log_stats().last
    }

    fn committed_before(&self, leader_term: Term) -> Option<LogPos> {
        self.reader.committed_before(leader_term)
    }

    fn contradicted(&self, leader_id: NodeId, own: LogPos, theirs: LogPos) {
        let what = format!(
            "node {leader_id} leads with another entry at index {} (term {}) than was committed here (index {}, term {}): \
             the folder of one of the nodes was put back from an older copy",
            theirs.index, theirs.term, own.index, own.term
        );
        self.health.set_fatal(store::health::Fatal::Contradicted { what });
    }

    fn may_store(&self) -> bool {
        !self.health.is_full()
    }

    fn hash_mark(&self) -> Option<HashMark> {
        self.reader.view().hash_mark.map(|(index, hash)| HashMark { index, hash })
    }

    fn peer_hash_mark(&self, node_id: NodeId, mark: HashMark) {
        self.agreement.on_mark(node_id, (mark.index, mark.hash));
    }

    fn state_evidence(&self) -> Option<Evidence> {
        self.agreement.evidence()
    }

    fn state_evidence_told(&self, evidence: Evidence) {
        self.agreement.on_told(evidence);
    }

    fn replicated(&self, node_id: NodeId, r: peer::Replicated) {
        self.instants.replicated(node_id, r.last, r.n_entries, r.sent, r.acknowledged);
    }

    fn handed_over(&self, handover: &Handover, is_target: bool) {
        if let Some(leadership) = self.leadership.get() {
            leadership.announced(handover.clone(), is_target);
        }
    }

    fn peer_fitness(&self, node_id: NodeId, fitness: Fitness) {
        if let Some(leadership) = self.leadership.get() {
            leadership.peer_fitness(node_id, fitness);
        }
    }
}

/// The proposals that a hand-over waits for.
pub(super) struct InFlight(pub(super) proposals::Handle);

impl leadership::handle::InFlight for InFlight {
    fn drained(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.0.drained())
    }
}

/// Received snapshots, as the transport hands them over.
pub(super) struct SnapshotStore {
    pub(super) snapshots: store::Snapshots,
    pub(super) health: store::Health,
    /// Bytes that stay free, as for entries.
    pub(super) min_free: u64,
    pub(super) doubts: Doubts,
    /// Transfers to others that run. A lock, so that the gauge is set in the order in which they are counted.
    pub(super) sends: Mutex<usize>,
}

impl peer::SnapshotStore for SnapshotStore {
    /// Refused where there is no room for what is missing of it: a disk that it would fill serves nobody.
    fn receive(&self, manifest: &SnapshotManifest) -> io::Result<Box<dyn Receiving>> {
        let receiving = self.snapshots.receive(manifest.clone()).map_err(to_io)?;
        let (missing, free) = (receiving.missing_bytes(), self.health.get().free_bytes);
        if free < missing.saturating_add(self.min_free) {
            let what = format!(
                "no room for a snapshot: {missing} bytes of it are missing, {free} are free, {} stay free",
                self.min_free
            );
            receiving.give_up();
            return Err(io::Error::new(io::ErrorKind::StorageFull, what));
        }
        Ok(Box::new(Incoming(receiving)))
    }

    fn settled(&self, id: &str) {
        self.snapshots.settled(id);
    }

    fn doubted(&self, id: &str) {
        self.doubts.note(id);
    }

    fn sent(&self, outcome: SendOutcome, took: Duration) {
        let label = match outcome {
            SendOutcome::Ok => "ok",
            SendOutcome::Failed => "failed",
            SendOutcome::Corrupt => "corrupt",
        };
        self.snapshots.metrics().count("send", label, took.as_secs_f64());
    }

    fn sending(&self, is_running: bool) {
        let mut sends = self.sends.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *sends = if is_running { *sends + 1 } else { sends.saturating_sub(1) };
        self.snapshots.metrics().set_running("send", 0 < *sends);
    }
}

struct Incoming(store::snapshot::receive::Receiving);

impl Receiving for Incoming {
    fn have(&self, file: &str) -> u64 {
        self.0.have(file)
    }

    fn write_chunk(&mut self, file: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_chunk(file, offset, bytes).map_err(to_io)
    }

    fn finish(self: Box<Self>) -> io::Result<crate::raft::SnapshotData> {
        self.0.finish().map_err(to_io)
    }
}

/// A damaged transfer is told from a failing disk: its sender begins anew.
fn to_io(error: ReceiveError) -> io::Error {
    match error {
        ReceiveError::Io(error) => error,
        own @ (ReceiveError::Linked { .. } | ReceiveError::Unsynced(_)) => io::Error::other(own.to_string()),
        damaged => io::Error::new(io::ErrorKind::InvalidData, damaged.to_string()),
    }
}
