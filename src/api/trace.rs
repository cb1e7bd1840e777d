//! A caller's `traceparent`, and the carrier that takes a trace id through the log.

use axum::http::HeaderMap;

/// Version, trace id, span id, flags: see the carrier of the block command.
pub(crate) type Carrier = [u8; 1 + 16 + 8 + 1];

const CARRIER_VERSION: u8 = 1;
/// The only flag of W3C that is obeyed.
const SAMPLED: u8 = 1;

/// A trace context as W3C's `traceparent` gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(crate) trace_id: [u8; 16],
    pub(crate) span_id: [u8; 8],
    pub(crate) is_sampled: bool,
}

impl Parent {
    /// Strict: version 00 with its 55 characters, lower case, ids not zero; a later version may be longer.
    /// Anything else is as if it were not there.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all("traceparent").iter();
        let value = values.next().filter(|_| values.next().is_none())?;
        Self::parse(value.as_bytes())
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let (head, rest) = text.split_at_checked(55)?;
        let [version, trace_id, span_id, flags] =
            [(0, 2), (3, 35), (36, 52), (53, 55)].map(|(a, b)| &head[a..b]);
        if [2, 35, 52].into_iter().any(|dash| head[dash] != b'-') {
            return None;
        }
        let is_hex = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if ![version, trace_id, span_id, flags].into_iter().all(|part| part.iter().all(is_hex)) {
            return None;
        }
        let is_whole = match version {
            b"00" => rest.is_empty(),
            b"ff" => false,
            _ => rest.is_empty() || rest[0] == b'-',
        };
        if !is_whole {
            return None;
        }
        let parent = Self {
            trace_id: hex_simd::decode_to_vec(trace_id).ok()?.try_into().ok()?,
            span_id: hex_simd::decode_to_vec(span_id).ok()?.try_into().ok()?,
            is_sampled: hex_simd::decode_to_vec(flags).ok()?[0] & SAMPLED != 0,
        };
        (parent.trace_id != [0; 16] && parent.span_id != [0; 8]).then_some(parent)
    }
}

/// What takes a caller's trace through the log: its trace id and a span id of ours. `None` where the caller
/// has no trace that is sampled: the block then gets one of its own.
pub(crate) fn carrier(parent: Option<&Parent>) -> Option<Carrier> {
    let parent = parent.filter(|p| p.is_sampled)?;
    let mut carrier: Carrier = rand::random();
    carrier[0] = CARRIER_VERSION;
    carrier[1..17].copy_from_slice(&parent.trace_id);
    carrier[25] = SAMPLED;
    Some(carrier)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn only_what_w3c_allows_is_read() {
        let parent = Parent::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(parent.trace_id[0], 0x4b);
        assert_eq!(parent.span_id[7], 0xb7);
        assert!(parent.is_sampled);
        assert!(!Parent::parse(GOOD.replace("-01", "-fe").as_bytes()).unwrap().is_sampled);
        assert!(Parent::parse(format!("01{}-more", &GOOD[2..]).as_bytes()).is_some());
        for bad in [
            GOOD.to_uppercase(),
            format!("{GOOD}-more"),
            format!("{GOOD} "),
            format!("ff{}", &GOOD[2..]),
            GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            GOOD.replace('-', "_"),
            GOOD[..54].to_owned(),
            String::new(),
        ] {
            assert_eq!(Parent::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_carrier_keeps_a_sampled_caller_s_trace_alone() {
        let parent = Parent::parse(GOOD.as_bytes()).unwrap();
        let carried = carrier(Some(&parent)).unwrap();
        assert_eq!(carried[0], 1);
        assert_eq!(carried[1..17], parent.trace_id);
        assert_ne!(carried[17..25], parent.span_id);
        assert_eq!(carrier(Some(&Parent { is_sampled: false, ..parent })), None);
        assert_eq!(carrier(None), None);
    }
}
