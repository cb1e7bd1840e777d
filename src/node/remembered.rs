//! What this node keeps of others, durably: incarnations, how far each is known to have come, the commands
//! each knows, and that this node itself was removed.
//!
//! Read from memory, since it is asked on async tasks; written through. Incarnations are durable before they
//! count (safety rule 8), the rest is lazy.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;

use crate::node::StartError;
use crate::peer::{Floor, Incarnation};
use crate::store;
use crate::store::local::{REMOVED, read_removed, write_removed};
use crate::types::NodeId;
use crate::types::member::Removed;
use crate::types::position::LogPos;

const INCARNATION: &[u8] = b"peer/incarnation/";
const FLOOR: &[u8] = b"peer/floor/";
const COMMANDS: &[u8] = b"peer/commands/";
/// Records of one kind that are read at start. By eye: many times the members there ever were.
const RECORDS_MAX: usize = 10_000;

/// Cheap to clone; all clones show the same.
#[derive(Clone)]
pub(super) struct Remembered {
    shared: Arc<Shared>,
}

struct Shared {
    local: store::Local,
    health: store::Health,
    /// A lock, held for a look-up: handshakes ask, and must not wait for a task.
    peers: Mutex<BTreeMap<NodeId, Known>>,
    removed: Option<Removed>,
    /// What this node holds itself, while it leads: nobody else can tell the others.
    own: Mutex<Option<Floor>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    incarnation: Option<Incarnation>,
    /// A committed entry that the node of this incarnation acknowledged.
    floor: Option<(Incarnation, LogPos)>,
    /// Each kind and version; empty: it never said.
    commands: Vec<(u8, u8)>,
}

fn key(prefix: &[u8], node_id: NodeId) -> Vec<u8> {
    [prefix, &node_id.to_be_bytes()].concat()
}

fn two(a: u64, b: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&a.to_be_bytes());
    bytes[8..].copy_from_slice(&b.to_be_bytes());
    bytes
}

fn from_two(bytes: &[u8]) -> Option<(u64, u64)> {
    let (a, b) = bytes.split_first_chunk()?;
    Some((u64::from_be_bytes(*a), u64::from_be_bytes(b.try_into().ok()?)))
}

impl Remembered {
    pub(super) async fn open(opened: &store::Opened) -> Result<Self, StartError> {
        let (local, health) = (opened.local.clone(), opened.health.clone());
        let failed = |what: String| StartError { exit_code: 1, message: format!("records of peers: {what}") };
        match tokio::task::spawn_blocking(move || Self::read(local, health)).await {
            Ok(read) => read.map_err(|e| failed(e.to_string())),
            Err(panicked) => Err(failed(panicked.to_string())),
        }
    }

