//! The two framings of the block stream: blocks after their length as a varint go out, lines come in.

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;

use crate::types::proto::RaftBlockState;

/// Appends a block after its length as a varint.
pub(crate) fn put_block(block: &RaftBlockState, out: &mut BytesMut) {
    block.encode_length_delimited(out).expect("a BytesMut grows as needed");
}

/// Cuts what arrives in any pieces into lines. Invariant: `rest` holds no newline before `searched`.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    rest: BytesMut,
    searched: usize,
}

impl Lines {
    pub(crate) fn push(&mut self, piece: &[u8]) {
        self.rest.extend_from_slice(piece);
    }

    /// The next whole line without its end; blank ones are skipped.
    pub(crate) fn next_line(&mut self) -> Option<Bytes> {
        loop {
            let Some(at) = self.rest[self.searched..].iter().position(|b| *b == b'\n') else {
                self.searched = self.rest.len();
                return None;
            };
            let mut line = self.rest.split_to(self.searched + at);
            self.rest.advance(1);
            self.searched = 0;
            if line.last() == Some(&b'\r') {
                line.truncate(line.len() - 1);
            }
            if !line.is_empty() {
                return Some(line.freeze());
            }
        }
    }

    /// What stands behind the last newline: a line that was cut off.
    pub(crate) fn take_rest(&mut self) -> Bytes {
        self.searched = 0;
        self.rest.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_follows_its_length_as_a_varint() {
        let block = RaftBlockState {
            height: 300,
            hash: Bytes::from_static(&[7; 32]),
            timestamp: 1,
            data: Bytes::from(vec![1; 200]),
            ..Default::default()
        };
        let mut out = BytesMut::new();
        put_block(&block, &mut out);
        put_block(&block, &mut out);
        let one = block.encoded_len();
        assert!((128..16_384).contains(&one), "the length takes two bytes: {one}");
        assert_eq!(out[0], (one & 0x7f) as u8 | 0x80);
        assert_eq!(out[1], (one >> 7) as u8);
        assert_eq!(out.len(), 2 * (one + 2));
        let mut bytes = out.freeze();
        for _ in 0..2 {
            let back = RaftBlockState::decode_length_delimited(&mut bytes).expect("a block");
            assert_eq!(back, block);
        }
        assert!(bytes.is_empty());
    }

    #[test]
    fn lines_arrive_in_any_pieces() {
        let text = b"{\"a\":1}\n\n{\"b\":2}\r\n{\"cut";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut got = Vec::new();
            for piece in text.chunks(size) {
                lines.push(piece);
                while let Some(line) = lines.next_line() {
                    got.push(line);
                }
            }
            assert_eq!(got, [&b"{\"a\":1}"[..], &b"{\"b\":2}"[..]], "pieces of {size}");
            assert_eq!(&lines.take_rest()[..], b"{\"cut");
            assert_eq!(lines.next_line(), None);
        }
    }
}
