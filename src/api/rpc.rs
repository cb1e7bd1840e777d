//! JSON-RPC through the library: registration from the method table, and what every call passes.
//!
//! [`Observe`] stands around every call, alone or in a batch, over HTTP and over WebSocket: it counts,
//! measures and limits. The library's own `batch` would go past it.

use std::{
    borrow::Cow,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::FutureExt;
use jsonrpsee::{
    Extensions, MethodResponse, RpcModule,
    core::{
        middleware::{Batch, BatchEntry, Notification, RpcServiceT},
        server::BatchResponseBuilder,
    },
    server::{
        BatchRequestConfig, Methods, PingConfig, RandomStringIdProvider, Server, ServerConfig, ServerHandle,
        StopHandle, TowerServiceBuilder, middleware::rpc::RpcServiceBuilder, stop_channel,
    },
    types::{ErrorObjectOwned, Id, Request},
};
use serde_json::value::RawValue;
use tower::layer::util::{Identity, Stack};

use crate::api::answers::Waiting;
use crate::api::args::Args;
use crate::api::error::{Code, Fault};
use crate::api::handlers::{Call, Transport};
use crate::api::metrics::Rejected;
use crate::api::sessions::Session;
use crate::api::socket::Connection;
use crate::api::trace::Parent;
use crate::api::{Api, answers, control, subscriptions, table, trace};
use crate::instants::proposal::Traced;

/// Pings of a WebSocket, and how long one may stay unanswered: synchronous clients answer only while they
/// read.
const PING_EVERY: Duration = Duration::from_secs(20);
pub(crate) const PING_UNANSWERED_MAX: Duration = Duration::from_secs(300);
/// Messages of one WebSocket that wait to be sent: each may have tens of MiB.
const MESSAGES_MAX: u32 = 4;
/// Subscriptions of one connection. By eye.
const SUBSCRIPTIONS_MAX: u32 = 64;
/// Length of a subscription's id.
const ID_CHARS: usize = 16;

/// Who makes a call; rides in the request's extensions.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) transport: Transport,
    /// Of a WebSocket.
    pub(crate) session: Option<Arc<Session>>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) parent: Option<Parent>,
}

/// The library's service, made anew for each request: a shared connection id would let connections touch
/// each other's subscriptions.
pub(crate) struct Rpc {
    builder: TowerServiceBuilder<Stack<ObserveLayer, Identity>, Identity>,
    methods: Methods,
    stop: StopHandle,
    handle: ServerHandle,
}

pub(crate) type RpcService = jsonrpsee::server::TowerService<Stack<ObserveLayer, Identity>, Identity>;

impl Rpc {
    pub(crate) fn new(api: &Arc<Api>) -> Self {
        let limit = u32::try_from(api.config.max_body).unwrap_or(u32::MAX);
        let config = ServerConfig::builder()
            .max_request_body_size(limit)
            .max_response_body_size(limit)
            // Bounded by the accept loop; the library would count requests.
            .max_connections(u32::MAX)
            .max_subscriptions_per_connection(SUBSCRIPTIONS_MAX)
            .set_batch_request_config(BatchRequestConfig::Limit(
                u32::try_from(api.config.max_batch).unwrap_or(u32::MAX),
            ))
            .set_message_buffer_capacity(MESSAGES_MAX)
            .enable_ws_ping(
                PingConfig::new()
                    .ping_interval(PING_EVERY)
                    .inactive_limit(PING_UNANSWERED_MAX)
                    .max_failures(1),
            )
            .set_id_provider(RandomStringIdProvider::new(ID_CHARS))
            .build();
        let layer = ObserveLayer { api: api.clone() };
        let builder = Server::builder()
            .set_config(config)
            .set_rpc_middleware(RpcServiceBuilder::new().layer(layer))
            .to_service_builder();
        let (stop, handle) = stop_channel();
        Self { builder, methods: module(api.clone()).into(), stop, handle }
    }

    pub(crate) fn service(&self) -> RpcService {
        self.builder.clone().build(self.methods.clone(), self.stop.clone())
    }

    /// Ends WebSocket sessions, with code 1000.
    pub(crate) fn end_sessions(&self) {
        // An error says that it was stopped before.
        let _ = self.handle.stop();
    }
}

/// Every row of the table under its names.
pub(crate) fn module(api: Arc<Api>) -> RpcModule<Arc<Api>> {
    let mut module = RpcModule::new(api.clone());
    answers::register(&mut module);
    for method in table::methods() {
        for name in method.names() {
            if subscriptions::register(&mut module, &api, name) {
                continue;
            }
            module
                .register_async_method(name, move |params, api, extensions| async move {
                    let answer = run(method, params.as_str(), Arc::clone(&api), &extensions);
                    // A panic is a fault of ours: it must not take the connection's other calls with it.
                    match AssertUnwindSafe(answer).catch_unwind().await {
                        Ok(answer) => answer.map_err(ErrorObjectOwned::from),
                        Err(_) => Err(Fault::internal("the method broke off").into()),
                    }
                })
                .expect("no two rows have the same name");
        }
    }
    module
}

