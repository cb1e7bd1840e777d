//! The flags that say where settings come from, shared by `node`, `check` and `snapshot restore`.

use std::{ffi::OsString, path::PathBuf};

use crate::cli::exit::Failure;
use crate::config::layers::Sources;
use crate::config::{self, Loaded};

#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ConfigArgs {
    /// TOML file with settings; may be left out when environment and flags give what is required.
    #[arg(long, short, value_name = "FILE", env = "BLOCKRAFT_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// One setting, over file and environment, such as raft.election_timeout=1s; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

impl ConfigArgs {
    /// Reads the settings from file, environment and flags. A failure has all that is wrong: exit code 2.
    pub(crate) fn load(&self) -> Result<Loaded, Failure> {
        self.load_with(environment())
    }

    /// As a process with this environment reads them.
    pub(crate) fn load_with(&self, env: Vec<(OsString, OsString)>) -> Result<Loaded, Failure> {
        let sources = Sources { file: self.config.clone(), env, set: self.set.clone(), ..Sources::default() };
        config::load(&sources).map_err(|complaints| Failure::usage(complaints.to_string()))
    }
}

/// The environment as it is, UTF-8 or not.
pub(crate) fn environment() -> Vec<(OsString, OsString)> {
    std::env::vars_os().collect()
}
