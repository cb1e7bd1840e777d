//! Where the replicated state lives: ordered rows in a few families.

use bytes::Bytes;

use crate::types::Height;

/// The rows of the replicated state.
///
/// Writes of one batch become visible, to reads through the table too, as they are made, and durable
/// all at once. Errors are the store's to handle: a table that cannot answer never returns
/// (safety rule 28).
pub(crate) trait Table {
    /// The block at a height, as the encoded `RaftBlockState` it was proposed as.
    fn block(&self, height: Height) -> Option<Bytes>;
    /// The row beside the block at a height: an encoded `BlockRow`.
    fn row(&self, height: Height) -> Option<Bytes>;
    /// Appends a block; heights only rise.
    fn put_block(&mut self, height: Height, row: &[u8], block: &Bytes);
    /// Forgets all blocks below a height. Never falls. `heights` are those that were there.
    fn prune(&mut self, floor: Height, heights: &[Height]);
    /// Adds one of the last leaderships, an encoded `LeadershipRow`; `forget` is the term of one to drop.
    fn put_leadership(&mut self, term: u64, row: &[u8], forget: Option<u64>);
}
