//! Blocks over plain HTTP: `POST /v1/blocks`, the fast path for one block at a time, and
//! `GET /v1/blocks/{height}`.

use std::{sync::Arc, time::Duration, time::Instant};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header},
};
use bytes::Bytes;
use hyper::body::Incoming;
use prost::Message;

use crate::api::args::Patience;
use crate::api::body::BodyError;
use crate::api::error::{Code, Fault};
use crate::api::http::{Front, is_media, json, plain_fault, plain_fault_as};
use crate::api::metrics::Rejected;
use crate::api::trace::Parent;
use crate::api::wire::Acknowledged;
use crate::api::{Api, args, body, handlers, routes, settings, trace};
use crate::instants::Instants;
use crate::instants::proposal::{Door, Traced};
use crate::proposals::Proposal;
use crate::types::block::Block;
use crate::types::proto::RaftBlockState;

/// What a block's message has beside header and data: two hashes, five integers, and room for fields that
/// a later sequencer may add.
const MESSAGE_EXTRA_BYTES: u64 = 4 << 10;

/// Longest message of a new block.
pub(crate) fn message_bytes_max(api: &Api) -> u64 {
    api.parts.reader.view().settings.settings.max_block_bytes + MESSAGE_EXTRA_BYTES
}

/// Longest message of a block that was agreed on under any settings.
fn old_message_bytes_max(api: &Api) -> u64 {
    settings::block_bytes_max(api.config.max_body) + MESSAGE_EXTRA_BYTES
}

/// What the headers of a proposal say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) fence: Option<u64>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) parent: Option<Parent>,
}

impl Terms {
    pub(crate) fn from_headers(headers: &HeaderMap) -> Result<Self, Fault> {
        let fence = header_of(headers, "Blockraft-Fence", |text| {
            args::integer(text).ok_or("is not a decimal or 0x integer below 2^64")
        })?;
        let timeout = header_of(headers, "Blockraft-Timeout", |text| {
            let asked = settings::parse_duration(text)?;
            let is_right = (1..=u128::from(Patience::MS_MAX)).contains(&asked.as_millis());
            if is_right { Ok(asked) } else { Err("is not from 1ms to 30s") }
        })?;
        Ok(Self { fence, timeout, parent: trace::from_headers(headers) })
    }

    /// One of the blocks of a stream.
    pub(crate) fn streamed(&self, block: Block, received: Instant, instants: &Instants) -> Proposal {
        let trace = Some(instants.begin(self.parent, Door::Other));
        Proposal { block, fence: self.fence, timeout: self.timeout, trace, received }
    }
}

fn header_of<T>(
    headers: &HeaderMap,
    name: &'static str,
    read: impl FnOnce(&str) -> Result<T, &'static str>,
) -> Result<Option<T>, Fault> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Fault::param(name, format!("{name} is given twice")));
    }
    let text = value.to_str().unwrap_or("").trim();
    read(text).map(Some).map_err(|why| Fault::param(name, format!("{name} {why}")))
}

/// Whether the body says that it is protobuf.
pub(crate) fn is_protobuf(headers: &HeaderMap) -> bool {
    is_media(headers, &["application/x-protobuf", "application/protobuf"])
}

/// `None`: the body is protobuf.
pub(crate) fn refuse_media(api: &Api, headers: &HeaderMap) -> Option<Response<Body>> {
    if is_protobuf(headers) {
        return None;
    }
    api.parts.metrics.reject(Rejected::MediaType);
    let fault = Fault::new(Code::InvalidRequest, "the Content-Type is not application/x-protobuf");
    Some(plain_fault_as(StatusCode::UNSUPPORTED_MEDIA_TYPE, &fault))
}

