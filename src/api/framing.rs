//! The framing of the block stream: each message after its length as a varint.
//!
//! Works on the chunks as they come from the socket. A message that lies whole in one chunk is a slice of
//! it; one that does not is put together in a single copy. Pure; knows nothing of what a message holds.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A varint of a u64 has at most so many bytes.
const VARINT_BYTES_MAX: usize = 10;

/// What is wrong with the bytes. Nothing after it can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FramingError {
    #[error("a length is not a varint")]
    Length,
    #[error("a message of {bytes} bytes, at most {max} are taken")]
    TooLarge { bytes: u64, max: u64 },
}

/// Cuts a stream of bytes into messages.
#[derive(Debug, Default)]
pub(crate) struct Framing {
    /// Not yet looked at.
    chunk: Bytes,
    /// Of a length that is not whole yet.
    varint: u64,
    varint_bytes: usize,
    /// Of the next message, until it is taken.
    length: Option<usize>,
    /// What came of a message that lies in more than one chunk.
    partial: Option<BytesMut>,
}

impl Framing {
    /// Gives the next chunk. All messages of the one before must have been taken.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        assert!(self.chunk.is_empty(), "{} bytes of the chunk before were not taken", self.chunk.len());
        self.chunk = chunk;
    }

    /// How long the next message is, once that is known, and until it is taken; `None`: another chunk is
    /// needed. `max` bounds it. None of its bytes is kept before [`Framing::message`] is called.
    pub(crate) fn length(&mut self, max: u64) -> Result<Option<usize>, FramingError> {
        if self.length.is_none()
            && let Some(bytes) = self.read_length()?
        {
            if max < bytes {
                return Err(FramingError::TooLarge { bytes, max });
            }
            let bytes = usize::try_from(bytes).map_err(|_| FramingError::TooLarge { bytes, max })?;
            self.length = Some(bytes);
        }
        Ok(self.length)
    }

    /// The message whose length is known, when it is whole; `None`: another chunk is needed.
    pub(crate) fn message(&mut self) -> Option<Bytes> {
        let length = self.length?;
        let message = match &mut self.partial {
            None if length <= self.chunk.len() => self.chunk.split_to(length),
            partial => {
                let buffer = partial.get_or_insert_with(|| BytesMut::with_capacity(length));
                let take = (length - buffer.len()).min(self.chunk.len());
                buffer.put(self.chunk.split_to(take));
                if buffer.len() < length {
                    return None;
                }
                partial.take()?.freeze()
            }
        };
        self.length = None;
        Some(message)
    }

    /// Whether the bytes so far end between two messages.
    pub(crate) fn is_between(&self) -> bool {
        self.length.is_none() && self.varint_bytes == 0 && self.chunk.is_empty()
    }

    fn read_length(&mut self) -> Result<Option<u64>, FramingError> {
        while self.chunk.has_remaining() {
            let byte = self.chunk.get_u8();
            let shift = 7 * self.varint_bytes as u32;
            let bits = u64::from(byte & 0x7f);
            if self.varint_bytes == VARINT_BYTES_MAX - 1 && 1 < byte {
                return Err(FramingError::Length);
            }
            self.varint |= bits << shift;
            self.varint_bytes += 1;
            if byte & 0x80 == 0 {
                self.varint_bytes = 0;
                return Ok(Some(std::mem::take(&mut self.varint)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(messages: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for m in messages {
            prost::encoding::encode_varint(m.len() as u64, &mut out);
            out.extend_from_slice(m);
        }
        out
    }

    fn read(chunks: impl Iterator<Item = Bytes>) -> (Vec<Bytes>, bool) {
        let (mut framing, mut out) = (Framing::default(), Vec::new());
        for chunk in chunks {
            framing.push(chunk);
            while let Some(length) = framing.length(1 << 20).unwrap() {
                assert_eq!(framing.length(1 << 20), Ok(Some(length)), "it stays until it is taken");
                let Some(m) = framing.message() else { break };
                assert_eq!(m.len(), length);
                out.push(m);
            }
        }
        (out, framing.is_between())
    }

    #[test]
    fn every_cut_in_two_and_in_single_bytes_gives_the_same_messages() {
        let long = vec![7u8; 300];
        let messages: [&[u8]; 5] = [b"a", b"", &long, b"bcd", b""];
        let all = Bytes::from(framed(&messages));
        for cut in 0..=all.len() {
            let (got, is_between) = read([all.slice(..cut), all.slice(cut..)].into_iter());
            assert_eq!(got, messages, "cut at {cut}");
            assert!(is_between);
        }
        let (got, _) = read((0..all.len()).map(|i| all.slice(i..=i)));
        assert_eq!(got, messages, "byte by byte");
    }

    #[test]
    fn every_end_inside_a_message_is_told() {
        let long = vec![7u8; 300];
        let all = Bytes::from(framed(&[b"ab", &long]));
        for end in 0..=all.len() {
            let (_, is_between) = read([all.slice(..end)].into_iter());
            assert_eq!(is_between, [0, 3, all.len()].contains(&end), "end at {end}");
        }
    }

    #[test]
    fn a_message_in_one_chunk_is_not_copied() {
        let all = Bytes::from(framed(&[b"abcdef"]));
        let mut framing = Framing::default();
        framing.push(all.clone());
        assert_eq!(framing.length(100), Ok(Some(6)));
        let got = framing.message().unwrap();
        assert_eq!(got.as_ptr(), all[1..].as_ptr());
    }

    #[test]
    fn a_length_is_told_before_any_byte_of_its_message_is_kept() {
        let mut framing = Framing::default();
        framing.push(Bytes::from(framed(&[&[7u8; 300]])).slice(..2));
        assert_eq!(framing.length(1 << 20), Ok(Some(300)));
        assert!(framing.partial.is_none() && !framing.is_between());
    }

    #[test]
    fn lengths_are_bounded_and_well_formed() {
        let mut framing = Framing::default();
        framing.push(Bytes::from_static(&[0x80, 0x80, 0x01]));
        assert_eq!(framing.length(100), Err(FramingError::TooLarge { bytes: 16_384, max: 100 }));
        let mut framing = Framing::default();
        framing.push(Bytes::from_static(&[0xff; 11]));
        assert_eq!(framing.length(u64::MAX), Err(FramingError::Length));
        let mut most = Framing::default();
        most.push(Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]));
        assert_eq!(most.length(100), Err(FramingError::TooLarge { bytes: u64::MAX, max: 100 }));
    }
}
