//! `blockraft check`: all problems of the settings at once, what is unwise, and what is in force.

use crate::cli::config_args::{ConfigArgs, environment};
use crate::cli::exit::{self, DONE, Failure};
use crate::cli::out;
use crate::config::Settings;
use crate::config::warnings::{self, Limits};
use crate::telemetry::trace::variables::complaints;

const AFTER_HELP: &str = "\
Examples:
  blockraft check --config n1.toml                 everything that is wrong with them, at once
  blockraft check --config n1.toml --show          what is in force, and where each value comes from
  BLOCKRAFT_NODE__ID=2 blockraft check --config n1.toml --set raft.heartbeat_interval=20ms

Reads the file, the environment and the flags as `node` does, and starts nothing. Warnings go to stderr.

Exit codes: 0 a node would start with these settings · 2 it would not";

/// Check the settings of a node: all problems at once, what is unwise, and what is in force.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Print every setting in force and where it comes from.
    #[arg(long)]
    pub(crate) show: bool,
}

/// 0: a node would start with these settings; 2: it would not.
pub(crate) fn run(args: &Args) -> u8 {
    exit::code(check(args))
}

fn check(args: &Args) -> Result<u8, Failure> {
    let loaded = args.config.load()?;
    let of_settings = warnings::find(&loaded, Limits::of_this_process());
    for warning in of_settings.into_iter().chain(complaints(&environment())) {
        out::note(&format!("warning: {warning}"));
    }
    let text = if args.show { loaded.show() } else { summary(&loaded.settings) };
    out::print(&text)?;
    Ok(DONE)
}

fn summary(settings: &Settings) -> String {
    let founders = match settings.cluster.peers.len() {
        0 => "waits to be added to it".to_owned(),
        n => format!("{n} founding members"),
    };
    format!(
        "ok: node {} ({}) of cluster {}, {founders}, data in {}\n",
        settings.node.id,
        settings.node.name,
        settings.cluster.id,
        settings.node.data_dir.display(),
    )
}
