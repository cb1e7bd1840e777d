//! `/livez`, `/readyz`, `/leader` and `/metrics`: what load balancers, orchestrators and Prometheus ask.
//!
//! Ready means that a client can be sent here: a paused node, a follower, a learner and a leader that is
//! not ready yet are. A node that is starting, hears no leader, is not caught up, was removed, stops, or
//! stopped serving is not.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    body::Body,
    http::{HeaderMap, Method, Request, Response, StatusCode, header},
};
use futures::future::BoxFuture;
use hyper::body::Incoming;
use schemars::JsonSchema;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::api::accept::Serve;
use crate::api::error::{Code, Fault};
use crate::api::http::{json, plain_fault, text};
use crate::api::socket::Connection;
use crate::api::{Parts, body, handlers};
use crate::store;
use crate::telemetry::{encode, ticks};

/// How often the checks are looked at, so that `since` and the metric hold between probes.
const LOOK_EVERY: Duration = Duration::from_millis(500);

const READY: &str = "ready";
/// Type and name of every check.
pub(crate) const CHECKS: [(&str, &str); 7] = [
    ("live", "process"),
    (READY, "raft"),
    (READY, "leader"),
    (READY, "caughtUp"),
    (READY, "stopping"),
    (READY, "storage"),
    (READY, "member"),
];

/// Since when each check says what it says.
///
/// A lock, held for one look at the checks: a task would make a probe wait for its turn.
#[derive(Default)]
pub(crate) struct Probes(Mutex<[Option<Since>; CHECKS.len()]>);

#[derive(Debug, Clone, Copy)]
struct Since {
    is_ok: bool,
    at_ms: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Check {
    name: &'static str,
    ok: bool,
    detail: String,
    /// Unix milliseconds.
    since: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Readiness {
    ok: bool,
    checks: Vec<Check>,
}

/// Looks at every check, notes since when, and sets the metric.
pub(crate) fn look(parts: &Parts) -> Readiness {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let raft = parts.consensus.status();
    let leadership = parts.leadership.now();
    let store::health::HealthView { fatal, diverged, .. } = parts.health.get();
    let leader = match leadership.leader_id {
        Some(id) => format!("node {id} leads"),
        None => "no leader is heard".to_owned(),
    };
    let said = |is_ok: bool, yes: &str, no: &str| (is_ok, if is_ok { yes } else { no }.to_owned());
    let found: [(bool, String); CHECKS.len()] = [
        (true, "answers".to_owned()),
        said(raft.is_started && raft.is_running, "raft runs", "raft does not run"),
        (leadership.leader_id.is_some(), leader),
        said(leadership.is_caught_up, "has applied what the leader committed", "still catching up"),
        said(!leadership.is_stopping, "takes proposals", "the node is stopping"),
        match fatal.map(|fatal| fatal.to_string()).or(diverged) {
            None => (true, "the store has not failed".to_owned()),
            Some(why) => (false, why),
        },
        match parts.consensus.removal().get() {
            None => (true, "no member says otherwise".to_owned()),
            Some(removed) => {
                (false, format!("no member since version {} of the membership", removed.version))
            }
        },
    ];
    let mut since = parts.probes.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let checks: Vec<Check> = CHECKS
        .iter()
        .zip(found)
        .zip(since.iter_mut())
        .map(|(((kind, name), (ok, detail)), since)| {
            parts.metrics.set_health(kind, name, ok);
            if since.is_none_or(|s| s.is_ok != ok) {
                *since = Some(Since { is_ok: ok, at_ms: now_ms });
            }
            Check { name, ok, detail, since: since.map_or(now_ms, |s| s.at_ms) }
        })
        .collect();
    Readiness { ok: checks.iter().all(|c| c.ok), checks }
}

/// Keeps the checks fresh while nobody asks.
pub(crate) async fn watch(parts: Arc<Parts>, stop: CancellationToken) {
    let mut ticks = ticks::every(LOOK_EVERY);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        look(&parts);
    }
}

pub(crate) fn livez() -> Response<Body> {
    text(StatusCode::OK, "ok\n".to_owned())
}

pub(crate) fn readyz(parts: &Parts, query: Option<&str>) -> Response<Body> {
    let readiness = look(parts);
    let status = if readiness.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let is_verbose = query.is_some_and(|q| q.split('&').any(|p| p.split('=').next() == Some("verbose")));
    if is_verbose {
        return json(status, handlers::to_raw(&readiness).get().to_owned());
    }
    let failed: Vec<&str> = readiness.checks.iter().filter(|c| !c.ok).map(|c| c.name).collect();
    match failed.as_slice() {
        [] => text(status, "ok\n".to_owned()),
        failed => text(status, format!("not ready: {}\n", failed.join(", "))),
    }
}

/// 200 on a ready leader alone: for load balancers.
pub(crate) fn leader(parts: &Parts) -> Response<Body> {
    let leader = handlers::leader(parts);
    let is_ready = leader.ready == Some(true);
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, handlers::to_raw(&leader).get().to_owned())
}

/// Gathering reads files below `/proc` and asks the databases: not on an async thread.
pub(crate) async fn metrics(parts: Arc<Parts>, headers: &HeaderMap) -> Response<Body> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let gathered = tokio::task::spawn_blocking(move || {
        look(&parts);
        encode::encode(&parts.registry.gather(), Some(&parts.exemplars), Some(&accept))
    });
    match gathered.await {
        Ok((content_type, body)) => Response::builder()
            .header(header::CONTENT_TYPE, content_type)
            .body(Body::from(body))
            .expect("a content type of ours is a header value"),
        Err(_) => plain_fault(&Fault::internal("the metrics could not be gathered")),
    }
}

/// What `metrics.listen` serves.
pub(crate) struct Front {
    parts: Arc<Parts>,
}

impl Front {
    pub(crate) fn new(parts: Arc<Parts>) -> Self {
        Self { parts }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, incoming) = request.into_parts();
        body::discard(&head.headers, incoming);
        let is_read = matches!(head.method, Method::GET | Method::HEAD);
        match head.uri.path() {
            "/metrics" | "/livez" | "/readyz" | "/leader" if !is_read => {
                let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD alone\n".to_owned());
                refused.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
                refused
            }
            "/metrics" => metrics(self.parts.clone(), &head.headers).await,
            "/livez" => livez(),
            "/readyz" => readyz(&self.parts, head.uri.query()),
            "/leader" => leader(&self.parts),
            _ => {
                plain_fault(&Fault::new(Code::MethodNotFound, "this port has /metrics and the probes alone"))
            }
        }
    }
}

impl Serve for Front {
    fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        _: Arc<Connection>,
    ) -> impl Future<Output = Response<Body>> + Send {
        let answered: BoxFuture<'static, _> = Box::pin(async move { self.answer(request).await });
        answered
    }
}
