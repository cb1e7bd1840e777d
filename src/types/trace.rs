//! Trace contexts: the one a caller sends, and the one that rides in the log beside a block.

pub(crate) type TraceId = [u8; 16];
pub(crate) type SpanId = [u8; 8];

/// A span of somebody else, as W3C's `traceparent` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) trace_id: TraceId,
    pub(crate) span_id: SpanId,
    pub(crate) is_sampled: bool,
}

/// The context that every node continues: the proposer's `block.propose` span.
///
/// Invariant: as bytes it has [`Carrier::BYTES`]; the first one is the version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Carrier {
    pub(crate) trace_id: TraceId,
    pub(crate) span_id: SpanId,
    /// The block's trace is to be exported; the proposer's decision, obeyed by every node.
    pub(crate) is_sampled: bool,
    /// As a whole tree; without it only inside a range of blocks.
    pub(crate) is_whole: bool,
}

const VERSION: u8 = 1;
/// The same bit as in W3C's flags.
const SAMPLED: u8 = 1;
/// A bit of our own, away from those that W3C gives a meaning.
const WHOLE: u8 = 0x80;

impl Carrier {
    /// Version, trace id, span id, flags.
    pub(crate) const BYTES: usize = 1 + 16 + 8 + 1;

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = VERSION;
        bytes[1..17].copy_from_slice(&self.trace_id);
        bytes[17..25].copy_from_slice(&self.span_id);
        bytes[25] = (u8::from(self.is_sampled) * SAMPLED) | (u8::from(self.is_whole) * WHOLE);
        bytes
    }

    /// `None` for an unknown version, and for ids that name nothing.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        let carrier = Self {
            trace_id: bytes[1..17].try_into().ok()?,
            span_id: bytes[17..25].try_into().ok()?,
            is_sampled: bytes[25] & SAMPLED != 0,
            is_whole: bytes[25] & WHOLE != 0,
        };
        (bytes[0] == VERSION && carrier.trace_id != [0; 16] && carrier.span_id != [0; 8]).then_some(carrier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_carrier_comes_back_from_its_bytes() {
        for (is_sampled, is_whole) in [(false, false), (true, false), (true, true)] {
            let carrier = Carrier { trace_id: [7; 16], span_id: [9; 8], is_sampled, is_whole };
            assert_eq!(Carrier::from_bytes(&carrier.to_bytes()), Some(carrier));
        }
    }

    #[test]
    fn what_is_no_carrier_is_ignored() {
        let good =
            Carrier { trace_id: [7; 16], span_id: [9; 8], is_sampled: true, is_whole: true }.to_bytes();
        assert_eq!(Carrier::from_bytes(&good[..25]), None);
        assert_eq!(Carrier::from_bytes(&[]), None);
        let changed = |range: std::ops::Range<usize>, to: u8| {
            let mut bytes = good;
            bytes[range].fill(to);
            Carrier::from_bytes(&bytes)
        };
        assert_eq!(changed(0..1, 2), None);
        assert_eq!(changed(1..17, 0), None);
        assert_eq!(changed(17..25, 0), None);
        assert!(changed(25..26, 0xff).is_some());
    }
}
