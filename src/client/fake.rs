//! Nodes to test the client on: they answer what they are told to, and take blocks into one shared chain.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use futures::StreamExt;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use prost::Message;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, task::AbortHandle};

use crate::client::cluster::Cluster;
use crate::client::endpoint::Endpoint;
use crate::client::http::Http;
use crate::client::wire;
use crate::types::NodeId;
use crate::types::proto::RaftBlockState;

/// Blocks that were accepted, over all nodes.
pub(crate) type Chain = Arc<Mutex<Vec<RaftBlockState>>>;

/// What a node says and does.
#[derive(Debug, Default)]
pub(crate) struct Script {
    pub(crate) node_id: NodeId,
    pub(crate) leader_id: Option<NodeId>,
    pub(crate) leader_api: Option<String>,
    pub(crate) fence: Option<u64>,
    /// What `raft_members` answers instead of node 9 alone.
    pub(crate) members: Option<Value>,
    /// It takes calls and answers none.
    pub(crate) hangs: bool,
    /// Error objects by method, instead of a result.
    pub(crate) errors: Vec<(&'static str, Value)>,
    /// The connection breaks when it has taken so many blocks, and answers only half of them.
    pub(crate) cut_after: Option<usize>,
    /// It answers no more than so many blocks of a stream, and takes them all.
    pub(crate) mute_after: Option<usize>,
    /// The whole stream is refused.
    pub(crate) refuse_stream: Option<(u16, Value)>,
    /// Methods that were called.
    pub(crate) called: Vec<String>,
}

pub(crate) struct Fake {
    pub(crate) endpoint: Endpoint,
    pub(crate) script: Arc<Mutex<Script>>,
    server: AbortHandle,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Fake {
    pub(crate) async fn start(node_id: NodeId, chain: &Chain) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = listener.local_addr().expect("bound").to_string().parse().expect("an address");
        let script = Arc::new(Mutex::new(Script { node_id, ..Default::default() }));
        let server = tokio::spawn(serve(listener, Arc::clone(&script), Arc::clone(chain))).abort_handle();
        Self { endpoint, script, server }
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().expect("not poisoned"));
    }

    pub(crate) fn leads(&self, fence: u64) {
        self.set(|s| {
            s.leader_id = Some(s.node_id);
            s.fence = Some(fence);
        });
    }

    pub(crate) fn follows(&self, leader: &Fake) {
        let node_id = leader.script.lock().expect("not poisoned").node_id;
        self.set(|s| {
            s.leader_id = Some(node_id);
            s.leader_api = Some(leader.endpoint.to_string());
            s.fence = None;
        });
    }

    pub(crate) fn called(&self, method: &str) -> usize {
        self.script.lock().expect("not poisoned").called.iter().filter(|m| *m == method).count()
    }
}

pub(crate) fn cluster(endpoints: &[&Endpoint]) -> Cluster {
    cluster_within(Duration::from_secs(10), endpoints)
}

pub(crate) fn cluster_within(timeout: Duration, endpoints: &[&Endpoint]) -> Cluster {
    Cluster::new(Http::new(timeout, None), endpoints.iter().map(|e| (*e).clone()).collect(), timeout)
}

/// Where nobody listens.
pub(crate) fn dead() -> Endpoint {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").to_string().parse().expect("an address")
}

async fn serve(listener: TcpListener, script: Arc<Mutex<Script>>, chain: Chain) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((socket, _)) = listener.accept().await else { return };
        let (script, chain) = (Arc::clone(&script), Arc::clone(&chain));
        connections.spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&script), Arc::clone(&chain)));
            // A test that cuts a connection sees it on its own side.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

fn whole(status: u16, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|e: Infallible| match e {}).boxed_unsync();
    Response::builder().status(status).body(body).expect("well-formed")
}