async fn run(
    method: &'static table::Method,
    params: Option<&str>,
    api: Arc<Api>,
    extensions: &Extensions,
) -> Result<Box<RawValue>, Fault> {
    if api.stop.is_cancelled() {
        return Err(Fault::shutting_down());
    }
    if method.name.starts_with("block_")
        && let Some(fault) = api.stopped_serving()
    {
        return Err(fault);
    }
    let args = Args::new(method.params, params)?;
    let caller = extensions.get::<Caller>();
    let call = Call {
        api,
        transport: caller.map_or(Transport::Http, |c| c.transport),
        session: caller.and_then(|c| c.session.clone()),
        parent: caller.and_then(|c| c.parent),
        trace: extensions.get::<Arc<Traced>>().cloned(),
        remote: caller.map(|c| c.connection.remote_addr),
        operation_id: None,
        noted: Mutex::default(),
    };
    if method.audited || method.once {
        return control::run(method, call, args).await;
    }
    (method.run)(&call, args).await
}

#[derive(Clone)]
pub(crate) struct ObserveLayer {
    api: Arc<Api>,
}

impl<S> tower::Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Observe { inner, api: self.api.clone() }
    }
}

/// Counts, measures and limits calls.
#[derive(Clone)]
pub(crate) struct Observe<S> {
    inner: S,
    api: Arc<Api>,
}

impl<S> Observe<S>
where
    S: RpcServiceT<MethodResponse = MethodResponse> + Send + Sync,
{
    /// The answer to a call, alone or in a batch.
    async fn answer(&self, request: Request<'_>) -> MethodResponse {
        // Over HTTP the front has limited it already.
        let by_socket = request.extensions.get::<Caller>().filter(|c| c.transport == Transport::WebSocket);
        if let Some(caller) = by_socket
            && let Err(wait) = self.api.limiter.take(caller.connection.remote, 1, Instant::now())
        {
            self.api.parts.metrics.reject(Rejected::RateLimit);
            return MethodResponse::error(request.id, ErrorObjectOwned::from(Fault::too_many_requests(wait)));
        }
        let in_flight = self.api.parts.metrics.begin(&request.method);
        let (request, span) = CallSpan::begin(request, &self.api);
        let has_socket = request.extensions.get::<Caller>().is_some_and(|c| c.session.is_some());
        let answer = if answers::is_hidden(&request.method) {
            answers::no_method(request.id)
        } else if !has_socket && subscriptions::needs_socket(&request.method) {
            no_socket(request)
        } else {
            self.inner.call(request).await
        };
        in_flight.end(answer.as_error_code());
        if let Some(span) = span {
            span.end(&self.api, answer.as_error_code());
        }
        answer
    }

    /// The answer to a batch.
    async fn answer_all(&self, batch: Batch<'_>) -> MethodResponse {
        let limit = usize::try_from(self.api.config.max_body).unwrap_or(usize::MAX);
        let mut answers = BatchResponseBuilder::new_with_limit(limit);
        let (mut has_notification, mut too_large) = (false, None);
        let span = BatchSpan::begin(&batch, &self.api);
        // In the order given, one after the other: who needs an order uses a batch.
        for entry in batch {
            let answer = match entry {
                // The library would answer it twice.
                Ok(BatchEntry::Call(request)) if subscriptions::needs_socket(&request.method) => {
                    let in_flight = self.api.parts.metrics.begin(&request.method);
                    let answer = no_socket(request);
                    in_flight.end(answer.as_error_code());
                    answer
                }
                // Its answer would be thrown away.
                Ok(BatchEntry::Call(request)) if too_large.is_some() && !acts(&request.method) => continue,
                Ok(BatchEntry::Call(mut request)) => {
                    if let Some(span) = &span {
                        request.extensions.insert(span.within());
                    }
                    self.answer(request).await
                }
                Ok(BatchEntry::Notification(_)) => {
                    has_notification = true;
                    self.api.parts.metrics.reject(Rejected::WithoutId);
                    continue;
                }
                Err(bad) => {
                    self.api.parts.metrics.reject(Rejected::Malformed);
                    let (error, id) = bad.into_parts();
                    MethodResponse::error(id, ErrorObjectOwned::owned(error.code(), NO_CALL, None::<()>))
                }
            };
            // What acts behind it does all the same: of a batch that is answered as unknown all was done.
            if too_large.is_none() {
                too_large = answers.append(answer).err();
            }
        }
        if let Some(span) = span {
            span.end(&self.api);
        }
        if let Some(too_large) = too_large {
            return too_large;
        }
        if answers.is_empty() && has_notification {
            return MethodResponse::notification();
        }
        MethodResponse::from_batch(answers.finish())
    }
}

/// Whether a call does more than read.
fn acts(method: &str) -> bool {
    table::find(method)
        .is_some_and(|row| row.audited || row.once || [table::PROPOSE, "executor_report"].contains(&row.name))
}

