//! `bench`: load on a running cluster, and how long each block took.
//!
//! [`schedule`] says when blocks are due, [`stream`] and [`request`] send them, [`tally`] counts, and
//! [`report`] shows. Everything runs on one thread: the nodes may share the machine.

mod failover;
mod own;
mod report;
mod request;
mod schedule;
mod stream;
mod tally;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use clap::ValueEnum;
use tokio::time::Instant;

use crate::cli::bench::own::Own;
use crate::cli::bench::schedule::{Arrivals, Pacer};
use crate::cli::bench::tally::Tally;
use crate::cli::blocks::Maker;
use crate::cli::ctl::confirm::confirm;
use crate::cli::dev::ports;
use crate::cli::exit::{self, Failure};
use crate::cli::signals::Ends;
use crate::cli::{endpoints, out, units};
use crate::client::cluster::{Cluster, Target};
use crate::client::endpoint::Endpoint;
use crate::client::http::Http;

const AFTER_HELP: &str = "\
Examples:
  blockraft bench                                    64 blocks in flight on the stream, 10 s
  blockraft bench --in-flight 1                      one writer: how long a block takes
  blockraft bench --rate 1000 --size 1KiB            1000 blocks a second, whatever happens: latency from when
                                                     a block was due, so a stall counts against all it held up
  blockraft bench --path http --in-flight 64 --json
  blockraft bench --nodes 3                          on a cluster of its own, which is gone afterwards
  blockraft bench --nodes 3 --failover 50 --signal kill
                                                     from the last block of a killed leader to the first of
                                                     the next one, as its producer sees it

A closed loop (--in-flight) shows what the cluster can carry; claims about p99 come from an open loop (--rate).
The blocks go into the cluster's chain, and nothing takes them out again: use a cluster that is there for it, such as
`blockraft dev --produce 0`, or --nodes. A chain that has blocks is asked about first; --yes answers.

Exit codes: 0 measured · 1 failed · 2 usage";

/// A block is given up when it was not acknowledged so long after the end.
const DRAIN: Duration = Duration::from_secs(5);
/// Without a leader for so long, the run is over.
const NO_LEADER_MAX: Duration = Duration::from_secs(30);
/// Bound of blocks in flight in an open loop: half of the nodes' default `api.max_in_flight`.
const OPEN_IN_FLIGHT: usize = 2_048;
/// One look for a leader, and how long to wait for one: of a running cluster, and of one that is starting.
const LOOK: Duration = Duration::from_secs(2);
const START: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Of one request: above the nodes' longest `timeoutMs`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(35);
/// Connections of one request each: below the nodes' default `api.max_connections_per_address`.
const CONNECTIONS_MAX: usize = 200;
/// For a node to end its answer at the end of a run.
const CLOSE_WITHIN: Duration = Duration::from_millis(200);

/// How blocks are proposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Path {
    /// POST /v1/blocks/stream, one connection, in order.
    Stream,
    /// POST /v1/blocks, one request a block.
    Http,
    /// block_propose, one call a block.
    Rpc,
}

/// Put load on a running cluster and measure how long each block takes.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    endpoints: endpoints::Args,
    /// Start a cluster of so many nodes for this run, in a temporary folder.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(ports::NODES_MAX)))]
    nodes: Option<u16>,
    /// One setting for the nodes of --nodes, such as telemetry.log_filter=off; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", requires = "nodes")]
    set: Vec<String>,
    /// Open loop: so many blocks a second, at fixed times.
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    rate: Option<f64>,
    /// Blocks in flight: of a closed loop [default: 64], or at most of an open one [default: 2048].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    in_flight: Option<u32>,
    /// Bytes of a block's header and data together.
    #[arg(long, default_value = "256", value_name = "BYTES", value_parser = units::parse_block_size)]
    size: usize,
    /// How long is measured.
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = units::parse_span)]
    duration: Duration,
    /// Load before that, which does not count.
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = units::parse_span)]
    warmup: Duration,
    /// How blocks are proposed.
    #[arg(long, value_enum, default_value = "stream")]
    path: Path,
    /// End the leader so many times under --rate blocks a second [default: 100], and measure the gaps.
    #[arg(long, value_name = "TIMES", requires = "nodes", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    failover: Option<u32>,
    /// How the leader ends.
    #[arg(long, value_enum, default_value = "term", requires = "failover")]
    signal: failover::How,
    /// The result as JSON.
    #[arg(long)]
    json: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.1..=1e6).contains(&rate) => Ok(rate),
        Ok(_) | Err(_) => Err("blocks a second, 0.1 to 1000000".into()),
    }
}

