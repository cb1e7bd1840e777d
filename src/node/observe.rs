//! What is watched of a node: its instants and spans, its elections, its record, how it came back.

use std::{sync::Arc, time::Duration, time::Instant};

use prometheus::Registry;
use tokio::sync::mpsc;

use crate::api;
use crate::audit;
use crate::audit::history::{Event as Recorded, Kind};
use crate::config;
use crate::consensus::Role;
use crate::consensus::handle::Handle;
use crate::instants::event::Event;
use crate::instants::stages::StageExemplars;
use crate::instants::task::{Standing, Task};
use crate::instants::{Instants, Mark, Tracing};
use crate::leadership::ages::Ages;
use crate::node::StartError;
use crate::peer;
use crate::proposals;
use crate::store;
use crate::telemetry::exemplars::Exemplars;
use crate::telemetry::info;
use crate::telemetry::names;
use crate::telemetry::trace::counted::Rejected;
use crate::telemetry::trace::export::{self, Service};
use crate::telemetry::trace::sampling::{Sampler, Sampling};
use crate::telemetry::trace::variables::{Variables, complaints};
use crate::telemetry::trace::{Clock, Counts, Span, Tracer, int, text};
use crate::types::{LogIndex, NodeId};

/// Replaying takes as long as it takes; a node that has not come back by then is not told of.
const RECOVERED_WITHIN: Duration = Duration::from_secs(600);

/// What is there before the store is.
pub(super) struct Observed {
    pub(super) instants: Arc<Instants>,
    pub(super) exemplars: Exemplars,
    pub(super) events: mpsc::Receiver<Event>,
}

/// Starts the exporter, if anything says where to. One that cannot be built stops no node.
pub(super) fn begin(
    settings: &config::Settings,
    registry: &Registry,
    rejected: Rejected,
) -> prometheus::Result<Observed> {
    let env: Vec<_> = std::env::vars_os().collect();
    for complaint in complaints(&env) {
        tracing::warn!(complaint, "a variable of OpenTelemetry is wrong");
    }
    let variables = Variables::new(env.into_iter());
    let config = &settings.telemetry.traces;
    let service = Service {
        cluster_id: settings.cluster.id.clone(),
        node_id: settings.node.id,
        version: env!("CARGO_PKG_VERSION"),
    };
    let tracer = export::start(config, &service, &variables, Counts::register(registry)?, rejected);
    let tracer = tracer.unwrap_or_else(|error| {
        tracing::warn!(%error, "traces are not exported");
        Tracer::off()
    });
    let sampling = Sampling::new(config, &variables);
    let (instants, events) = Instants::new(registry)?.traced(Tracing {
        tracer,
        sampler: Sampler::new(sampling),
        cluster_id: settings.cluster.id.clone(),
        node_id: settings.node.id,
    });
    Ok(Observed { instants: Arc::new(instants), exemplars: Exemplars::default(), events })
}

/// Who this is, for the scraper.
pub(super) fn register_infos(settings: &config::Settings, registry: &Registry) -> prometheus::Result<()> {
    info::register_info(
        registry,
        &settings.cluster.id,
        settings.node.id,
        &settings.node.name,
        env!("CARGO_PKG_VERSION"),
        env!("BLOCKRAFT_REVISION"),
    )?;
    info::register_clock(registry)
}

/// The task that writes block spans.
pub(super) fn span_task(observed: Observed, raft: &Handle) -> Task {
    let exemplars = StageExemplars::new(&observed.exemplars, &proposals::metrics::Ended::labels());
    let standing = Arc::new(NodeStanding { raft: raft.clone() });
    Task::new(observed.instants, standing, exemplars, observed.events)
}

/// How this node stands, for the spans of blocks.
struct NodeStanding {
    raft: Handle,
}

impl Standing for NodeStanding {
    fn role(&self) -> &'static str {
        match self.raft.standing().0 {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Learner => "learner",
            Role::Stopped => "stopped",
        }
    }

    fn peers(&self) -> Vec<NodeId> {
        self.raft.standing().1
    }

    fn clock_offset_us(&self, node_id: NodeId) -> Option<i64> {
        // Theirs minus ours there.
        self.raft.peers().clock_offset_us(node_id).map(|us| -us)
    }
}

/// Ages of entries, for the metrics of raft.
pub(super) struct EntryAges(pub(super) Arc<Instants>);

impl Ages for EntryAges {
    fn since_appended(&self, index: LogIndex) -> Option<Duration> {
        self.0.age(index, Mark::Appended)
    }

    fn since_committed(&self, index: LogIndex) -> Option<Duration> {
        self.0.age(index, Mark::Committed)
    }
}

/// This node's candidacies, as the leadership reads them.
pub(super) fn candidacies(
    network: &peer::Network,
) -> impl futures::Stream<Item = (u64, u64)> + Send + Unpin + use<> {
    use futures::StreamExt;
    let counts = tokio_stream::wrappers::WatchStream::new(network.elections());
    counts.map(|counts| (counts.pre_vote_rounds, counts.started))
}

/// Writes one span of the time from opening the folder until all that was committed is applied again.
pub(super) async fn tell_recovery(raft: Handle, tracer: Tracer, started: Instant, last_exit: String) {
    let applied_before = raft.status().positions.applied;
    if !tracer.is_on() || !raft.core().wait_for_recovery(RECOVERED_WITHIN).await {
        return;
    }
    let (status, clock) = (raft.status(), Clock::now());
    let mut span = Span::own(names::span::RECOVER, clock.at(started), clock.at(Instant::now()));
    let replayed = status.positions.applied.saturating_sub(applied_before);
    span.attributes.extend([
        int(names::TERM, status.term),
        int(names::INDEX, status.positions.applied),
        int(names::NODE_ID, raft.node_id()),
        int(names::REPLAYED_ENTRIES, replayed),
        text(names::LAST_EXIT, last_exit),
    ]);
    tracer.record(span);
}

/// Opens what this node records of itself.
pub(super) async fn open_audit(
    settings: &config::Settings,
    opened: &store::Opened,
    registry: &Registry,
) -> Result<audit::Handle, StartError> {
    let (local, health) = (opened.local.clone(), opened.health.clone());
    let (node_id, registry) = (settings.node.id, registry.clone());
    let open = move || audit::Handle::open(local, health, node_id, &api::table::audited(), &registry);
    match tokio::task::spawn_blocking(open).await {
        Ok(Ok(audit)) => Ok(audit),
        Ok(Err(error)) => Err(StartError { exit_code: 1, message: error.to_string() }),
        Err(panicked) => Err(StartError { exit_code: 1, message: format!("opening the record: {panicked}") }),
    }
}

/// This process began; how the one before it ended is known.
pub(super) fn record_start(audit: &audit::Handle, raft: &Handle, last: &store::exit::LastExit) {
    let event = Recorded::new(Kind::Lifecycle, raft.status().term, "start")
        .with("lastExit", last.cause.label())
        .with("version", env!("CARGO_PKG_VERSION"));
    let event = match last.cause {
        store::exit::Cause::First => event,
        _ => event.with("lastExitAt", last.at_ms).with("lastExitText", last.text.as_str()),
    };
    audit.history.record(event);
}

/// This process ends in order.
pub(super) fn record_stop(audit: &audit::Handle, raft: &Handle, took: Duration) {
    let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let event = Recorded::new(Kind::Lifecycle, raft.status().term, "stop");
    audit.history.record(Recorded { duration_ms: Some(took), ..event });
}
