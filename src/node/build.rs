//! Putting the parts together, from the folder upwards.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use prometheus::Registry;
use tokio_util::sync::CancellationToken;

use crate::api;
use crate::audit;
use crate::config;
use crate::consensus;
use crate::consensus::membership::Changer;
use crate::consensus::{founding, snapshots};
use crate::feed;
use crate::instants::Instants;
use crate::leadership;
use crate::leadership::elections::{self, Elections};
use crate::leadership::metrics::{Counters, RaftCollector};
use crate::node::agreement::{self, Agreement};
use crate::node::answers::NodeAnswers;
use crate::node::doubts::{self, Doubts};
use crate::node::ports::Bound;
use crate::node::remembered::Remembered;
use crate::node::tasks::Tasks;
use crate::node::{StartError, addresses, configs, founders, leading, members, observe, parts, recorded};
use crate::peer;
use crate::proposals;
use crate::store;
use crate::telemetry;
use crate::telemetry::trace::counted::Rejected;
use crate::types::member::Members;

/// The servers get so long to end after they were told to.
pub(super) const SERVERS_WITHIN: Duration = Duration::from_millis(500);

/// What cannot go on ends within a second, whatever hangs.
pub(super) const FATAL_WITHIN: Duration = Duration::from_millis(800);

/// A node whose tasks run.
pub(super) struct Running {
    pub(super) settings: config::Settings,
    pub(super) raft: consensus::handle::Handle,
    pub(super) leadership: leadership::handle::Handle,
    pub(super) proposals: proposals::handle::Handle,
    pub(super) reader: store::Reader,
    pub(super) feed: feed::Hub,
    pub(super) audit: audit::Handle,
    pub(super) health: store::Health,
    pub(super) instants: Arc<Instants>,
    /// What ends when `serving` is cancelled.
    pub(super) servers: Tasks,
    /// What ends with raft.
    pub(super) tasks: Tasks,
    /// Cancelled: the ports are closed, connections drained.
    pub(super) serving: CancellationToken,
    /// `None` only while it is put together.
    closer: Option<store::Closer>,
}

impl Running {
    /// Completes when the node cannot go on.
    pub(super) async fn failed(&mut self) -> StartError {
        tokio::select! {
            // What the store says first: a task that ends over it ends at the same moment, and knows less.
            biased;
            failed = store_failed(&self.health) => failed,
            ended = self.servers.ended_early() => StartError { exit_code: 1, message: ended.to_string() },
            ended = self.tasks.ended_early() => StartError { exit_code: 1, message: ended.to_string() },
        }
    }

    /// Joins the writer thread and drops the databases; blocks on a thread of its own.
    pub(super) async fn close(mut self) {
        let Some(closer) = self.closer.take() else { return };
        drop(self);
        if tokio::task::spawn_blocking(move || closer.close()).await.is_err() {
            tracing::error!("closing the store panicked");
        }
    }
}

/// One that was not stopped.
impl Drop for Running {
    fn drop(&mut self) {
        let Some(closer) = self.closer.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (raft, within) = (self.raft.clone(), self.settings.raft.shutdown_timeout);
        runtime.spawn(async move {
            // What raft still applies would keep the databases open.
            let _ = tokio::time::timeout(within, raft.core().shutdown()).await;
            drop(closer);
        });
    }
}

/// Completes when the store cannot go on.
async fn store_failed(health: &store::Health) -> StartError {
    let mut health = health.watch();
    match health.wait_for(|h| h.fatal.is_some()).await.map(|view| view.fatal.clone()) {
        Ok(Some(fatal)) => fatal.into(),
        Ok(None) | Err(_) => StartError { exit_code: 1, message: "the store ended".into() },
    }
}

/// The store cannot go on, nor can the node.
impl From<store::health::Fatal> for StartError {
    fn from(fatal: store::health::Fatal) -> Self {
        Self { exit_code: fatal.exit_code(), message: fatal.to_string() }
    }
}

/// What the process gives a node beside its settings.
pub(crate) struct Process {
    pub(crate) registry: Registry,
    /// Log output, where its filter can be changed.
    pub(crate) log: Option<telemetry::log::Handle>,
    /// Spans that a collector refused, where the log's subscriber reads of them.
    pub(crate) rejected: Rejected,
}

impl Process {
    /// For a node inside another program, which has its own log output.
    pub(super) fn embedded() -> Self {
        Self { registry: Registry::new(), log: None, rejected: Rejected::default() }
    }
}

