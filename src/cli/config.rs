//! `blockraft config`: all settings, defaults and rules as commented TOML.

use crate::cli::exit::{self, DONE};
use crate::cli::out;
use crate::config::show::commented_toml;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args) -> u8 {
    exit::code(out::print(&commented_toml()).map(|()| DONE).map_err(Into::into))
}
