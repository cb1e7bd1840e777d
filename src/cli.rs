//! The command line: one subcommand per file or folder below.
//!
//! [`run`] is all that the binary calls. Every subcommand returns its exit code; nothing else ends the process.

pub(crate) mod bench;
pub(crate) mod blocks;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod config_args;
pub(crate) mod ctl;
pub(crate) mod dev;
pub(crate) mod endpoints;
pub(crate) mod exit;
pub(crate) mod inspect;
pub(crate) mod node;
pub(crate) mod out;
pub(crate) mod processor;
pub(crate) mod recover;
pub(crate) mod signals;
pub(crate) mod snapshot;
pub(crate) mod table;
pub(crate) mod units;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};

/// What `--version` prints: the release and the revision it was built from.
pub(crate) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BLOCKRAFT_REVISION"), ")");

const AFTER_HELP: &str = "\
Try it:
  blockraft dev                                    three nodes here, blocks being produced
  blockraft ctl status --all                       who leads, how far each node is
  blockraft node --config n1.toml                  one node of a real cluster

Exit codes: 0 done · 1 failed or refused, nothing happened · 2 usage or config ·
3 unknown, it may have happened · 4 the data folder refuses, a restart will not help";

/// Keeps a block sequencer alive: raft agreement on every block, one fenced producer at a time.
#[derive(Debug, Parser)]
#[command(name = "blockraft", version = VERSION, after_help = AFTER_HELP, disable_help_subcommand = true)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Node(node::Args),
    Dev(dev::Args),
    Ctl(Box<ctl::Args>),
    Bench(bench::Args),
    Check(check::Args),
    Config(config::Args),
    Inspect(inspect::Args),
    #[command(subcommand)]
    Snapshot(snapshot::Snapshot),
    Recover(recover::Recover),
    Completions(completions::Args),
}

/// The whole command, for completions.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

/// Runs what the arguments say, and returns the exit code of design section 10.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    if let Some(missing) = processor::missing() {
        out::complain(&format!("this processor has no {missing}, which blockraft is built for"));
        return exit::FAILED.into();
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            // A reader that went away is no reason to fail.
            let _ = e.print();
            return match e.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => exit::DONE.into(),
                _ => exit::USAGE.into(),
            };
        }
    };
    let code = match cli.command {
        Command::Node(args) => node::run(&args),
        Command::Dev(args) => dev::run(args),
        Command::Ctl(args) => ctl::run(*args),
        Command::Bench(args) => bench::run(args),
        Command::Check(args) => check::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Snapshot(command) => snapshot::run(command),
        Command::Recover(args) => recover::run(&args),
        Command::Completions(args) => completions::run(&args, command()),
    };
    code.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    /// Every command below, as words of a line, and what its `--help` says.
    fn helps(command: &mut clap::Command, path: &str) -> Vec<(String, String)> {
        let path = format!("{path} {}", command.get_name());
        let mut all = vec![(path.clone(), command.render_long_help().to_string())];
        for sub in command.get_subcommands_mut() {
            all.extend(helps(sub, &path));
        }
        all
    }

    #[test]
    fn every_command_says_what_it_is_for() {
        let commands = command();
        for sub in commands.get_subcommands() {
            assert!(sub.get_about().is_some(), "{}", sub.get_name());
        }
    }

    #[test]
    fn the_settings_that_help_texts_name_are_valid() {
        let required = ["cluster.id=c", "node.id=1", "node.data_dir=/d"].map(String::from);
        let mut n_checked = 0;
        for (command, help) in helps(&mut command(), "") {
            let words: Vec<&str> = help.split_whitespace().collect();
            for pair in words.windows(2) {
                let is_example = pair[1].contains('=') && !pair[1].starts_with('<');
                if !is_example || !["--set", "as"].contains(&pair[0]) {
                    continue;
                }
                let setting = pair[1].trim_end_matches([';', ',', '.']);
                let set = required.iter().cloned().chain([setting.to_owned()]).collect();
                let loaded = config_args::ConfigArgs { config: None, set }.load_with(Vec::new());
                let why = loaded.err().and_then(|f| f.message);
                assert_eq!(why, None, "{command}: {setting}");
                n_checked += 1;
            }
        }
        // Of `node`, `dev`, `bench` and `check` at least.
        assert!(4 <= n_checked, "{n_checked}");
    }

    #[test]
    fn usage_errors_and_help_have_their_codes() {
        let kind = |line: &str| Cli::try_parse_from(line.split(' ')).expect_err("no command").kind();
        assert_eq!(kind("blockraft --help"), ErrorKind::DisplayHelp);
        assert_eq!(kind("blockraft ctl nosuchcommand"), ErrorKind::InvalidSubcommand);
        assert_eq!(kind("blockraft node --bogus"), ErrorKind::UnknownArgument);
    }
}
