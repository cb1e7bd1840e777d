//! A caller's `traceparent`, and the spans of calls.

use std::{borrow::Cow, sync::Arc, time::Instant};

use axum::http::HeaderMap;

use crate::instants::Instants;
use crate::instants::event::Served;
use crate::instants::proposal::Traced;
use crate::telemetry::names;
use crate::telemetry::trace::{int, text};
use crate::types::trace::Context;

/// The only flag of W3C that is obeyed.
const SAMPLED: u8 = 1;
/// Longest part of a text of the caller's that a span repeats.
const TEXT_BYTES_MAX: usize = 128;

/// The context of a caller, as W3C's `traceparent` gives it.
pub(crate) type Parent = Context;

/// The context in a request's headers. One that is given twice is as if it were not there.
pub(crate) fn from_headers(headers: &HeaderMap) -> Option<Parent> {
    let mut values = headers.get_all("traceparent").iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    parse(value.as_bytes())
}

/// Strict: version 00 with its 55 characters, lower case, ids not zero; a later version may be longer.
/// Anything else is as if it were not there.
fn parse(text: &[u8]) -> Option<Parent> {
    let (head, rest) = text.split_at_checked(55)?;
    let [version, trace_id, span_id, flags] = [(0, 2), (3, 35), (36, 52), (53, 55)].map(|(a, b)| &head[a..b]);
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
    let parent = Parent {
        trace_id: hex_simd::decode_to_vec(trace_id).ok()?.try_into().ok()?,
        span_id: hex_simd::decode_to_vec(span_id).ok()?.try_into().ok()?,
        is_sampled: hex_simd::decode_to_vec(flags).ok()?[0] & SAMPLED != 0,
    };
    (parent.trace_id != [0; 16] && parent.span_id != [0; 8]).then_some(parent)
}

/// A call of JSON-RPC that was answered; `code` is its error's.
pub(crate) struct Rpc<'a> {
    pub(crate) method: &'a str,
    /// Whether anybody registered it.
    pub(crate) is_known: bool,
    /// As text; `None` for null.
    pub(crate) id: Option<String>,
    pub(crate) code: Option<i32>,
    /// A part of a batch, which has a span itself.
    pub(crate) is_inner: bool,
}

impl Rpc<'_> {
    pub(crate) fn ended(self, instants: &Instants, traced: &Arc<Traced>, started: Instant) {
        let mut attributes = vec![text(names::RPC_SYSTEM, "jsonrpc"), text(names::RPC_VERSION, "2.0")];
        let method = short(self.method);
        let name: Cow<'static, str> = if self.is_known {
            attributes.push(text(names::RPC_METHOD, method.clone()));
            method.into()
        } else {
            attributes.push(text(names::RPC_METHOD, "_OTHER"));
            attributes.push(text(names::RPC_METHOD_ORIGINAL, method));
            names::span::UNKNOWN_CALL.into()
        };
        attributes.extend(self.id.map(|id| text(names::RPC_REQUEST_ID, short(&id))));
        let error = self.code.map(|code| code.to_string());
        if let Some(code) = &error {
            attributes.push(text(names::RPC_STATUS, code.clone()));
            attributes.push(text(names::ERROR_TYPE, code.clone()));
        }
        let (ended, is_inner) = (Instant::now(), self.is_inner);
        instants.served(
            traced,
            Served { name, started, ended, attributes, error: error.map(Into::into), is_inner },
        );
    }
}

/// A plain request that was answered.
pub(crate) fn http_ended(
    instants: &Instants,
    traced: &Arc<Traced>,
    (label, route): (&'static str, &'static str),
    status: u16,
    started: Instant,
) {
    // A refusal too: it is what one looks for.
    let is_error = 400 <= status;
    let mut attributes = vec![
        text(names::HTTP_METHOD, label.split(' ').next().unwrap_or(label)),
        text(names::HTTP_ROUTE, route),
        int(names::HTTP_STATUS, status.into()),
    ];
    if is_error {
        attributes.push(text(names::ERROR_TYPE, status.to_string()));
    }
    let error = is_error.then(|| status.to_string().into());
    let served =
        Served { name: label.into(), started, ended: Instant::now(), attributes, error, is_inner: false };
    instants.served(traced, served);
}

/// The calls of a batch whose caller is traced stand below one span of the batch.
pub(crate) fn batch_ended(instants: &Instants, traced: &Arc<Traced>, n_calls: usize, started: Instant) {
    let attributes = vec![
        text(names::HTTP_METHOD, "POST"),
        text(names::HTTP_ROUTE, "/"),
        text(names::RPC_SYSTEM, "jsonrpc"),
        int(names::RPC_CALLS, n_calls as u64),
    ];
    let (name, ended) = (names::span::BATCH.into(), Instant::now());
    instants.served(traced, Served { name, started, ended, attributes, error: None, is_inner: false });
}

fn short(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn only_what_w3c_allows_is_read() {
        let parent = parse(GOOD.as_bytes()).unwrap();
        assert_eq!(parent.trace_id[0], 0x4b);
        assert_eq!(parent.span_id[7], 0xb7);
        assert!(parent.is_sampled);
        assert!(!parse(GOOD.replace("-01", "-fe").as_bytes()).unwrap().is_sampled);
        assert!(parse(format!("01{}-more", &GOOD[2..]).as_bytes()).is_some());
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
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