/// A message as a block that is well-formed.
pub(crate) fn decode(message: Bytes) -> Result<Block, Fault> {
    let state = RaftBlockState::decode(message)
        .map_err(|e| Fault::param("block", format!("the block is not a RaftBlockState: {e}")))?;
    let mut block = Block::from(state);
    // A copy: as a slice it would keep the whole chunk it came in, for as long as the answer takes.
    block.hash = Bytes::copy_from_slice(&block.hash);
    block.check_well_formed().map_err(|e| Fault::param(e.field(), e.to_string()))?;
    Ok(block)
}

pub(crate) fn too_large(bytes: u64, max: u64) -> Fault {
    Fault::too_large(format!(
        "the block's message has {bytes} bytes, at most {max} are taken: chain.max_block_bytes, or for one that was agreed on before that was changed half of api.max_body; and {MESSAGE_EXTRA_BYTES} for the rest of it"
    ))
}

/// `POST /v1/blocks`.
pub(crate) async fn propose(front: Arc<Front>, request: Request<Incoming>) -> Response<Body> {
    let received = Instant::now();
    let (head, incoming) = request.into_parts();
    let api = &front.api;
    if let Some(refused) = refuse_media(api, &head.headers) {
        body::discard(&head.headers, incoming);
        return refused;
    }
    let instants = &api.parts.instants;
    let traced = instants.begin(trace::from_headers(&head.headers), Door::Call);
    let answer = match accept(api, &head.headers, incoming, received, &traced).await {
        Ok(acknowledged) => json(StatusCode::OK, to_vec(&acknowledged)),
        Err((Some(status), fault)) => plain_fault_as(status, &fault),
        Err((None, fault)) => plain_fault(&fault),
    };
    if instants.tracer().is_on() {
        trace::http_ended(instants, &traced, routes::PROPOSE, answer.status().as_u16(), received);
    }
    answer
}

async fn accept(
    api: &Api,
    headers: &HeaderMap,
    incoming: Incoming,
    received: Instant,
    traced: &Arc<Traced>,
) -> Result<Acknowledged, (Option<StatusCode>, Fault)> {
    let plain = |fault: Fault| (None, fault);
    let (max, usual) = (old_message_bytes_max(api), message_bytes_max(api));
    let stated = body::stated_length(headers);
    // Before a byte of it is read: a node that is full does not buffer what it will refuse.
    let before = Terms::from_headers(headers).and_then(|terms| match stated {
        Some(bytes) if max < bytes => Err(too_large(bytes, max)),
        Some(bytes) if bytes <= usual => Ok((terms, Some(api.parts.proposals.admit(bytes)?))),
        // What can only be an old block takes no room of new ones while it is read.
        Some(_) | None => Ok((terms, None)),
    });
    let (terms, permit) = match before {
        Ok(before) => before,
        Err(fault) => {
            body::discard(headers, incoming);
            return Err(plain(fault));
        }
    };
    let budget = permit.is_none().then_some(&api.body_budget);
    let (message, room) = body::read(incoming, stated, max, budget).await.map_err(|e| {
        let fault = match e {
            BodyError::TooLarge => return plain(too_large(max + 1, max)),
            BodyError::NoRoom => {
                return plain(Fault::overloaded("too many bytes of requests are being read", 1));
            }
            BodyError::TooSlow | BodyError::Broken => Fault::new(Code::InvalidRequest, e.to_string()),
        };
        // A client that is gone was turned away by nobody.
        if e != BodyError::Broken {
            api.parts.metrics.reject(Rejected::BodyTimeout);
        }
        (Some(StatusCode::REQUEST_TIMEOUT), fault)
    })?;
    let permit = match permit {
        Some(permit) => permit,
        None => api.parts.proposals.admit(message.len() as u64).map_err(|e| plain(e.into()))?,
    };
    let block = decode(message).map_err(plain)?;
    let (fence, timeout, trace) = (terms.fence, terms.timeout, Some(Arc::clone(traced)));
    let proposal = Proposal { block, fence, timeout, trace, received };
    let accepted = handlers::propose(api, proposal, permit).await.map_err(plain)?;
    drop(room);
    Ok(accepted.into())
}

