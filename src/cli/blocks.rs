//! Blocks for the demo and for load: payload that does not compress, another for each height.

use bytes::Bytes;
use rand::RngCore;

use crate::client::producer::Next;
use crate::types::proto::RaftBlockState;

/// Of a block's payload, what stands in its header.
const HEADER_BYTES: usize = 256;
/// Least size of the pool that payloads are cut from: blocks of a cache line's distance do not repeat for long.
const POOL_BYTES_MIN: usize = 1 << 20;
/// Between the payloads of two heights; prime, so that the whole pool is used.
const STRIDE: u64 = 4_099;

/// Makes blocks of one size. Payloads are slices of one pool: a block costs no copy of its content.
pub(crate) struct Maker {
    pool: Bytes,
    size: usize,
    seed: u64,
    has_parents: bool,
}

impl Maker {
    /// `size`: header and data together.
    pub(crate) fn new(size: usize, has_parents: bool) -> Self {
        let mut rng = rand::rng();
        let mut pool = vec![0; POOL_BYTES_MIN.max(2 * size)];
        rng.fill_bytes(&mut pool);
        Self { pool: pool.into(), size, seed: rng.next_u64(), has_parents }
    }

    pub(crate) fn block(&self, next: Next) -> RaftBlockState {
        let room = (self.pool.len() - self.size) as u64 + 1;
        let at = (next.height.wrapping_mul(STRIDE) % room) as usize;
        let payload = self.pool.slice(at..at + self.size);
        let header = self.size.min(HEADER_BYTES);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&next.height.to_le_bytes());
        hasher.update(&next.timestamp.to_le_bytes());
        let has_parent = self.has_parents && !next.parent_hash.is_empty();
        RaftBlockState {
            height: next.height,
            hash: Bytes::copy_from_slice(hasher.finalize().as_bytes()),
            timestamp: next.timestamp,
            header: payload.slice(..header),
            data: payload.slice(header..),
            parent_hash: has_parent.then_some(next.parent_hash),
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(height: u64) -> Next {
        Next { height, timestamp: height, parent_hash: Bytes::from_static(&[1; 32]) }
    }

    #[test]
    fn payloads_have_their_size_and_differ() {
        for size in [0, 1, 256, 257, 3 << 20] {
            let maker = Maker::new(size, false);
            let (a, b) = (maker.block(next(1)), maker.block(next(2)));
            assert_eq!(a.header.len() + a.data.len(), size);
            assert_eq!(a.header.len(), size.min(HEADER_BYTES));
            assert!(a.hash != b.hash && a.parent_hash.is_none());
            assert!(size < 8 || (a.header != b.header), "{size}");
        }
    }

    #[test]
    fn demo_blocks_name_their_parent() {
        let maker = Maker::new(10, true);
        assert_eq!(maker.block(next(2)).parent_hash, Some(Bytes::from_static(&[1; 32])));
        let first = Next { height: 1, timestamp: 1, parent_hash: Bytes::new() };
        assert_eq!(maker.block(first).parent_hash, None);
    }
}
