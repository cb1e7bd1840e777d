//! Commands whose names are fixed and which this version does not have.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::{exit, out};

/// Make a new cluster's data folder from an export.
#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Restore an export into an empty data folder, for a cluster with another cluster.id (not available in this version).
    Restore {
        /// What `blockraft ctl snapshot export` wrote.
        file: PathBuf,
        /// Settings of the node whose folder is made.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// Bring a cluster back that lost its quorum for good: offline, explicit, audited (not available in this version).
#[derive(Debug, Args)]
pub(crate) struct Recover {
    /// Look at the stopped nodes' folders and say what can be saved.
    #[arg(long, value_name = "DIR", num_args = 1.., required_unless_present = "apply", conflicts_with = "apply")]
    plan: Vec<PathBuf>,
    /// Carry the plan out on this folder.
    #[arg(long, value_name = "DIR")]
    apply: Option<PathBuf>,
    /// The nodes that stay members.
    #[arg(long, value_name = "ID,…", value_delimiter = ',', requires = "apply")]
    keep: Vec<u64>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

pub(crate) fn run() -> u8 {
    out::complain("not available in this version");
    exit::FAILED
}
