//! `node`: one node of a cluster.

use std::{
    io::Read,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, Signal, getpid, getrlimit, kill_process, setrlimit};
use tokio::sync::oneshot;

use crate::cli::{
    config_args::ConfigArgs,
    exit::{self, Failure},
    out,
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
    raise_file_limit();
    let (gone_tx, gone) = oneshot::channel();
    // Kept, when nobody watches: `gone` then never completes.
    let mut kept = Some(gone_tx);
    if args.exit_with_parent {
        let gone = kept.take().expect("made above");
        // Before the node opens anything: the parent may be gone already.
        std::thread::Builder::new()
            .name("parent".into())
            .spawn(move || stop_with_stdin(gone))
            .map_err(|e| Failure::failed(format!("cannot watch stdin: {e}")))?;
    }
    let code = crate::node::run::run(loaded.settings, async {
        let _ = gone.await;
    });
    drop(kept);
    Ok(code)
}

/// Stops the node as SIGTERM does, and kills the process when that does not help. The kernel closes the
/// parent's end however the parent dies.
fn stop_with_stdin(gone: oneshot::Sender<()>) {
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
    // The node may have ended by itself.
    let _ = gone.send(());
    let end = Instant::now() + GRACE;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
        std::thread::park_timeout(left);
    }
    // A failure to kill oneself has nobody to be told to.
    let _ = kill_process(getpid(), Signal::KILL);
}

/// Raises the soft limit of open files to the hard one: RocksDB and connections live from it.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        out::complain(&format!("the limit of open files stays as it is: {error}"));
    }
}
