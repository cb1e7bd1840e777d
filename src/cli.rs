//! The subcommands.

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches};

use crate::cli::exit::USAGE;

pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod config_args;
pub(crate) mod exit;
pub(crate) mod out;

#[derive(Debug, clap::Parser)]
#[command(name = "blockraft", version)]
struct Root {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Check the settings and tell all problems at once.
    Check(check::Args),
    /// Print all settings, defaults and rules as commented TOML.
    Config(config::Args),
    /// Print a shell's completion script.
    Completions(completions::Args),
}

pub fn run(args: impl IntoIterator<Item = OsString>) -> std::process::ExitCode {
    let parsed = Root::command().try_get_matches_from(args).and_then(|m| Root::from_arg_matches(&m));
    let code = match parsed.map(|root| root.command) {
        Ok(Command::Check(args)) => check::run(&args),
        Ok(Command::Config(args)) => config::run(&args),
        Ok(Command::Completions(args)) => completions::run(&args, Root::command()),
        Err(error) => {
            let _ = error.print();
            if error.use_stderr() { USAGE } else { 0 }
        }
    };
    code.into()
}