/// Opens, binds, builds and starts. Whatever fails first is told, and nothing is left running.
pub(super) async fn start(settings: config::Settings, process: Process) -> Result<Running, StartError> {
    let registry = process.registry;
    let observed = observe::begin(&settings, &registry, process.rejected).map_err(metrics_failed)?;
    let instants = Arc::clone(&observed.instants);
    let opening = Instant::now();
    let mut opened = open_store(&settings, &registry, &instants).await?;
    let (closer, health) = (opened.closer.take(), opened.health.clone());
    let data_dir = settings.node.data_dir.clone();
    let parts = Parts { registry, log: process.log, observed, opening };
    let built = tokio::select! {
        // What is committed is applied again before raft is built, and an apply that fails never returns.
        biased;
        failed = store_failed(&health) => Err(failed),
        built = assemble(settings, opened, parts) => built,
    };
    match built {
        Ok(mut running) => {
            running.closer = Some(closer);
            Ok(running)
        }
        Err(error) => {
            let fatal = health.get().fatal;
            let error = fatal.clone().map_or(error, StartError::from);
            give_back(data_dir, closer, fatal.map(|fatal| fatal.to_string())).await;
            Err(error)
        }
    }
}

/// Closes the store of a node that does not start. `fatal`: what the next start is to be told.
async fn give_back(data_dir: PathBuf, closer: store::Closer, fatal: Option<String>) {
    let closing = tokio::task::spawn_blocking(move || {
        if let Some(text) = fatal
            && let Err(error) = store::exit::record(&data_dir, store::exit::Cause::Fatal, &text)
        {
            tracing::warn!(%error, "LAST_EXIT cannot be written");
        }
        closer.close();
    });
    if tokio::time::timeout(FATAL_WITHIN, closing).await.is_err() {
        tracing::warn!("the store of a node that does not start is not closed yet: the disk hangs");
    }
}

/// What there is beside the store when a node is put together.
struct Parts {
    registry: Registry,
    log: Option<telemetry::log::Handle>,
    observed: observe::Observed,
    opening: Instant,
}