impl<S> RpcServiceT for Observe<S>
where
    S: RpcServiceT<
            MethodResponse = MethodResponse,
            BatchResponse = MethodResponse,
            NotificationResponse = MethodResponse,
        > + Clone
        + Send
        + Sync
        + 'static,
{
    type MethodResponse = MethodResponse;
    type NotificationResponse = MethodResponse;
    type BatchResponse = MethodResponse;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let this = self.clone();
        async move {
            let is_large = answers::may_be_large(&request.method);
            let waiting =
                Waiting::begin(&this.inner, &request.extensions, bytes_of(&request), is_large).await;
            let answer = this.answer(request).await;
            match waiting {
                Some(waiting) => waiting.give(answer).await,
                None => answer,
            }
        }
    }

    fn batch<'a>(&self, mut batch: Batch<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let this = self.clone();
        async move {
            let bytes = batch.iter().flatten().map(|entry| match entry {
                BatchEntry::Call(request) => bytes_of(request),
                BatchEntry::Notification(_) => 0,
            });
            let bytes = bytes.sum();
            let is_large = batch.iter().flatten().any(|entry| match entry {
                BatchEntry::Call(request) => answers::may_be_large(&request.method),
                BatchEntry::Notification(_) => false,
            });
            let waiting = Waiting::begin(&this.inner, batch.extensions(), bytes, is_large).await;
            let answer = this.answer_all(batch).await;
            match waiting {
                Some(waiting) => waiting.give(answer).await,
                None => answer,
            }
        }
    }

    fn notification<'a>(
        &self,
        notification: Notification<'a>,
    ) -> impl Future<Output = MethodResponse> + Send + 'a {
        self.api.parts.metrics.reject(Rejected::WithoutId);
        let inner = self.inner.clone();
        async move { inner.notification(notification).await }
    }
}

/// Of a member of a batch. The library does not say which of it is wrong.
const NO_CALL: &str = "no call: an object with \"jsonrpc\": \"2.0\", a method, and one id that is a string, an integer \
                       from 0 to 2^64 - 1, or null";

/// Of the parameters.
fn bytes_of(request: &Request<'_>) -> usize {
    request.params.as_ref().map_or(0, |params| params.get().len())
}

fn no_socket(request: Request<'_>) -> MethodResponse {
    MethodResponse::error(request.id, ErrorObjectOwned::from(subscriptions::no_socket()))
}

/// The span of one call, while it is answered.
struct CallSpan<'a> {
    traced: Arc<Traced>,
    started: Instant,
    method: Cow<'a, str>,
    id: Id<'a>,
    is_inner: bool,
}

/// What the calls of a traced batch stand below.
#[derive(Debug, Clone, Copy)]
struct Within(Parent);

impl<'a> CallSpan<'a> {
    fn begin(mut request: Request<'a>, api: &Api) -> (Request<'a>, Option<Self>) {
        let within = request.extensions.get::<Within>().map(|w| w.0);
        let caller = within.or_else(|| request.extensions.get::<Caller>()?.parent);
        let is_proposal = request.method == table::PROPOSE;
        let span = api.parts.instants.begin_call(caller, is_proposal).map(|traced| {
            request.extensions.insert(Arc::clone(&traced));
            let (method, id) = (request.method.clone(), request.id.clone());
            Self { traced, started: Instant::now(), method, id, is_inner: within.is_some() }
        });
        (request, span)
    }

    fn end(self, api: &Api, code: Option<i32>) {
        let id = match self.id {
            Id::Null => None,
            Id::Number(n) => Some(n.to_string()),
            Id::Str(s) => Some(s.into_owned()),
        };
        let is_known = table::find(&self.method).is_some();
        let rpc = trace::Rpc { method: &self.method, is_known, id, code, is_inner: self.is_inner };
        rpc.ended(&api.parts.instants, &self.traced, self.started);
    }
}

/// The span of a batch whose caller is traced.
struct BatchSpan {
    traced: Arc<Traced>,
    started: Instant,
    n_calls: usize,
}

impl BatchSpan {
    fn begin(batch: &Batch<'_>, api: &Api) -> Option<Self> {
        let calls: Vec<_> = batch
            .iter()
            .filter_map(|entry| match entry {
                Ok(BatchEntry::Call(request)) => Some(request),
                Ok(BatchEntry::Notification(_)) | Err(_) => None,
            })
            .collect();
        let caller = calls.iter().find_map(|request| request.extensions.get::<Caller>()?.parent);
        let traced = api.parts.instants.begin_call(caller, false)?;
        Some(Self { traced, started: Instant::now(), n_calls: calls.len() })
    }

    fn within(&self) -> Within {
        let span_id = self.traced.server.unwrap_or(self.traced.span_id);
        Within(Parent { trace_id: self.traced.trace_id, span_id, is_sampled: true })
    }

    fn end(self, api: &Api) {
        trace::batch_ended(&api.parts.instants, &self.traced, self.n_calls, self.started);
    }
}

/// Codes of the library that a client may meet beside the table's.
pub(crate) const STANDARD: [Code; 3] = [Code::InvalidRequest, Code::InvalidParams, Code::Internal];