/// One run, shared by all that sends.
struct Run {
    cluster: Cluster,
    arrivals: Arrivals,
    /// No block is due after it.
    end: Instant,
    /// Blocks in flight at most.
    in_flight: usize,
    /// Guards the counts of one batch of answers; a task of its own would cost more than the lock.
    tally: Mutex<Tally>,
}

impl Run {
    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().expect("counting does not panic")
    }
}

pub(crate) fn run(args: Args) -> u8 {
    exit::code(start(&args))
}

fn start(args: &Args) -> Result<u8, Failure> {
    if args.duration.is_zero() {
        return Err(Failure::usage("--duration: above zero"));
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start the runtime: {e}")))?
        .block_on(prepare(args))
}

async fn prepare(args: &Args) -> Result<u8, Failure> {
    let Some(n_nodes) = args.nodes else {
        let cluster = find(args, args.endpoints.list()?, LOOK).await?;
        ask(args, &cluster).await?;
        // Not before the question: Ctrl-C answers it.
        return measure(args, cluster, &mut Ends::listen()?).await;
    };
    // Before there is anything to take down again.
    let mut ends = Ends::listen()?;
    let mut own = Own::start(n_nodes, &args.set)?;
    let code = on_own(args, &mut own, &mut ends).await;
    own.stop(ends.interrupted()).await;
    code
}

async fn on_own(args: &Args, own: &mut Own, ends: &mut Ends) -> Result<u8, Failure> {
    let cluster = tokio::select! {
        cluster = find(args, own.endpoints().to_vec(), START) => cluster?,
        () = ends.next() => return Err(Failure::failed("interrupted before there was a leader")),
    };
    match args.failover {
        Some(times) => failover::measure(args, own, cluster, times, ends).await,
        None => measure(args, cluster, ends).await,
    }
}

/// Before made-up blocks go into a chain that has others.
async fn ask(args: &Args, cluster: &Cluster) -> Result<(), Failure> {
    let end = Instant::now() + cluster.timeout();
    let leader = cluster.find(Target::Leader, end).await?;
    let Some(head) = cluster.status_at(&leader, end).await?.head else { return Ok(()) };
    let question = format!(
        "The chain at {} has blocks up to height {}. Those of bench are made up, and nothing takes them out again. Add them?",
        leader.as_str(),
        head.height
    );
    confirm(&question, args.yes)
}

/// Waits for a leader.
async fn find(args: &Args, endpoints: Vec<Endpoint>, patience: Duration) -> Result<Cluster, Failure> {
    let names = endpoints.iter().map(Endpoint::as_str).collect::<Vec<_>>().join(", ");
    let cluster =
        Cluster::new(Http::new(REQUEST_TIMEOUT, args.endpoints.token()?), endpoints, REQUEST_TIMEOUT);
    let end = Instant::now() + patience;
    while cluster.ready_leader(end.min(Instant::now() + LOOK)).await.is_none() {
        if end <= Instant::now() + LOOK_AGAIN {
            let hint = if args.nodes.is_none() { args.endpoints.hint() } else { "" };
            return Err(Failure::failed(format!("no leader is ready at {names}{hint}")));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(cluster)
}

async fn measure(args: &Args, cluster: Cluster, ends: &mut Ends) -> Result<u8, Failure> {
    // Connections are open before the first block is due.
    let start = Instant::now() + Duration::from_millis(100);
    let from = start + args.warmup;
    let end = from + args.duration;
    let arrivals = Arrivals::new(start, args.rate);
    let in_flight = match (args.in_flight, args.rate) {
        (Some(n), _) => n as usize,
        (None, Some(_)) => OPEN_IN_FLIGHT,
        (None, None) => 64,
    };
    let run = Arc::new(Run { cluster, arrivals, end, in_flight, tally: Mutex::new(Tally::new(from, end)) });
    let pacer = args.rate.map(|rate| Pacer::start(start, rate));
    let maker = Maker::new(args.size, false);
    let sent = async {
        match args.path {
            Path::Stream => stream::send(&run, maker, pacer.as_ref()).await,
            Path::Http => request::send(&run, maker, pacer.as_ref(), request::Form::Protobuf).await,
            Path::Rpc => request::send(&run, maker, pacer.as_ref(), request::Form::JsonRpc).await,
        }
    };
    let sent = tokio::select! {
        sent = sent => sent,
        // What was measured so far is shown.
        () = ends.next() => Ok(()),
        () = report::progress(&run) => Ok(()),
    };
    let mut tally = run.tally();
    // A run that was cut short owes nothing that was due later.
    tally.planned = run.arrivals.count_between(from, end.min(Instant::now()));
    let result = report::Findings::new(args, &tally, in_flight);
    let text = if args.json { result.json() } else { result.table(out::is_colored()) };
    out::print(&text)?;
    sent?;
    Ok(if 0 < tally.acked_in_window { exit::DONE } else { exit::FAILED })
}
