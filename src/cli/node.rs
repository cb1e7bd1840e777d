//! `node`: one node of a cluster.

use std::io::Read;

use crate::{
    cli::{config_args::ConfigArgs, exit, out},
    node,
};

const AFTER_HELP: &str = "\
Try it:
  blockraft node --config n1.toml
  BLOCKRAFT_RAFT__ELECTION_TIMEOUT=2s blockraft node --config n1.toml --set snapshot.retain=5

SIGTERM and SIGINT hand leadership over, flush, and end it with 0; a second one ends it at once.";

/// Run one node.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// End as by SIGTERM when stdin ends: the parent holds its other end.
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

pub(crate) fn run(args: Args) -> u8 {
    let loaded = match args.config.load() {
        Ok(loaded) => loaded,
        Err(failure) => return exit::code(Err(failure)),
    };
    raise_file_limit();
    let with_parent = args.exit_with_parent;
    let parent_gone = async move {
        if !with_parent {
            return std::future::pending().await;
        }
        // Reading blocks, and nobody writes: a thread of the blocking pool waits for the end.
        let ended = tokio::task::spawn_blocking(|| {
            let mut sink = [0; 64];
            while matches!(std::io::stdin().lock().read(&mut sink), Ok(n) if n != 0) {}
        });
        if ended.await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    node::run::run(loaded.settings, parent_gone)
}

/// Raises the soft limit of open files to the hard one: RocksDB and connections live from it.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        out::complain(&format!("the limit of open files stays as it is: {error}"));
    }
}