async fn assemble(
    settings: config::Settings,
    mut opened: store::Opened,
    parts: Parts,
) -> Result<Running, StartError> {
    let Parts { registry, log, observed, opening } = parts;
    let (instants, exemplars) = (Arc::clone(&observed.instants), observed.exemplars.clone());
    let audit = observe::open_audit(&settings, &opened, &registry).await?;
    let source = Arc::new(feed::source::Store::new(opened.reader.clone()));
    let feed = feed::Hub::new(configs::feed_config(&settings), source, Arc::clone(&instants), &registry)
        .map_err(metrics_failed)?;
    opened.machine.set_tap(Arc::new(feed.clone()));
    let bound = Bound::bind(&settings).await?;
    observe::register_infos(&settings, &registry).map_err(metrics_failed)?;

    let leadership_later = Arc::new(OnceLock::new());
    let addresses: peer::Addresses =
        Arc::new(ArcSwap::from_pointee(addresses::addresses(&settings, &Members::default())));
    let remembered = Remembered::open(&opened).await?;
    let raft_later = Arc::new(OnceLock::new());
    let agreement = Arc::new(Agreement::new(settings.node.id, opened.reader.clone()));
    let notices = parts::Notices {
        reader: opened.reader.clone(),
        health: opened.health.clone(),
        leadership: Arc::clone(&leadership_later),
        instants: Arc::clone(&instants),
        remembered: remembered.clone(),
        raft: Arc::clone(&raft_later),
        history: audit.history.clone(),
        agreement: Arc::clone(&agreement),
    };
    let doubts = Doubts::default();
    let network = peer::Network::new(
        configs::peer_config(&settings),
        configs::identity(&opened.identity),
        Arc::clone(&addresses),
        Arc::new(parts::Incarnations {
            remembered: remembered.clone(),
            reader: opened.reader.clone(),
            data_dir: settings.node.data_dir.clone(),
            identity: Mutex::new(opened.identity.clone()),
        }),
        Arc::new(notices),
        Arc::new(parts::SnapshotStore {
            snapshots: opened.snapshots.clone(),
            health: opened.health.clone(),
            min_free: settings.store.min_free,
            doubts: doubts.clone(),
            sends: Mutex::default(),
        }),
        &registry,
    )
    .map_err(metrics_failed)?;

    let core = consensus::core::build(
        settings.node.id,
        &configs::core_config(&settings, &opened.identity),
        network.clone(),
        opened.log,
        opened.machine,
    )
    .await
    .map_err(|e| StartError { exit_code: 1, message: e.to_string() })?;
    let raft = consensus::handle::Handle::new(
        settings.node.id,
        Arc::new(core.clone()),
        Arc::new(network.asker()),
        configs::core_config(&settings, &opened.identity),
        settings.raft.send_timeout,
    );
    raft.removal().restore(remembered.removed());
    let _ = raft_later.set(raft.clone());
    let changer = Changer::new(raft.clone(), instants.tracer().clone());
    let votes_from = NodeAnswers::votes_from(opened.had_data, settings.raft.leader_lease_timeout);
    let stored = leading::Stored {
        reader: opened.reader.clone(),
        local: opened.local.clone(),
        health: opened.health.clone(),
    };
    let (leadership, requests) =
        leading::build(&settings, votes_from, &raft, stored, &audit, &instants, &registry)?;
    // Set once, here.
    let _ = leadership_later.set(leadership.clone());
    let ages = Arc::new(observe::EntryAges(Arc::clone(&instants)));
    RaftCollector::register(leadership.clone(), ages, &configs::exported(&settings), &registry)
        .map_err(metrics_failed)?;
    let counters = Counters::new(&registry).map_err(metrics_failed)?;
    let chain = Arc::new(parts::Chain(opened.reader.clone()));
    let (proposals, proposals_task) = proposals::task::start(
        configs::proposals_config(&settings),
        raft.clone(),
        leadership.clone(),
        chain,
        Arc::clone(&instants),
        &registry,
    )
    .map_err(metrics_failed)?;
    leadership.set_in_flight(Arc::new(parts::InFlight(proposals.clone())));

    let list = founders::founding_list(&settings).of_this_life(settings.node.id, opened.identity.incarnation);
    let api_later = Arc::new(OnceLock::new());
    let answers = Arc::new(NodeAnswers {
        raft: raft.clone(),
        leadership: leadership.clone(),
        api: Arc::clone(&api_later),
        list_hash: list.hash(&settings.cluster.id),
        votes_from,
    });
    let for_api = ForApi {
        reader: opened.reader.clone(),
        feed: feed.clone(),
        audit: audit.clone(),
        changer: changer.clone(),
        health: opened.health.clone(),
        snapshots: opened.snapshots.clone(),
        instants: Arc::clone(&instants),
        exemplars,
        log,
        last_exit: (opened.last_exit.cause != store::exit::Cause::First)
            .then(|| format!("{}: {}", opened.last_exit.cause.label(), opened.last_exit.text)),
    };
    let api_parts = Arc::new(api_parts(&settings, &raft, &leadership, &proposals, &for_api, &registry)?);
    let _ = api_later.set(Arc::clone(&api_parts));

    let serving = CancellationToken::new();
    let (mut servers, mut tasks) = (Tasks::default(), Tasks::default());
    // The peer port answers before raft has anything to say.
    let peers = network.serve(bound.peer, core.clone(), Arc::clone(&answers) as _, serving.clone());
    servers.spawn("peer-server", never_fails(peers));
    servers.spawn("peer-links", never_fails(network.clone().run(serving.clone())));
    let has_data = opened.had_data;
    // Until the leadership's first look: an old leader's lease may still hold (safety rule 16).
    raft.core().set_may_stand(false);
    core.run();
    raft.started().await.map_err(|e| StartError { exit_code: 1, message: e.to_string() })?;
    tasks.spawn("founding", founding::run(raft.clone(), list, settings.cluster.id.clone()));
    tasks.spawn("audit", never_fails(audit.clone().run()));
    let records = recorded::run(audit.clone(), opened.local.clone(), raft.clone(), opened.snapshots.clone());
    tasks.spawn("records", never_fails(records));
    observe::record_start(&audit, &raft, &opened.last_exit);
    let own_settings = settings.settings.clone();
    tasks.spawn("leadership", leadership::task::run(leadership.clone(), requests, own_settings, counters));
    tasks.spawn("dead-leader", leadership::hint::run(leadership.clone()));
    tasks.spawn("proposals", never_fails(proposals_task.run()));
    tasks.spawn("spans", never_fails(observe::span_task(observed, &raft).run()));
    let stalls = telemetry::runtime::Stalls::register(&registry).map_err(metrics_failed)?;
    servers.spawn("stalls", never_fails(stalls.clone().sample(serving.clone())));
    let elections = Elections::register(&registry).map_err(metrics_failed)?;
    let tracer = instants.tracer().clone();
    let rounds = observe::candidacies(&network);
    tasks.spawn("elections", elections::run(leadership.clone(), rounds, elections, stalls, tracer.clone()));
    if has_data {
        let last_exit = opened.last_exit.cause.label().to_owned();
        tasks
            .spawn("recovery", never_fails(observe::tell_recovery(raft.clone(), tracer, opening, last_exit)));
    }
    let compacted =
        Arc::new(parts::Compacted { reader: opened.reader.clone(), snapshots: opened.snapshots.clone() });
    tasks.spawn("snapshots", snapshots::run(raft.clone(), configs::snapshots_config(&settings), compacted));
    let judge = doubts::Judge {
        reader: opened.reader.clone(),
        snapshots: opened.snapshots.clone(),
        raft: raft.clone(),
    };
    tasks.spawn("doubts", never_fails(judge.run(doubts)));
    tasks.spawn("membership", changer.clone().run());
    tasks.spawn(
        "members",
        members::run(raft.clone(), changer, remembered, audit.history.clone(), opened.reader.clone()),
    );
    let judge = agreement::Judge {
        agreement,
        raft: raft.clone(),
        leadership: leadership.clone(),
        health: opened.health.clone(),
        feed: feed.clone(),
        resign_timeout: settings.raft.resign_timeout,
    };
    tasks.spawn("agreement", judge.run());
    tasks.spawn("addresses", addresses::keep_addresses(raft.clone(), settings.clone(), addresses));
    let api_config = configs::api_config(&settings);
    servers.spawn(
        "api",
        never_fails(api::serve(bound.api, api_config, Arc::clone(&api_parts), serving.clone())),
    );
    if let Some(listener) = bound.metrics {
        servers.spawn("metrics", never_fails(api::serve_metrics(listener, api_parts, serving.clone())));
    }
    tracing::info!(
        cluster_id = settings.cluster.id,
        node_id = settings.node.id,
        api = %settings.api.listen,
        peer = %settings.peer.listen,
        has_data,
        "node started"
    );
    Ok(Running {
        settings,
        raft,
        leadership,
        proposals,
        reader: opened.reader,
        feed,
        audit,
        health: opened.health,
        instants,
        servers,
        tasks,
        serving,
        closer: None,
    })
}