fn to_vec(acknowledged: &Acknowledged) -> Vec<u8> {
    serde_json::to_vec(acknowledged).expect("an answer has string keys and finite numbers")
}

/// `GET /v1/blocks/{height}`.
pub(crate) async fn get(front: &Front, headers: &HeaderMap, height: &str) -> Response<Body> {
    let Some(height) = args::integer(height) else {
        let why = "height is not a decimal or 0x integer below 2^64";
        return plain_fault(&Fault::param("height", why));
    };
    if wants_protobuf(headers) {
        let read = handlers::read_block(&front.api, height, |stored| {
            let (term, index) = (stored.term, stored.index);
            (RaftBlockState::from(stored.block).encode_to_vec(), term, index)
        });
        return match read.await {
            Err(fault) => plain_fault(&fault),
            Ok((message, term, index)) => {
                let mut answer = Response::new(Body::from(message));
                let answer_headers = answer.headers_mut();
                answer_headers
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
                answer_headers.insert("blockraft-term", term.into());
                answer_headers.insert("blockraft-index", index.into());
                answer
            }
        };
    }
    match handlers::get(&front.api, height).await {
        Ok(block) => json(StatusCode::OK, String::from(Box::<str>::from(block))),
        Err(fault) => plain_fault(&fault),
    }
}

/// Whether `Accept` names protobuf, and no less gladly than JSON.
fn wants_protobuf(headers: &HeaderMap) -> bool {
    let (mut protobuf, mut json) = (0.0, 0.0);
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
    for range in values.flat_map(|v| v.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or("");
        let quality = parts.find_map(|p| p.strip_prefix("q=")).map_or(1.0, |q| q.parse().unwrap_or(0.0));
        let at = match media.to_ascii_lowercase().as_str() {
            "application/x-protobuf" | "application/protobuf" => &mut protobuf,
            "application/json" => &mut json,
            _ => continue,
        };
        *at = f32::max(*at, quality);
    }
    0.0 < protobuf && json <= protobuf
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn protobuf_is_given_to_who_names_it() {
        let wants = |accept| wants_protobuf(&headers(&[("accept", accept)]));
        assert!(wants("application/x-protobuf"));
        assert!(wants("application/json;q=0.5, Application/Protobuf"));
        assert!(wants("application/x-protobuf, */*;q=0.1"));
        for json in [
            "*/*",
            "application/json",
            "application/x-protobuf;q=0",
            "application/json, application/protobuf;q=0.9",
        ] {
            assert!(!wants(json), "{json}");
        }
        assert!(!wants_protobuf(&HeaderMap::new()));
    }

    #[test]
    fn the_headers_of_a_proposal_are_read_or_named() {
        let terms =
            Terms::from_headers(&headers(&[("blockraft-fence", "0x7"), ("blockraft-timeout", "800ms")]));
        let terms = terms.unwrap();
        assert_eq!((terms.fence, terms.timeout), (Some(7), Some(Duration::from_millis(800))));
        for (name, value) in [
            ("Blockraft-Fence", "-1"),
            ("Blockraft-Fence", "1.5"),
            ("Blockraft-Fence", ""),
            ("Blockraft-Fence", "18446744073709551616"),
            ("Blockraft-Timeout", "800"),
            ("Blockraft-Timeout", "31s"),
            ("Blockraft-Timeout", "0"),
            ("Blockraft-Timeout", "soon"),
        ] {
            let mut given = HeaderMap::new();
            given.insert(name, value.parse().unwrap());
            let fault = Terms::from_headers(&given).unwrap_err();
            assert_eq!(fault.data.param.as_deref(), Some(name), "{value}");
        }
        let twice = headers(&[("blockraft-fence", "7"), ("blockraft-fence", "8")]);
        assert!(Terms::from_headers(&twice).is_err());
    }
}
