//! The rows of the state while a batch is applied: what was written in it shows at once.

use std::collections::BTreeMap;

use bytes::Bytes;
use rocksdb::WriteBatch;

use crate::machine::table::Table;
use crate::store::state::db::{Family, KEY_FLOOR, StateDb, height_key, leadership_key};
use crate::types::Height;

/// One write; kept, so that a batch that met a full disk can be written again.
enum Write {
    Block { height: Height, row: Bytes, block: Bytes },
    Floor(Height),
    Leadership { term: u64, row: Bytes },
    Forget { term: u64 },
}

/// Reads through to the database; a read that fails answers "nothing" and is remembered: the whole
/// batch is then thrown away.
pub(crate) struct Overlay<'a> {
    db: &'a StateDb,
    writes: Vec<Write>,
    /// Blocks written in this batch: row, block.
    written: BTreeMap<Height, (Bytes, Bytes)>,
    floor: Height,
    /// A table is read through a shared reference.
    error: std::cell::RefCell<Option<rocksdb::Error>>,
}

/// What a batch changes.
pub(crate) struct Changes {
    writes: Vec<Write>,
    pub(crate) floor: Height,
}

impl<'a> Overlay<'a> {
    pub(crate) fn new(db: &'a StateDb, floor: Height) -> Self {
        Self { db, writes: Vec::new(), written: BTreeMap::new(), floor, error: std::cell::RefCell::new(None) }
    }

    pub(crate) fn finish(self) -> Result<Changes, rocksdb::Error> {
        match self.error.into_inner() {
            Some(error) => Err(error),
            None => Ok(Changes { writes: self.writes, floor: self.floor }),
        }
    }

    fn read(&self, family: Family, height: Height) -> Option<Bytes> {
        // Whole files are dropped at leisure: what lies below the floor is not there.
        if height < self.floor {
            return None;
        }
        self.db.bytes(family, &height_key(height)).unwrap_or_else(|e| {
            self.error.borrow_mut().get_or_insert(e);
            None
        })
    }
}

impl Table for Overlay<'_> {
    fn block(&self, height: Height) -> Option<Bytes> {
        match self.written.get(&height) {
            Some((_, block)) => Some(block.clone()),
            None => self.read(Family::Blocks, height),
        }
    }

    fn row(&self, height: Height) -> Option<Bytes> {
        match self.written.get(&height) {
            Some((row, _)) => Some(row.clone()),
            None => self.read(Family::Rows, height),
        }
    }

    fn put_block(&mut self, height: Height, row: &[u8], block: &Bytes) {
        let row = Bytes::copy_from_slice(row);
        self.written.insert(height, (row.clone(), block.clone()));
        self.writes.push(Write::Block { height, row, block: block.clone() });
    }

    fn prune(&mut self, floor: Height, heights: &[Height]) {
        assert!(self.floor <= floor, "the floor falls from {} to {floor}", self.floor);
        self.floor = floor;
        heights.iter().for_each(|h| drop(self.written.remove(h)));
        match self.writes.last_mut() {
            Some(Write::Floor(last)) => *last = floor,
            _ => self.writes.push(Write::Floor(floor)),
        }
    }

    fn put_leadership(&mut self, term: u64, row: &[u8], forget: Option<u64>) {
        self.writes.push(Write::Leadership { term, row: Bytes::copy_from_slice(row) });
        self.writes.extend(forget.map(|term| Write::Forget { term }));
    }
}

impl Changes {
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (Height, &Bytes, &Bytes)> {
        self.writes.iter().filter_map(|w| match w {
            Write::Block { height, row, block } => Some((*height, row, block)),
            Write::Floor(_) | Write::Leadership { .. } | Write::Forget { .. } => None,
        })
    }

    pub(crate) fn fill(&self, db: &StateDb, batch: &mut WriteBatch) {
        let meta = db.family(Family::Meta);
        let (rows, blocks) = (db.family(Family::Rows), db.family(Family::Blocks));
        let mut floor = None;
        for write in &self.writes {
            match write {
                Write::Block { height, row, block } => {
                    batch.put_cf(rows, height_key(*height), row);
                    batch.put_cf(blocks, height_key(*height), block);
                }
                Write::Floor(height) => floor = Some(*height),
                Write::Leadership { term, row } => batch.put_cf(meta, leadership_key(*term), row),
                Write::Forget { term } => batch.delete_cf(meta, leadership_key(*term)),
            }
        }
        if let Some(floor) = floor {
            batch.put_cf(meta, KEY_FLOOR, height_key(floor));
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.blocks().map(|(_, row, block)| row.len() + block.len() + 64).sum::<usize>() + 1024
    }
}
