//! `node`: one node of a cluster.
use crate::cli::config_args::ConfigArgs;
/// Run one node.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}
pub(crate) fn run(_args: Args) -> u8 {
    0
}
