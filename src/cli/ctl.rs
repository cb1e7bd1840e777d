//! `ctl`: every RPC as a command.
//!
//! [`command`] holds the words, [`plan`] turns them into calls, [`render`] shows the answers.

mod acts;
mod command;
pub(crate) mod confirm;
pub(crate) mod curl;
mod export;
mod live;
mod plan;
mod probe;
mod propose;
pub(crate) mod render;
mod watch;

use std::{path::Path, path::PathBuf, time::Duration};

use hyper::header::HeaderValue;

use crate::cli::exit::Failure;
use crate::cli::{endpoints, exit, out, units};
use crate::client::cluster::Cluster;
use crate::client::endpoint::Endpoint;
use crate::client::http::Http;
use crate::types::NodeId;

const AFTER_HELP: &str = "\
Examples:
  blockraft ctl status --all                     every node in one table
  blockraft ctl watch                            all nodes on one screen, as they move
  blockraft ctl why                              what keeps the cluster from taking blocks, in words
  blockraft ctl block get 42 --json              one block, as the node gives it
  blockraft ctl transfer 2                       hand leadership to node 2
  blockraft ctl --node 3 pause --reason patching node 3 shall not lead
  blockraft ctl call block_head '{\"consistency\":\"linearizable\"}'
  blockraft ctl --curl status                    the curl line instead

The first endpoint that answers is asked, the others are learned from it, and what only the leader does
goes to the leader. A command that moves leadership, pauses a node, takes a vote or a member away, forces a
change of members, changes settings of the cluster, makes a block up, or purges a log asks first; --yes answers.

Exit codes: 0 done · 1 refused or unreachable, nothing happened · 2 usage · 3 unknown, it may have happened";

/// Steer and look at a running cluster: every RPC as a command.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: command::Command,
}

/// Flags of every `ctl` command; they may stand before or behind it.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Flags of every ctl command")]
pub(crate) struct Flags {
    #[command(flatten)]
    endpoints: endpoints::Args,
    /// Ask this node.
    #[arg(long, global = true, value_name = "ID")]
    node: Option<NodeId>,
    /// A certificate authority to trust (not available in this version).
    #[arg(long, global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Bound of the whole command [default: 5s; longer for what is waited for].
    #[arg(long, global = true, value_parser = units::parse_duration, value_name = "TIME")]
    timeout: Option<Duration>,
    /// The answer as JSON, as the node gives it.
    #[arg(long, global = true)]
    json: bool,
    /// Print the curl line that does the same, and do nothing.
    #[arg(long, global = true)]
    curl: bool,
    /// Do not ask.
    #[arg(long, short = 'y', global = true)]
    yes: bool,
}

/// What every command is given: the flags, and the cluster they name.
struct Context {
    flags: Flags,
    endpoints: Vec<Endpoint>,
    token: Option<HeaderValue>,
    is_colored: bool,
}

impl Context {
    fn token_file(&self) -> Option<&Path> {
        self.flags.endpoints.token_file()
    }

    /// `patience` is the bound where `--timeout` names none.
    fn cluster(&self, patience: Duration) -> Cluster {
        let timeout = self.flags.timeout.unwrap_or(patience);
        Cluster::new(Http::new(timeout, self.token.clone()), self.endpoints.clone(), timeout)
            .with_hint(self.flags.endpoints.hint())
    }
}

pub(crate) fn run(args: Args) -> u8 {
    exit::code(start(args))
}

fn start(args: Args) -> Result<u8, Failure> {
    if args.flags.ca.is_some() {
        return Err(Failure::usage("--ca: TLS is not available in this version"));
    }
    let context = Context {
        endpoints: args.flags.endpoints.list()?,
        token: args.flags.endpoints.token()?,
        is_colored: out::is_colored(),
        flags: args.flags,
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start the runtime: {e}")))?
        .block_on(acts::run(&context, args.command))
}
