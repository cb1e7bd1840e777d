//! `dev`: a real cluster of child processes on this machine, with a demo producer and a live view.
//!
//! The parts: [`folder`] holds what stays, [`child`] owns one process, [`watch`] looks at the nodes, [`demo`]
//! produces, [`board`] is what is known, [`screen`] words it, and [`terminal`] shows it. [`stage`] drives them.

pub(crate) mod board;
pub(crate) mod child;
mod demo;
pub(crate) mod feed;
pub(crate) mod folder;
pub(crate) mod install;
pub(crate) mod ports;
pub(crate) mod screen;
mod stage;
pub(crate) mod terminal;
pub(crate) mod watch;

use std::path::PathBuf;

use crate::cli::{
    exit::{self, Failure},
    units,
};

const AFTER_HELP: &str = "\
Examples:
  blockraft dev                           three nodes, ten blocks a second, nothing left afterwards
  blockraft dev --nodes 5 --produce 100
  blockraft dev --dir ./demo              keep the data, and go on from it the next time
  blockraft dev --base-port 8401          other ports: APIs from 8401, peers from 8501
  blockraft dev --set raft.heartbeat_interval=20ms

Kill a node with the line that is printed for it, and see another one lead. In another terminal:
  blockraft ctl status --all
  blockraft ctl why";

/// Run a whole cluster here, with a demo block producer and a live view.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// How many nodes [default: 3, or as many as the folder has].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(ports::NODES_MAX)))]
    nodes: Option<u16>,
    /// Demo blocks a second; 0 produces none.
    #[arg(long, default_value_t = 10, value_name = "RATE", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    produce: u32,
    /// Bytes of a demo block.
    #[arg(long, default_value = "1KiB", value_name = "BYTES", value_parser = units::parse_block_size)]
    size: usize,
    /// Keep everything in this folder and go on from it [default: a temporary one, removed at the end].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// API ports from here on; peer ports from 100 above.
    #[arg(long, default_value_t = ports::BASE, value_name = "PORT")]
    base_port: u16,
    /// Start a node again when its process ends.
    #[arg(long)]
    restart: bool,
    /// One setting for all nodes, such as raft.heartbeat_interval=20ms; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

pub(crate) fn run(args: Args) -> u8 {
    exit::code(start(args))
}

fn start(args: Args) -> Result<u8, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start the runtime: {e}")))?
        .block_on(stage::run(args))
}