/// The API's view of the parts.
fn api_parts(
    settings: &config::Settings,
    raft: &consensus::handle::Handle,
    leadership: &leadership::Handle,
    proposals: &proposals::Handle,
    opened: &ForApi,
    registry: &Registry,
) -> Result<api::Parts, StartError> {
    Ok(api::Parts {
        node: api::NodeInfo {
            cluster_id: settings.cluster.id.clone(),
            node_id: settings.node.id,
            name: settings.node.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            peer_advertise: settings.peer.advertise.clone(),
        },
        consensus: raft.clone(),
        leadership: leadership.clone(),
        proposals: proposals.clone(),
        reader: opened.reader.clone(),
        feed: opened.feed.clone(),
        audit: opened.audit.clone(),
        changer: opened.changer.clone(),
        health: opened.health.clone(),
        snapshots: opened.snapshots.clone(),
        compaction: configs::snapshots_config(settings),
        settings_file: settings.settings.clone(),
        last_exit: opened.last_exit.clone(),
        started: Instant::now(),
        registry: registry.clone(),
        exemplars: opened.exemplars.clone(),
        instants: Arc::clone(&opened.instants),
        log: opened.log.clone(),
        metrics: api::metrics::Metrics::register(registry).map_err(metrics_failed)?,
        probes: api::probes::Probes::default(),
    })
}

/// What the API needs of the store.
struct ForApi {
    reader: store::Reader,
    feed: feed::Hub,
    audit: audit::Handle,
    changer: Changer,
    health: store::Health,
    snapshots: store::Snapshots,
    instants: Arc<Instants>,
    exemplars: telemetry::exemplars::Exemplars,
    log: Option<telemetry::log::Handle>,
    /// How the process before this one ended; `None` before the first.
    last_exit: Option<String>,
}

async fn never_fails(task: impl Future<Output = ()>) -> Result<(), std::convert::Infallible> {
    task.await;
    Ok(())
}

fn metrics_failed(error: prometheus::Error) -> StartError {
    StartError { exit_code: 1, message: format!("a metric cannot be registered: {error}") }
}

async fn open_store(
    settings: &config::Settings,
    registry: &Registry,
    instants: &Arc<Instants>,
) -> Result<store::Opened, StartError> {
    let config = store::Config {
        data_dir: settings.node.data_dir.clone(),
        min_free: settings.store.min_free,
        snapshot_retain: usize::try_from(settings.snapshot.retain).unwrap_or(usize::MAX),
    };
    let who = store::Who { cluster_id: settings.cluster.id.clone(), node_id: settings.node.id };
    let (registry, instants) = (registry.clone(), Arc::clone(instants));
    let opening = tokio::task::spawn_blocking(move || store::open(&config, &who, &registry, instants));
    match opening.await {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(error)) => Err(StartError { exit_code: error.exit_code(), message: error.to_string() }),
        Err(panicked) => Err(StartError { exit_code: 1, message: format!("opening the store: {panicked}") }),
    }
}

#[cfg(test)]
mod tests;
