//! `blockraft completions`: what a shell needs to complete our commands.

use clap_complete::Shell;

use crate::cli::{
    exit::{self, DONE},
    out,
};

const AFTER_HELP: &str = "\
Example:
  blockraft completions bash > /etc/bash_completion.d/blockraft";

/// Print what a shell needs to complete these commands.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The shell that is to complete.
    pub(crate) shell: Shell,
}

/// `command` is the root of the command line.
pub(crate) fn run(args: &Args, mut command: clap::Command) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "blockraft", &mut script);
    exit::code(out::print(&String::from_utf8_lossy(&script)).map(|()| DONE).map_err(Into::into))
}
