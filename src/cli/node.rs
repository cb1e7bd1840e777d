//! `node`: one node of a cluster.

use std::{io::Read, time::Duration};

use rustix::process::{Signal, getpid, kill_process};

use crate::cli::{
    config_args::ConfigArgs,
    exit::{self, Failure},
};

const AFTER_HELP: &str = "\
Examples:
  blockraft config > n1.toml                         all settings, to be edited
  blockraft check --config n1.toml                   what is wrong with them
  blockraft node --config n1.toml
  blockraft node --config n1.toml --set raft.heartbeat_interval=20ms
  BLOCKRAFT_CLUSTER__ID=c BLOCKRAFT_NODE__ID=1 … blockraft node

SIGTERM and SIGINT stop it gracefully: what is in flight is answered and leadership handed over. A second
signal stops it at once.

Exit codes: 0 stopped · 1 failed · 2 settings · 4 the data folder refuses, a restart will not help";

/// How long a graceful stop may take when the parent is gone: well above the defaults of
/// `raft.shutdown_timeout` and `raft.resign_timeout` together.
const GRACE: Duration = Duration::from_secs(15);

/// Run one node.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Stop when stdin ends: its other end is held by the process that started this one.
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

pub(crate) fn run(args: &Args) -> u8 {
    exit::code(start(args))
}

fn start(args: &Args) -> Result<u8, Failure> {
    let loaded = args.config.load()?;
    if args.exit_with_parent {
        // Before the node opens anything: the parent may be gone already.
        std::thread::Builder::new()
            .name("parent".into())
            .spawn(stop_with_stdin)
            .map_err(|e| Failure::failed(format!("cannot watch stdin: {e}")))?;
    }
    Ok(crate::node::run(loaded.settings))
}

/// Sends this process what a person would: SIGTERM, and SIGKILL when that does not help. The kernel closes
/// the parent's end however the parent dies.
fn stop_with_stdin() {
    let mut stdin = std::io::stdin().lock();
    let mut buffer = [0; 64];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    // A failure to signal oneself has nobody to be told to.
    let _ = kill_process(getpid(), Signal::TERM);
    let end = std::time::Instant::now() + GRACE;
    while let Some(left) = end.checked_duration_since(std::time::Instant::now()) {
        std::thread::park_timeout(left);
    }
    let _ = kill_process(getpid(), Signal::KILL);
}
