//! The rows of a state in memory, for tests.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

use crate::machine::{
    apply::{LoadError, Machine},
    table::Table,
};
use crate::types::{Height, Term, proto};

/// Every row, and nothing that is not in a row: two equal ones hold the same state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    blocks: BTreeMap<Height, (Bytes, Bytes)>,
    leaderships: BTreeMap<Term, Bytes>,
    floor: Height,
}

impl Table for Memory {
    fn block(&self, height: Height) -> Option<Bytes> {
        Some(self.blocks.get(&height)?.1.clone())
    }

    fn row(&self, height: Height) -> Option<Bytes> {
        Some(self.blocks.get(&height)?.0.clone())
    }

    fn put_block(&mut self, height: Height, row: &[u8], block: &Bytes) {
        let last = self.blocks.last_key_value().map(|(h, _)| *h);
        assert!(last.is_none_or(|last| last < height), "block {height} put after {last:?}");
        self.blocks.insert(height, (Bytes::copy_from_slice(row), block.clone()));
    }

    fn prune(&mut self, floor: Height, heights: &[Height]) {
        assert!(self.floor <= floor, "floor {floor} after {}", self.floor);
        self.floor = floor;
        let there: Vec<_> = self.blocks.range(..floor).map(|(h, _)| *h).collect();
        assert_eq!(there, heights, "the blocks below {floor} are those that are named");
        self.blocks = self.blocks.split_off(&floor);
    }

    fn put_leadership(&mut self, term: u64, row: &[u8], forget: Option<u64>) {
        self.leaderships.insert(term, Bytes::copy_from_slice(row));
        if let Some(term) = forget {
            assert!(self.leaderships.remove(&term).is_some(), "leadership {term} was not there");
        }
    }
}

impl Memory {
    /// A machine of a record and these rows, as after a restart.
    pub(crate) fn load(&self, record: Option<&[u8]>) -> Result<Machine, LoadError> {
        let stored = |row: &Bytes| proto::BlockRow::decode(row.clone()).expect("a row decodes").stored_bytes;
        Machine::load(
            record,
            self.blocks.iter().map(|(height, (row, _))| (*height, stored(row))),
            self.leaderships.keys().copied(),
        )
    }

    pub(crate) fn leadership_terms(&self) -> Vec<Term> {
        self.leaderships.keys().copied().collect()
    }

    pub(crate) fn heights(&self) -> Vec<Height> {
        self.blocks.keys().copied().collect()
    }

    /// Loses a row, as a damaged disk does.
    pub(crate) fn lose_block(&mut self, height: Height) {
        self.blocks.remove(&height);
    }
}
