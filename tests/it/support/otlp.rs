//! A collector of traces on loopback: OTLP over gRPC and over HTTP, on one port.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::http::HeaderMap;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use prost::Message;

use crate::support::block::hex;

/// What an attribute holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Attr {
    Int(i64),
    Text(String),
    Bool(bool),
    Other,
}

#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) name: String,
    pub(crate) trace: String,
    pub(crate) id: String,
    /// Empty: none.
    pub(crate) parent: String,
    pub(crate) is_server: bool,
    pub(crate) attrs: BTreeMap<String, Attr>,
    /// Traces it is linked to.
    pub(crate) links: Vec<String>,
    /// `service.instance.id` of who sent it.
    pub(crate) node: String,
}

impl Span {
    /// An attribute that is an integer; panics where it is another kind.
    #[track_caller]
    pub(crate) fn int(&self, name: &str) -> Option<i64> {
        match self.attrs.get(name)? {
            Attr::Int(n) => Some(*n),
            other => panic!("{name} of {} is {other:?}, not an integer", self.name),
        }
    }
}

/// What a collector over HTTP answers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Manner {
    #[default]
    Takes,
    /// So many spans of each batch are rejected: a partial success.
    Rejects(i64),
    /// Not now: it asks for so many seconds of patience.
    IsBusy(u64),
    /// It is elsewhere.
    Redirects,
}

/// It ends with the test's process.
pub(crate) struct Receiver {
    /// `http://host:port`, for either protocol.
    pub(crate) endpoint: String,
    kept: Kept,
}

/// What was sent.
#[derive(Clone, Default)]
struct Kept {
    spans: Arc<Mutex<Vec<Span>>>,
    /// Only counted: reading them would cost the machine what is to be measured.
    is_counting: bool,
    manner: Manner,
    n_requests: Arc<AtomicUsize>,
}

impl Receiver {
    /// Keeps every span.
    pub(crate) fn start() -> Self {
        Self::with(Kept::default())
    }

    /// Takes every span and keeps none.
    pub(crate) fn counting() -> Self {
        Self::with(Kept { is_counting: true, ..Kept::default() })
    }

    /// Keeps every span, whatever it answers.
    pub(crate) fn of_manner(manner: Manner) -> Self {
        Self::with(Kept { manner, ..Kept::default() })
    }

    fn with(kept: Kept) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket option");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let keeping = kept.clone();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(serve(listener, keeping));
        });
        Self { endpoint, kept }
    }

    pub(crate) fn all(&self) -> Vec<Span> {
        self.kept.spans.lock().expect("no panic before").clone()
    }

    pub(crate) fn of(&self, name: &str) -> Vec<Span> {
        self.all().into_iter().filter(|s| s.name == name).collect()
    }

    pub(crate) fn n_requests(&self) -> usize {
        self.kept.n_requests.load(Ordering::Relaxed)
    }
}

async fn serve(listener: std::net::TcpListener, kept: Kept) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    while let Ok((stream, _)) = listener.accept().await {
        let kept = kept.clone();
        tokio::spawn(async move {
            let answer = hyper::service::service_fn(|request| answer(request, kept.clone()));
            // A node that is killed breaks its connection.
            let _ =
                auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>, kept: Kept) -> Result<Response<Body>, hyper::Error> {
    let is_grpc = request.headers().get("content-type").is_some_and(|t| t == "application/grpc");
    let body = request.into_body().collect().await?.to_bytes();
    kept.n_requests.fetch_add(1, Ordering::Relaxed);
    if !kept.is_counting {
        // A message of gRPC stands behind a flag and its length.
        let message = if is_grpc { body.slice(5.min(body.len())..) } else { body };
        let sent = ExportTraceServiceRequest::decode(message).expect("OTLP");
        kept.spans.lock().expect("no panic before").extend(read(sent));
    }
    let mut frames = Vec::new();
    let mut response = Response::builder();
    match kept.manner {
        Manner::Takes => {}
        Manner::Rejects(rejected_spans) => {
            let partial = ExportTracePartialSuccess { rejected_spans, error_message: "too old".into() };
            let answer = ExportTraceServiceResponse { partial_success: Some(partial) };
            frames.push(Ok(Frame::data(answer.encode_to_vec().into())));
        }
        Manner::IsBusy(seconds) => response = response.status(429).header("retry-after", seconds),
        Manner::Redirects => response = response.status(307).header("location", "/elsewhere"),
    }
    if is_grpc {
        frames.push(Ok(Frame::data(Bytes::from_static(&[0; 5]))));
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().expect("a value"));
        frames.push(Ok(Frame::trailers(trailers)));
    }
    let media = if is_grpc { "application/grpc" } else { "application/x-protobuf" };
    let body = StreamBody::new(stream::iter(frames)).boxed();
    Ok(response.header("content-type", media).body(body).expect("constant parts"))
}

fn read(sent: ExportTraceServiceRequest) -> Vec<Span> {
    let mut spans = Vec::new();
    for of_resource in sent.resource_spans {
        let resource = attrs(of_resource.resource.unwrap_or_default().attributes);
        let node = match resource.get("service.instance.id") {
            Some(Attr::Text(id)) => id.clone(),
            other => panic!("service.instance.id is {other:?}"),
        };
        for s in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            assert!(s.start_time_unix_nano <= s.end_time_unix_nano, "{} ends before it starts", s.name);
            spans.push(Span {
                name: s.name,
                trace: id(&s.trace_id),
                id: id(&s.span_id),
                parent: id(&s.parent_span_id),
                // SPAN_KIND_SERVER
                is_server: s.kind == 2,
                attrs: attrs(s.attributes),
                links: s.links.iter().map(|l| id(&l.trace_id)).collect(),
                node: node.clone(),
            });
        }
    }
    spans
}

/// An id as `traceparent` writes it.
fn id(bytes: &[u8]) -> String {
    hex(bytes).trim_start_matches("0x").to_owned()
}

fn attrs(pairs: Vec<KeyValue>) -> BTreeMap<String, Attr> {
    let n = pairs.len();
    let value = |pair: KeyValue| match pair.value.and_then(|v| v.value) {
        Some(Value::IntValue(n)) => Attr::Int(n),
        Some(Value::StringValue(s)) => Attr::Text(s),
        Some(Value::BoolValue(b)) => Attr::Bool(b),
        _ => Attr::Other,
    };
    let all: BTreeMap<_, _> = pairs.into_iter().map(|p| (p.key.clone(), value(p))).collect();
    assert_eq!(all.len(), n, "each key once");
    all
}
