//! `blockraft completions`: what a shell needs to complete our commands.

use clap_complete::Shell;

use crate::cli::{
    exit::{self, DONE},
    out,
};

#[derive(Debug, clap::Args)]
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
