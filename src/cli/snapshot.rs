//! `snapshot restore`: the data folder of a new cluster, out of an export of another.

use std::path::{Path, PathBuf};

use crate::cli::config_args::ConfigArgs;
use crate::cli::exit::{self, Failure};
use crate::cli::out;
use crate::config::Settings;
use crate::node::founders;
use crate::store::Who;
use crate::store::offline::restore::{self, Restored};

const AFTER_HELP: &str = "\
Examples:
  blockraft ctl snapshot export -o chain.tar                       on a node of the old cluster
  blockraft snapshot restore chain.tar --config n1.toml            on every node of the new one
  blockraft node --config n1.toml

The settings name the new cluster: another cluster.id, and cluster.peers with all of its founding members, the
same on every node. node.data_dir must be empty. Give every member the same export; one that is started with an
empty folder gets its data from the others.

Exit codes: 0 made · 1 refused, the folder is as it was · 2 usage or config · 4 the folder refuses";

/// Make a new cluster's data folder from an export.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Snapshot {
    /// Restore an export into an empty data folder, for a cluster with another cluster.id.
    #[command(after_help = AFTER_HELP)]
    Restore {
        /// What `blockraft ctl snapshot export` wrote.
        file: PathBuf,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

pub(crate) fn run(command: Snapshot) -> u8 {
    let Snapshot::Restore { file, config } = command;
    exit::code(restore_from(&file, &config))
}

fn restore_from(file: &Path, config: &ConfigArgs) -> Result<u8, Failure> {
    let settings = config.load()?.settings;
    let who = Who { cluster_id: settings.cluster.id.clone(), node_id: settings.node.id };
    let list = founders::members_to_be(&settings);
    let hash = list.hash(&settings.cluster.id);
    let restored = restore::restore(file, &settings.node.data_dir, &who, &list.0, hash)
        .map_err(|e| Failure { code: e.exit_code(), message: Some(e.to_string()) })?;
    out::print(&told(&restored, &settings, list.0.len()))?;
    Ok(exit::DONE)
}

fn told(restored: &Restored, settings: &Settings, n_members: usize) -> String {
    let Restored { identity, manifest } = restored;
    let last = manifest.last_log_id.unwrap_or_default();
    let head = match manifest.height {
        0 => "no block yet".to_owned(),
        height => format!("up to block {height}"),
    };
    format!(
        "restored snapshot {} of cluster {} ({head}, index {}, term {})\ninto {} for node {} of cluster {}: \
         {n_members} members, epoch {}\n",
        manifest.id,
        manifest.cluster_id,
        last.index,
        last.term,
        settings.node.data_dir.display(),
        identity.node_id,
        identity.cluster_id,
        identity.epoch
    )
}
