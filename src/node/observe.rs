//! What is watched of a node: its instants and spans, its elections, how it came back.

use std::{sync::Arc, time::Duration, time::Instant};

use prometheus::Registry;
use tokio::sync::mpsc;

use crate::{
    config,
    consensus::{Role, handle::Handle},
    instants::{
        Instants, Mark, Tracing,
        event::Event,
        stages::StageExemplars,
        task::{Standing, Task},
    },
    leadership::ages::Ages,
    peer, proposals,
    telemetry::{
        exemplars::Exemplars,
        names,
        trace::{
            Clock, Counts, Span, Tracer,
            counted::Rejected,
            export::{self, Service},
            int,
            sampling::{Sampler, Sampling},
            text,
            variables::{Variables, complaints},
        },
    },
    types::{LogIndex, NodeId},
};

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
    let telemetry = &settings.telemetry;
    let config = export::Config {
        endpoint: telemetry.otlp_endpoint.clone(),
        protocol: match telemetry.otlp_protocol {
            config::OtlpProtocol::Grpc => export::Protocol::Grpc,
            config::OtlpProtocol::Http => export::Protocol::Http,
        },
        service: Service {
            cluster_id: settings.cluster.id.clone(),
            node_id: settings.node.id,
            version: env!("CARGO_PKG_VERSION"),
        },
    };
    let tracer = export::start(&config, &variables, Counts::register(registry)?, rejected);
    let tracer = tracer.unwrap_or_else(|error| {
        tracing::warn!(%error, "traces are not exported");
        Tracer::off()
    });
    let sampling = Sampling::new(telemetry.sample_ratio, telemetry.traces_per_second, &variables);
    let (instants, events) = Instants::new(registry)?.traced(Tracing {
        tracer,
        sampler: Sampler::new(sampling),
        cluster_id: settings.cluster.id.clone(),
        node_id: settings.node.id,
    });
    Ok(Observed { instants: Arc::new(instants), exemplars: Exemplars::default(), events })
}

/// The task that writes block spans.
pub(super) fn span_task(observed: Observed, raft: &Handle) -> Task {
    let exemplars =
        StageExemplars::new(&observed.exemplars, &proposals::metrics::Ended::labels());
    let standing = Arc::new(RaftStanding(raft.clone()));
    Task::new(observed.instants, standing, exemplars, observed.events)
}

/// How this node stands, for the spans of blocks.
struct RaftStanding(Handle);

impl Standing for RaftStanding {
    fn role(&self) -> &'static str {
        match self.0.standing().0 {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Learner => "learner",
            Role::Stopped => "stopped",
        }
    }

    fn peers(&self) -> Vec<NodeId> {
        self.0.standing().1
    }

    fn clock_offset_us(&self, node_id: NodeId) -> Option<i64> {
        // Theirs minus ours there.
        self.0.peers().clock_offset_us(node_id).map(|us| -us)
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
