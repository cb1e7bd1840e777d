//! A store in a temporary folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prometheus::Registry;
use tempfile::TempDir;

use crate::instants::Instants;
use crate::store::{self, Config, OpenError, Opened, Who};

pub(super) fn who() -> Who {
    Who { cluster_id: "c".into(), node_id: 1 }
}

pub(super) fn config(data_dir: &Path) -> Config {
    Config { data_dir: data_dir.to_owned(), min_free: 0, snapshot_retain: 3 }
}

pub(super) fn open_as(data_dir: &Path, who: &Who) -> Result<Opened, OpenError> {
    let registry = Registry::new();
    let instants = Arc::new(Instants::new(&registry).expect("a fresh registry takes everything"));
    store::open(&config(data_dir), who, &registry, instants)
}

pub(super) fn open(data_dir: &Path) -> Opened {
    open_as(data_dir, &who()).expect("the folder is fine")
}

/// A folder of its own for one test.
pub(super) fn folder() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("data");
    (dir, path)
}
