//! `blockraft config`: all settings, defaults and rules as commented TOML.

use crate::cli::exit::{self, DONE};
use crate::cli::out;
use crate::config::show::commented_toml;

const AFTER_HELP: &str = "\
Examples:
  blockraft config > n1.toml                       to be edited
  blockraft check --config n1.toml                 what is wrong with it

Exit codes: 0 printed · 1 it cannot be written";

/// Print all settings with their defaults and rules, as commented TOML.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args) -> u8 {
    exit::code(out::print(&commented_toml()).map(|()| DONE).map_err(Into::into))
}
