//! The front of the port: what every request passes, and JSON-RPC's own way in.
//!
//! Order: a stopping node, the route, Host and Origin, the connection bounds, the rate limit; then the
//! route's own handler. JSON-RPC bodies are read and looked through here before the library sees them.

use std::{sync::Arc, time::Instant};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header},
};
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::Full;
use hyper::body::Incoming;
use jsonrpsee::server::ws::is_upgrade_request;
use tower::Service;

use crate::api::accept::Serve;
use crate::api::body::BodyError;
use crate::api::envelope::Checked;
use crate::api::error::{Code, Fault};
use crate::api::handlers::Transport;
use crate::api::metrics::{Rejected, SessionEnd};
use crate::api::routes::{Access, Asked, Found};
use crate::api::rpc::{Caller, PING_UNANSWERED_MAX, Rpc};
use crate::api::sessions::Session;
use crate::api::socket::Connection;
use crate::api::sse::Goodbye;
use crate::api::upgrade::{bad_upgrade, check_upgrade};
use crate::api::{Api, aside, body, envelope, origins, page, routes, sse, stream, trace};

/// What a client is told that sent a request without an id.
const HINT: &str = "no \"id\": not executed";
/// The JSON-RPC library's code for a body over the limit goes with this wait: by eye.
const RETRY_BODY_MS: u64 = 200;

/// What serves the API's port.
pub(crate) struct Front {
    pub(crate) api: Arc<Api>,
    rpc: Rpc,
}

impl Serve for Front {
    fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> impl Future<Output = Response<Body>> + Send {
        let answered: BoxFuture<'static, _> = Box::pin(self.answer(request, connection));
        answered
    }
}

impl Front {
    pub(crate) fn new(api: Arc<Api>) -> Self {
        Self { rpc: Rpc::new(&api), api }
    }