async fn answer(
    request: Request<Incoming>,
    script: Arc<Mutex<Script>>,
    chain: Chain,
) -> Result<Response<Body>, Infallible> {
    if request.method() == Method::POST && request.uri().path() == "/v1/blocks/stream" {
        return Ok(stream(request, &script, chain));
    }
    let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let Ok(call) = serde_json::from_slice::<Value>(&body) else { return Ok(whole(404, &json!({}))) };
    let method = call["method"].as_str().unwrap_or("").to_string();
    let hangs = {
        let mut script = script.lock().expect("not poisoned");
        script.called.push(method.clone());
        script.hangs
    };
    if hangs {
        return std::future::pending().await;
    }
    let script = script.lock().expect("not poisoned");
    if let Some((_, error)) = script.errors.iter().find(|(m, _)| *m == method) {
        return Ok(whole(200, &json!({"jsonrpc": "2.0", "id": 1, "error": error})));
    }
    let is_self = script.leader_id == Some(script.node_id);
    let head = chain.lock().expect("not poisoned").last().map_or(
        Value::Null,
        |b| json!({"height": b.height, "hash": wire::hex(&b.hash), "timestamp": b.timestamp.to_string()}),
    );
    let result = match method.as_str() {
        "raft_leader" => {
            json!({"leaderId": script.leader_id, "leaderApi": script.leader_api, "isSelf": is_self,
            "term": script.fence.unwrap_or(0), "fence": script.fence, "ready": is_self.then_some(script.fence.is_some())})
        }
        "raft_status" => json!({"nodeId": script.node_id, "leaderId": script.leader_id, "head": head}),
        "raft_members" => script.members.clone().unwrap_or_else(
            || json!({"version": 1, "learners": [], "voters": [{"nodeId": 9, "apiAddr": "n9:7400"}]}),
        ),
        _ => json!({"answeredBy": script.node_id}),
    };
    Ok(whole(200, &json!({"jsonrpc": "2.0", "id": 1, "result": result})))
}

fn stream(request: Request<Incoming>, script: &Mutex<Script>, chain: Chain) -> Response<Body> {
    let script = script.lock().expect("not poisoned");
    if let Some((status, error)) = &script.refuse_stream {
        return whole(*status, &json!({"error": error}));
    }
    let fence = request.headers().get("blockraft-fence").and_then(|f| f.to_str().ok()?.parse::<u64>().ok());
    assert_eq!(fence, script.fence, "a stream without the leader's fence");
    let (cut_after, mute_after) = (script.cut_after, script.mute_after);
    let (lines, queue) = mpsc::unbounded_channel::<std::io::Result<Bytes>>();
    tokio::spawn(take(request.into_body(), lines, chain, fence.unwrap_or(0), cut_after, mute_after));
    let frames = futures::stream::unfold(queue, |mut queue| async move {
        Some((queue.recv().await?.map(Frame::data), queue))
    });
    let body = BodyExt::boxed_unsync(StreamBody::new(frames.boxed()));
    Response::builder().status(StatusCode::OK).body(body).expect("well-formed")
}

async fn take(
    mut body: Incoming,
    lines: mpsc::UnboundedSender<std::io::Result<Bytes>>,
    chain: Chain,
    term: u64,
    cut_after: Option<usize>,
    mute_after: Option<usize>,
) {
    let mut buffer = BytesMut::new();
    let mut n_taken = 0;
    while let Some(Ok(frame)) = body.frame().await {
        buffer.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d));
        while let Some(block) = next_block(&mut buffer) {
            let line = accept(&chain, &block, term);
            n_taken += 1;
            if cut_after.is_some_and(|n| n <= n_taken) {
                let _ = lines.send(Err(std::io::ErrorKind::ConnectionReset.into()));
                return;
            }
            let is_refused = line["error"].is_object();
            if cut_after.is_none_or(|n| n_taken <= n / 2) && mute_after.is_none_or(|n| n_taken <= n) {
                let _ = lines.send(Ok(Bytes::from(format!("{line}\n"))));
            }
            if is_refused {
                return;
            }
        }
    }
}

fn next_block(buffer: &mut BytesMut) -> Option<RaftBlockState> {
    let mut peek = &buffer[..];
    let length = prost::encoding::decode_varint(&mut peek).ok()? as usize;
    if peek.len() < length {
        return None;
    }
    let used = buffer.len() - peek.len();
    buffer.advance(used);
    Some(RaftBlockState::decode(buffer.split_to(length).freeze()).expect("a block"))
}

fn accept(chain: &Chain, block: &RaftBlockState, term: u64) -> Value {
    let mut chain = chain.lock().expect("not poisoned");
    let refused = |reason| json!({"error": {"code": -32033, "message": "m", "data": {"kind": "refused", "reason": reason}}});
    let acked = |duplicate| json!({"height": block.height, "term": term, "index": block.height + 1, "duplicate": duplicate});
    if let Some(same) = chain.iter().find(|b| b.height == block.height) {
        return if same == block { acked(true) } else { refused("conflict") };
    }
    if chain.last().is_some_and(|head| head.height + 1 != block.height) {
        return refused("gap");
    }
    chain.push(block.clone());
    acked(false)
}
