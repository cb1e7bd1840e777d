//! `blockraft check`: all problems of the settings at once, what is unwise, and what is in force.

use crate::cli::config_args::{ConfigArgs, environment};
use crate::cli::exit::{self, DONE, Failure};
use crate::cli::out;
use crate::config::Settings;
use crate::config::warnings::{self, Limits};
use crate::telemetry::trace::variables::complaints;

#[derive(Debug, clap::Args)]
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