    pub(crate) fn end_sessions(&self) {
        self.rpc.end_sessions();
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> Response<Body> {
        let is_head = *request.method() == Method::HEAD;
        let must_close = connection.is_extra;
        let sharing = self.api.hosts.shared_with(request.headers());
        let mut answer = self.dispatch(request, connection).await;
        origins::share(&mut answer, sharing);
        if must_close {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if is_head { without_body(answer) } else { answer }
    }

    async fn dispatch(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> Response<Body> {
        let is_rpc = request.uri().path() == "/" && !page::is_asked(&request);
        let found = match is_rpc {
            true => Found::Nothing,
            false => routes::find(request.method(), request.uri().path()),
        };
        let open = match &found {
            Found::Route(route, _) => route.open,
            Found::OtherMethod(_) | Found::Nothing => Access::Clients,
        };
        if let Err((reason, fault)) = self.admit(&request, &connection, open) {
            self.api.parts.metrics.reject(reason);
            let goodbye = match &found {
                Found::Route(route, _) if route.path() == sse::PATH => Goodbye::of(reason, &fault),
                Found::Route(..) | Found::OtherMethod(_) | Found::Nothing => None,
            };
            let version = request.version();
            let is_drained = body::is_drained(request.headers());
            let wants_socket = is_rpc && is_upgrade(&request);
            body::refuse(request);
            let mut answer = match goodbye {
                // A status that no client of WebSocket takes for a success.
                None if wants_socket && matches!(reason, Rejected::Connections | Rejected::ShuttingDown) => {
                    plain_fault(&fault)
                }
                Some(why) => sse::goodbye(version, why),
                // A client of JSON-RPC that is told to wait keeps its connection, where its body can be read away.
                None if is_rpc && reason == Rejected::RateLimit && is_drained => {
                    return rpc_fault(&fault, reason);
                }
                None if is_rpc => rpc_fault(&fault, reason),
                None => plain_fault(&fault),
            };
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return answer;
        }
        if let Some(answer) = origins::preflight(&self.api.hosts, &request) {
            return answer;
        }
        if is_rpc {
            return self.json_rpc(request, connection).await;
        }
        match found {
            Found::Route(route, tail) => {
                let tail = tail.to_owned();
                let front = self.clone();
                let in_flight = self.api.parts.metrics.begin(route.label);
                let started = Instant::now();
                // Those that propose begin their own.
                let caller = trace::from_headers(request.headers()).filter(|_| !route.proposes());
                let traced = self.api.parts.instants.begin_call(caller, false);
                let request = match route.path() == stream::PATH {
                    true => stream::expected(request).await,
                    false => request,
                };
                let answer = route.answer(Asked { front, request, connection, tail }).await;
                in_flight.end(code_of(&answer));
                if let Some(traced) = traced {
                    let names = (route.label, route.path());
                    let status = answer.status().as_u16();
                    trace::http_ended(&self.api.parts.instants, &traced, names, status, started);
                }
                answer
            }
            Found::OtherMethod(allowed) => {
                self.api.parts.metrics.reject(Rejected::NoRoute);
                body::refuse(request);
                method_not_allowed(&allowed.join(", "))
            }
            Found::Nothing => {
                self.api.parts.metrics.reject(Rejected::NoRoute);
                body::refuse(request);
                plain_fault(&Fault::new(Code::MethodNotFound, "no such route: see /openapi.json"))
            }
        }
    }

    /// What every request passes. A batch pays for its other calls once they are counted.
    fn admit(
        &self,
        request: &Request<Incoming>,
        connection: &Connection,
        open: Access,
    ) -> Result<(), (Rejected, Fault)> {
        let api = &self.api;
        let checked = api.hosts.check(request.version(), request.uri(), request.headers(), || {
            api.parts.consensus.status().members
        });
        match checked {
            // A Host that is missing or doubled is wrong everywhere; a strange one is no matter here.
            Err((_, fault)) if open == Access::Anyone && fault.code == Code::Auth => {}
            checked => checked?,
        }
        if open != Access::Clients {
            return Ok(());
        }
        if api.stop.is_cancelled() {
            return Err((Rejected::ShuttingDown, Fault::shutting_down()));
        }
        if connection.is_extra {
            let message = "too many connections: over api.max_connections or api.max_connections_per_address";
            return Err((Rejected::Connections, Fault::overloaded(message, 1_000)));
        }
        api.limiter
            .take(connection.remote, 1, Instant::now())
            .map_err(|wait| (Rejected::RateLimit, Fault::too_many_requests(wait)))
    }

    async fn json_rpc(&self, request: Request<Incoming>, connection: Arc<Connection>) -> Response<Body> {
        let answered = if is_upgrade(&request) {
            self.upgrade(request, connection).await
        } else if *request.method() == Method::POST {
            self.post(request, connection).await
        } else {
            self.api.parts.metrics.reject(Rejected::NoRoute);
            body::refuse(request);
            Ok(method_not_allowed("POST"))
        };
        answered.unwrap_or_else(|(reason, fault)| {
            self.api.parts.metrics.reject(reason);
            rpc_fault(&fault, reason)
        })
    }

    async fn post(
        &self,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> Result<Response<Body>, (Rejected, Fault)> {
        let (head, incoming) = request.into_parts();
        if !is_media(&head.headers, &["application/json", "application/json-rpc"]) {
            body::discard(&head.headers, incoming);
            let why = "the Content-Type is neither application/json nor application/json-rpc";
            return Err((Rejected::MediaType, Fault::new(Code::InvalidRequest, why)));
        }
        let stated = body::stated_length(&head.headers);
        let budget = Some(&self.api.body_budget);
        let read = body::read(incoming, stated, self.api.config.max_body, budget).await;
        let (bytes, _room) = match read {
            Ok(read) => read,
            Err(e) => {
                let (reason, fault) = body_fault(e, self.api.config.max_body);
                // A client that is gone was turned away by nobody.
                return if e == BodyError::Broken {
                    Ok(rpc_fault(&fault, reason))
                } else {
                    Err((reason, fault))
                };
            }
        };
        let length = bytes.len();
        let checked = aside::run(length, || envelope::check(bytes, self.api.config.max_batch));
        let (bytes, calls) = match checked {
            Checked::Calls { body, calls } => (body, calls),
            Checked::WithoutId(n) => {
                (0..n).for_each(|_| self.api.parts.metrics.reject(Rejected::WithoutId));
                return Ok(not_executed());
            }
            Checked::Answer { status, body, code } => {
                let is_batch = code == Code::BatchTooLarge;
                let reason = if is_batch { Rejected::BatchTooLarge } else { Rejected::Malformed };
                self.api.parts.metrics.reject(reason);
                return Ok(json(status, body));
            }
        };
        self.api.limiter.charge(connection.remote, calls.saturating_sub(1));
        let mut request = Request::post("/")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(bytes))
            .expect("a request of constant parts is one");
        request.extensions_mut().insert(Caller {
            transport: Transport::Http,
            session: None,
            connection,
            parent: trace::from_headers(&head.headers),
        });
        match aside::wait(length, self.rpc.service().call(request)).await {
            Ok(answer) => Ok(answer.map(Body::new)),
            Err(_) => Ok(rpc_fault(&Fault::internal("the call broke off"), Rejected::Malformed)),
        }
    }

    /// WebSocket: the library's, after what it would answer with a 200.
    async fn upgrade(
        &self,
        mut request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> Result<Response<Body>, (Rejected, Fault)> {
        if let Some(refused) = check_upgrade(request.version(), request.headers()) {
            self.api.parts.metrics.reject(Rejected::Upgrade);
            return Ok(refused);
        }
        // A connection's whole life is no trace: its calls have their own.
        let parent = None;
        let ended = connection.clone();
        let outlet = self.api.parts.feed.outlet(move || ended.end());
        let session = Some(Arc::new(Session::new(outlet)));
        let caller =
            Caller { transport: Transport::WebSocket, session, connection: connection.clone(), parent };
        request.extensions_mut().insert(caller);
        if !is_upgrade_request(&request) {
            self.api.parts.metrics.reject(Rejected::Upgrade);
            return Ok(bad_upgrade("the Connection header does not name the upgrade"));
        }
        // Subscribers that read slowly are told so, not cut off.
        connection.be_patient();
        let mut service = self.rpc.service();
        let closed = service.on_session_closed();
        let answer = match service.call(request).await {
            Ok(answer) => answer.map(Body::new),
            Err(_) => return Ok(rpc_fault(&Fault::internal("the upgrade broke off"), Rejected::Upgrade)),
        };
        let api = self.api.clone();
        // Holds the connection's place for as long as the session lasts.
        self.api.tasks.spawn(async move {
            closed.await;
            let end = if api.stop.is_cancelled() {
                SessionEnd::Stopped
            } else if connection.has_write_timed_out() {
                SessionEnd::WriteTimeout
            } else if PING_UNANSWERED_MAX <= connection.silence() {
                SessionEnd::Ping
            } else {
                SessionEnd::Client
            };
            api.parts.metrics.session_ended(end);
        });
        Ok(answer)
    }
}

fn is_upgrade<B>(request: &Request<B>) -> bool {
    let wants = |name: &header::HeaderName| request.headers().contains_key(name);
    *request.method() == Method::GET && [header::UPGRADE, header::SEC_WEBSOCKET_KEY].iter().any(wants)
}

fn body_fault(error: BodyError, limit: u64) -> (Rejected, Fault) {
    match error {
        BodyError::TooLarge => {
            let why = format!("the body is over api.max_body, {limit} bytes");
            (Rejected::BodyTooLarge, Fault::new(Code::BodyTooLarge, why))
        }
        BodyError::NoRoom => (
            Rejected::BodyBudget,
            Fault::overloaded("too many bytes of requests are being read", RETRY_BODY_MS),
        ),
        BodyError::TooSlow | BodyError::Broken => {
            (Rejected::BodyTimeout, Fault::new(Code::InvalidRequest, error.to_string()))
        }
    }
}

/// Whether the media type is one of these, whatever its parameters.
pub(crate) fn is_media(headers: &HeaderMap, media: &[&str]) -> bool {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let Ok(value) = value.to_str() else { return false };
    let essence = value.split(';').next().unwrap_or("").trim();
    let is_plain = headers.get(header::CONTENT_ENCODING).is_none_or(|e| e == "identity");
    is_plain && media.iter().any(|m| essence.eq_ignore_ascii_case(m))
}

/// A status with text for people.
pub(crate) fn text(status: StatusCode, body: String) -> Response<Body> {
    with_type(status, "text/plain; charset=utf-8", body)
}

pub(crate) fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    with_type(status, "application/json", body)
}

fn with_type(status: StatusCode, media: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut answer = Response::new(Body::from(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    answer
}

/// The code of a fault; rides beside the answer to the metrics.
#[derive(Debug, Clone, Copy)]
struct FaultCode(i32);

/// The code label of an answer: a fault's, else the status of one that is not a success.
fn code_of(answer: &Response<Body>) -> Option<i32> {
    let status = answer.status();
    let of_fault = answer.extensions().get::<FaultCode>().map(|c| c.0);
    of_fault.or((!status.is_success()).then_some(i32::from(status.as_u16())))
}

/// A fault on a plain route: its status, its headers, `{"error":{…}}`.
pub(crate) fn plain_fault(fault: &Fault) -> Response<Body> {
    let mut answer = json(fault.status(), fault.to_plain());
    if let Some(secs) = fault.retry_after_secs() {
        answer.headers_mut().insert(header::RETRY_AFTER, secs.into());
    }
    if let Some(leader) = fault.leader().and_then(|l| HeaderValue::from_str(l).ok()) {
        answer.headers_mut().insert("blockraft-leader", leader);
    }
    answer.extensions_mut().insert(FaultCode(fault.code.number()));
    answer
}

/// A plain fault with a status that its code does not tell.
pub(crate) fn plain_fault_as(status: StatusCode, fault: &Fault) -> Response<Body> {
    let mut answer = plain_fault(fault);
    *answer.status_mut() = status;
    answer
}

/// A fault before any call was read. Half of the clients throw the body of any status but 200 away, so
/// only what the contract names gets another.
fn rpc_fault(fault: &Fault, reason: Rejected) -> Response<Body> {
    let status = match reason {
        Rejected::Host | Rejected::Origin if fault.code == Code::Auth => StatusCode::FORBIDDEN,
        Rejected::Host | Rejected::Origin | Rejected::Upgrade | Rejected::NoRoute => StatusCode::BAD_REQUEST,
        Rejected::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Rejected::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Rejected::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
        Rejected::RateLimit => StatusCode::TOO_MANY_REQUESTS,
        Rejected::BodyBudget
        | Rejected::Malformed
        | Rejected::WithoutId
        | Rejected::BatchTooLarge
        | Rejected::Connections
        | Rejected::ShuttingDown => StatusCode::OK,
    };
    let mut answer = json(status, fault.to_response("null"));
    if status == StatusCode::TOO_MANY_REQUESTS {
        let secs = fault.retry_after_secs().unwrap_or(1);
        answer.headers_mut().insert(header::RETRY_AFTER, secs.into());
    }
    answer
}

/// 204: requests without an id alone. The connection is closed, for a client that waits for an answer
/// would take the next one for it.
fn not_executed() -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer.headers_mut().insert("blockraft-hint", HeaderValue::from_static(HINT));
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn method_not_allowed(allowed: &str) -> Response<Body> {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("{allowed} alone\n"));
    if let Ok(allowed) = HeaderValue::from_str(allowed) {
        answer.headers_mut().insert(header::ALLOW, allowed);
    }
    answer
}

/// The head of an answer: its status, its headers, its length.
fn without_body(answer: Response<Body>) -> Response<Body> {
    let (mut head, body) = answer.into_parts();
    if let Some(length) = hyper::body::Body::size_hint(&body).exact() {
        head.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Response::from_parts(head, Body::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn media(value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
        is_media(&headers, &["application/json", "application/json-rpc"])
    }

    #[test]
    fn a_media_type_may_have_any_parameters() {
        for good in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"; x=y",
            "application/json-rpc",
            " application/json ;",
        ] {
            assert!(media(good), "{good}");
        }
        for bad in ["text/plain", "application/jsonrequest", "application/json, text/plain", "json", ""] {
            assert!(!media(bad), "{bad}");
        }
        let mut zipped = HeaderMap::new();
        zipped.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        zipped.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert!(!is_media(&zipped, &["application/json"]));
        assert!(!is_media(&HeaderMap::new(), &["application/json"]));
    }

    #[test]
    fn a_head_keeps_the_length() {
        let head = without_body(json(StatusCode::OK, "{\"a\":1}"));
        assert_eq!(head.headers()[header::CONTENT_LENGTH], "7");
    }
}
