//! What the API counts about itself.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::api::{probes, routes, table};
use crate::telemetry::buckets;

/// Label of a method that nobody registered.
const OTHER: &str = "_OTHER";

/// Why a request was turned away before any method saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejected {
    Host,
    Origin,
    MediaType,
    BodyTooLarge,
    BodyTimeout,
    BodyBudget,
    Malformed,
    WithoutId,
    BatchTooLarge,
    RateLimit,
    Connections,
    Upgrade,
    NoRoute,
    ShuttingDown,
}

impl Rejected {
    const ALL: [Self; 14] = [
        Self::Host,
        Self::Origin,
        Self::MediaType,
        Self::BodyTooLarge,
        Self::BodyTimeout,
        Self::BodyBudget,
        Self::Malformed,
        Self::WithoutId,
        Self::BatchTooLarge,
        Self::RateLimit,
        Self::Connections,
        Self::Upgrade,
        Self::NoRoute,
        Self::ShuttingDown,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Origin => "origin",
            Self::MediaType => "media_type",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyTimeout => "body_timeout",
            Self::BodyBudget => "body_budget",
            Self::Malformed => "malformed",
            Self::WithoutId => "without_id",
            Self::BatchTooLarge => "batch_too_large",
            Self::RateLimit => "rate_limit",
            Self::Connections => "connections",
            Self::Upgrade => "upgrade",
            Self::NoRoute => "no_route",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

/// How a WebSocket session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionEnd {
    Client,
    Ping,
    WriteTimeout,
    Stopped,
}

impl SessionEnd {
    const ALL: [Self; 4] = [Self::Client, Self::Ping, Self::WriteTimeout, Self::Stopped];

    fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Ping => "ping",
            Self::WriteTimeout => "write_timeout",
            Self::Stopped => "stopped",
        }
    }
}

/// The handles that the hot path needs of one method or route.
struct Cell {
    ok: IntCounter,
    seconds: Histogram,
}

pub(crate) struct Metrics {
    requests: IntCounterVec,
    rejected: IntCounterVec,
    in_flight: IntGauge,
    pub(crate) connections: IntGauge,
    sessions_closed: IntCounterVec,
    health: IntGaugeVec,
    /// Every method and route, and [`OTHER`].
    cells: HashMap<&'static str, Cell>,
}

impl Metrics {
    /// Every series exists from the start, but for codes other than `ok`.
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let requests = IntCounterVec::new(
            Opts::new(
                "blockraft_rpc_requests_total",
                "Calls answered, by method or HTTP route, and by code.",
            ),
            &["method", "code"],
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new("blockraft_rpc_request_seconds", "Time from a call's arrival to its answer.")
                .buckets(buckets::stage()),
            &["method"],
        )?;
        let rejected = IntCounterVec::new(
            Opts::new(
                "blockraft_rpc_rejected_total",
                "Requests that were turned away before any method saw them.",
            ),
            &["reason"],
        )?;
        let in_flight = IntGauge::new("blockraft_rpc_in_flight", "Calls that are being answered.")?;
        let connections = IntGauge::new("blockraft_http_connections", "Open connections to the API.")?;
        let sessions_closed = IntCounterVec::new(
            Opts::new(
                "blockraft_ws_sessions_closed_total",
                "WebSocket sessions that ended, by what ended them.",
            ),
            &["reason"],
        )?;
        let health = IntGaugeVec::new(
            Opts::new("blockraft_health_check", "The checks behind /livez and /readyz: 1 is good."),
            &["type", "name"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(rejected.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        registry.register(Box::new(connections.clone()))?;
        registry.register(Box::new(sessions_closed.clone()))?;
        registry.register(Box::new(health.clone()))?;

        let names = table::methods().flat_map(|m| m.names()).chain(routes::ROUTES.iter().map(|r| r.label));
        let cells = names
            .chain([OTHER])
            .map(|name| {
                let ok = requests.with_label_values(&[name, "ok"]);
                (name, Cell { ok, seconds: seconds.with_label_values(&[name]) })
            })
            .collect();
        for reason in Rejected::ALL {
            let _ = rejected.with_label_values(&[reason.label()]);
        }
        for end in SessionEnd::ALL {
            let _ = sessions_closed.with_label_values(&[end.label()]);
        }
        for (kind, name) in probes::CHECKS {
            let _ = health.with_label_values(&[kind, name]);
        }
        Ok(Self { requests, rejected, in_flight, connections, sessions_closed, health, cells })
    }

    /// Counts a call as being answered until the guard is finished or dropped.
    pub(crate) fn begin(&self, name: &str) -> InFlight<'_> {
        let (name, cell) = match self.cells.get_key_value(name) {
            Some((name, cell)) => (*name, cell),
            None => (OTHER, &self.cells[OTHER]),
        };
        self.in_flight.inc();
        InFlight { metrics: self, name, cell, began: Instant::now() }
    }

    pub(crate) fn reject(&self, reason: Rejected) {
        self.rejected.with_label_values(&[reason.label()]).inc();
    }

    pub(crate) fn session_ended(&self, end: SessionEnd) {
        self.sessions_closed.with_label_values(&[end.label()]).inc();
    }

    pub(crate) fn set_health(&self, kind: &str, name: &str, is_ok: bool) {
        self.health.with_label_values(&[kind, name]).set(is_ok.into());
    }
}

/// A call that is being answered. Dropped without [`InFlight::end`]: the caller went away.
pub(crate) struct InFlight<'a> {
    metrics: &'a Metrics,
    name: &'static str,
    cell: &'a Cell,
    began: Instant,
}

impl InFlight<'_> {
    /// `None`: answered well.
    pub(crate) fn end(self, code: Option<i32>) -> Duration {
        match code {
            None => self.cell.ok.inc(),
            Some(code) => {
                self.metrics.requests.with_label_values(&[self.name, code.to_string().as_str()]).inc();
            }
        }
        let took = self.began.elapsed();
        self.cell.seconds.observe(took.as_secs_f64());
        took
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
    }
}
