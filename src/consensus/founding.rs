//! Founding a cluster: initialise only after a majority showed the same list and nobody data.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::consensus::{FoundingState, core::Stopped, handle::Handle};
use crate::raft::NodeRecord;
use crate::types::NodeId;

/// Between two rounds of asking. By eye: short beside a human's start of three processes.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// The members a cluster is founded with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct FoundingList(pub(crate) BTreeMap<NodeId, NodeRecord>);

impl FoundingList {
    /// A node that founds alone names its own life: when it was wiped and is sent this membership again, it
    /// would elect itself on the spot (safety rule 8). Others' lives are not known yet.
    pub(crate) fn of_this_life(mut self, node_id: NodeId, incarnation: [u8; 16]) -> Self {
        if self.0.len() == 1
            && let Some(alone) = self.0.get_mut(&node_id)
        {
            alone.incarnation = Some(incarnation);
        }
        self
    }

    /// Equal lists, in whatever order they were written, have equal hashes.
    pub(crate) fn hash(&self, cluster_id: &str) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_be_bytes());
            hasher.update(bytes);
        };
        field(cluster_id.as_bytes());
        for (id, node) in &self.0 {
            field(&id.to_be_bytes());
            field(node.name.as_bytes());
            field(node.peer_addr.as_bytes());
            field(node.api_addr.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

/// What one round of asking says.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// A majority, this node included, has the same list and nobody has data.
    Found,
    Wait,
}

fn judge(own: [u8; 32], members: usize, answers: &BTreeMap<NodeId, FoundingState>) -> Verdict {
    let same = 1 + answers.values().filter(|a| a.list_hash == own && !a.has_data).count();
    let anybody_has_data = answers.values().any(|a| a.has_data);
    if members / 2 < same && !anybody_has_data { Verdict::Found } else { Verdict::Wait }
}

/// Founds the cluster if this node belongs to a list and holds no data; returns when the node has a
/// membership, its own or one that a leader sent.
pub(crate) async fn run(raft: Handle, list: FoundingList, cluster_id: String) -> Result<(), Stopped> {
    if list.0.is_empty() {
        return Ok(());
    }
    let own = list.hash(&cluster_id);
    let others: Vec<NodeId> = list.0.keys().copied().filter(|id| *id != raft.node_id()).collect();
    let mut told = BTreeSet::new();
    let mut rounds = tokio::time::interval(ASK_EVERY);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        // Out of the metrics: a core that stops just then would log that it cannot be asked.
        let status = raft.status();
        if !status.is_running || !status.members.voters.is_empty() {
            return Ok(());
        }
        let asked = others.iter().map(|id| async {
            let answer = raft.peers().founding(*id, raft.send_timeout()).await;
            (*id, answer)
        });
        let mut answers = BTreeMap::new();
        for (id, answer) in futures::future::join_all(asked).await {
            match answer {
                Ok(state) => {
                    if state.list_hash != own && !state.has_data && told.insert(id) {
                        tracing::warn!(
                            peer_id = id,
                            "the founding list of this peer differs from this node's cluster.peers: \
                             no cluster is founded with it"
                        );
                    }
                    answers.insert(id, state);
                }
                Err(error) => tracing::debug!(peer_id = id, %error, "a founding member does not answer"),
            }
        }
        if judge(own, list.0.len(), &answers) == Verdict::Found {
            let founded = raft.core().initialize(list.0.clone()).await?;
            if founded {
                tracing::info!(members = list.0.len(), "cluster founded");
            }
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(hash: u8, has_data: bool) -> FoundingState {
        FoundingState { list_hash: [hash; 32], has_data }
    }

    #[test]
    fn a_majority_with_the_same_list_and_no_data_founds() {
        let own = [1; 32];
        assert_eq!(judge(own, 1, &BTreeMap::new()), Verdict::Found);
        assert_eq!(judge(own, 3, &BTreeMap::new()), Verdict::Wait);
        assert_eq!(judge(own, 3, &BTreeMap::from([(2, state(1, false))])), Verdict::Found);
        assert_eq!(judge(own, 3, &BTreeMap::from([(2, state(9, false))])), Verdict::Wait);
        let one_has_data = BTreeMap::from([(2, state(1, false)), (3, state(1, true))]);
        assert_eq!(judge(own, 3, &one_has_data), Verdict::Wait);
        assert_eq!(judge(own, 5, &BTreeMap::from([(2, state(1, false))])), Verdict::Wait);
    }

    #[test]
    fn the_hash_minds_every_field_and_no_order() {
        let node = |name: &str| NodeRecord { name: name.into(), ..NodeRecord::default() };
        let a = FoundingList(BTreeMap::from([(1, node("a")), (2, node("b"))]));
        let b = FoundingList(BTreeMap::from([(2, node("b")), (1, node("a"))]));
        let c = FoundingList(BTreeMap::from([(1, node("a")), (2, node("c"))]));
        assert_eq!(a.hash("x"), b.hash("x"));
        assert_ne!(a.hash("x"), c.hash("x"));
        assert_ne!(a.hash("x"), a.hash("y"));
    }
}