    fn read(local: store::Local, health: store::Health) -> io::Result<Self> {
        let mut peers: BTreeMap<NodeId, Known> = BTreeMap::new();
        let mut each = |prefix: &[u8], on: &mut dyn FnMut(&mut Known, &[u8])| {
            for (key, value) in local.scan(prefix, prefix, RECORDS_MAX)? {
                if let Ok(id) = key[prefix.len()..].try_into() {
                    on(peers.entry(u64::from_be_bytes(id)).or_default(), &value);
                }
            }
            Ok::<_, io::Error>(())
        };
        each(INCARNATION, &mut |known, value| known.incarnation = value.try_into().ok())?;
        each(FLOOR, &mut |known, value| {
            known.floor = value.split_first_chunk().and_then(|(incarnation, pos)| {
                let (term, index) = from_two(pos)?;
                Some((*incarnation, LogPos { term, index }))
            });
        })?;
        each(COMMANDS, &mut |known, value| {
            known.commands = value.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        })?;
        let removed = local.get(REMOVED)?.and_then(|value| read_removed(&value));
        Ok(Self {
            shared: Arc::new(Shared {
                local,
                health,
                peers: Mutex::new(peers),
                removed,
                own: Mutex::default(),
            }),
        })
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<NodeId, Known>> {
        self.shared.peers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What was known when this node started.
    pub(super) fn removed(&self) -> Option<Removed> {
        self.shared.removed
    }

    pub(super) fn set_removed(&self, removed: Option<Removed>) {
        let value = removed.map(write_removed);
        self.shared.local.write_later(vec![(REMOVED.to_vec(), value)]);
    }

    /// A committed entry that the node is known to hold.
    pub(super) fn floor(&self, node_id: NodeId) -> Option<LogPos> {
        let peers = self.peers();
        let known = peers.get(&node_id)?;
        // One that was added again with an empty folder holds nothing of what the one before did.
        known.floor.filter(|(incarnation, _)| known.incarnation == Some(*incarnation)).map(|(_, pos)| pos)
    }

    /// Of each node's life that is known.
    pub(super) fn floors(&self) -> Vec<Floor> {
        let peers = self.peers();
        let floors = peers.iter().filter_map(|(node_id, known)| {
            let (incarnation, pos) = known.floor.filter(|(of, _)| known.incarnation == Some(*of))?;
            Some(Floor { node_id: *node_id, incarnation, pos })
        });
        floors.chain(*self.own()).collect()
    }

    fn own(&self) -> MutexGuard<'_, Option<Floor>> {
        self.shared.own.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn set_own_floor(&self, own: Option<Floor>) {
        *self.own() = own;
    }

    /// A leader knows it of a node; it counts where the same life of that is known here.
    pub(super) fn floor_told(&self, told: Floor) {
        if self.known(told.node_id) == Some(told.incarnation) {
            self.raise_floor(told.node_id, told.pos);
        }
    }

    /// The node acknowledged that entry, and it is committed.
    pub(super) fn raise_floor(&self, node_id: NodeId, pos: LogPos) {
        let mut peers = self.peers();
        let Some(known) = peers.get_mut(&node_id) else { return };
        let Some(incarnation) = known.incarnation else { return };
        let is_higher = known.floor.is_none_or(|(of, floor)| of != incarnation || floor < pos);
        // A full disk would only let them pile up.
        if !is_higher || self.shared.health.is_full() {
            return;
        }
        known.floor = Some((incarnation, pos));
        let value = [&incarnation[..], &two(pos.term, pos.index)].concat();
        self.shared.local.write_later(vec![(key(FLOOR, node_id), Some(value.into()))]);
    }

    /// Nodes that are no members any more may come back with less, once they are added again.
    pub(super) fn keep_floors(&self, is_member: impl Fn(NodeId) -> bool) {
        let mut gone = Vec::new();
        for (node_id, known) in self.peers().iter_mut().filter(|(id, _)| !is_member(**id)) {
            if known.floor.take().is_some() {
                gone.push((key(FLOOR, *node_id), None));
            }
        }
        if !gone.is_empty() {
            self.shared.local.write_later(gone);
        }
    }

    pub(super) fn set_commands(&self, node_id: NodeId, commands: &[(u8, u8)]) {
        let mut peers = self.peers();
        // A stranger is not kept: only whose incarnation is.
        let Some(known) = peers.get_mut(&node_id) else { return };
        if known.commands == commands {
            return;
        }
        known.commands = commands.to_vec();
        let value: Vec<u8> = commands.iter().flat_map(|(kind, version)| [*kind, *version]).collect();
        self.shared.local.write_later(vec![(key(COMMANDS, node_id), Some(value.into()))]);
    }

    /// Whether a node said that it does not know a command. One that never said anything knows what every
    /// version does.
    pub(super) fn lacks(&self, node_id: NodeId, kind: u8, version: u8) -> bool {
        let peers = self.peers();
        let known = peers.get(&node_id).map(|known| known.commands.as_slice()).unwrap_or_default();
        !known.is_empty() && !known.contains(&(kind, version))
    }
}

impl Remembered {
    pub(super) fn known(&self, node_id: NodeId) -> Option<Incarnation> {
        self.peers().get(&node_id)?.incarnation
    }

    /// Durable on return. Blocking.
    pub(super) fn remember(&self, node_id: NodeId, incarnation: Incarnation) -> io::Result<()> {
        let value = Bytes::copy_from_slice(&incarnation);
        self.shared.local.write_blocking(vec![(key(INCARNATION, node_id), Some(value))])?;
        self.peers().entry(node_id).or_default().incarnation = Some(incarnation);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;
    use crate::instants::Instants;

    fn open(dir: &std::path::Path) -> store::Opened {
        let registry = Registry::new();
        let instants = Arc::new(Instants::new(&registry).unwrap());
        let config = store::Config { data_dir: dir.join("data"), min_free: 0, snapshot_retain: 3 };
        let who = store::Who { cluster_id: "c".into(), node_id: 1 };
        store::open(&config, &who, &registry, instants).unwrap_or_else(|e| panic!("{e}"))
    }

    fn close(opened: store::Opened) {
        drop((opened.log, opened.machine, opened.reader, opened.local, opened.snapshots));
        opened.closer.close();
    }

    const fn at(term: u64, index: u64) -> LogPos {
        LogPos { term, index }
    }

    #[tokio::test]
    async fn what_is_known_of_others_survives() {
        let dir = tempfile::TempDir::new().unwrap();
        let opened = open(dir.path());
        let remembered = Remembered::open(&opened).await.unwrap();
        assert_eq!((remembered.known(2), remembered.removed()), (None, None));
        // Of a stranger nothing is kept.
        remembered.raise_floor(2, at(1, 5));
        remembered.set_commands(2, &[(1, 1)]);
        assert_eq!(remembered.floor(2), None);
        let remember = {
            let remembered = remembered.clone();
            move || [(2, [7; 16]), (3, [8; 16])].map(|(id, inc)| remembered.remember(id, inc).unwrap())
        };
        tokio::task::spawn_blocking(remember).await.unwrap();
        remembered.raise_floor(2, at(4, 90));
        remembered.raise_floor(2, at(4, 80));
        remembered.raise_floor(3, at(4, 70));
        remembered.set_commands(2, &[(1, 1), (2, 1)]);
        remembered.set_removed(Some(Removed { version: 12, told_by: 3 }));
        remembered.keep_floors(|id| id != 3);
        opened.local.write(Vec::new()).await.unwrap();
        drop(remembered);
        close(opened);

        let opened = open(dir.path());
        let again = Remembered::open(&opened).await.unwrap();
        assert_eq!((again.known(2), again.known(3)), (Some([7; 16]), Some([8; 16])));
        assert_eq!((again.floor(2), again.floor(3)), (Some(at(4, 90)), None));
        assert_eq!(again.removed(), Some(Removed { version: 12, told_by: 3 }));
        assert!(again.lacks(2, 3, 1) && !again.lacks(2, 2, 1) && !again.lacks(3, 3, 1));
        // Added again with an empty folder.
        let remember = {
            let again = again.clone();
            move || again.remember(2, [9; 16]).unwrap()
        };
        tokio::task::spawn_blocking(remember).await.unwrap();
        assert_eq!(again.floor(2), None);
        again.raise_floor(2, at(1, 1));
        assert_eq!(again.floor(2), Some(at(1, 1)));
        drop(again);
        close(opened);
    }
}
