//! The data folder of a stopped node: what lies in it, and how a test damages it.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::ensure;

use crate::support::{
    block::Block,
    cluster::Cluster,
    config::settings,
    stream::fill,
    wait::{SOON, wait_for},
};

/// Exit code of design 10: the data folder refuses, a restart will not help.
pub(crate) const FOLDER: i32 = 4;
/// Blocks in the folder of each test.
pub(crate) const BLOCKS: u64 = 200;

/// A stopped node alone with blocks in its folder. With `snapshots` its log is short.
pub(crate) fn stopped_node(snapshots: bool) -> Cluster {
    let threshold = toml::Value::Integer(if snapshots { 50 } else { 1_000_000 });
    let trailing = toml::Value::Integer(10);
    let mut cluster =
        Cluster::new(1, settings([("snapshot.threshold", threshold), ("snapshot.trailing_logs", trailing)]));
    cluster.start();
    let blocks: Vec<Block> = (1..=BLOCKS).map(|h| Block::sized(h, "kept", 1_000)).collect();
    fill(&cluster.node(1).api.clone(), &blocks);
    if snapshots {
        wait_for("a snapshot is built", SOON, || {
            let index = cluster.node(1).status()?["snapshotIndex"].as_u64().unwrap_or(0);
            ensure!(0 < index, "none yet");
            Ok(())
        });
    }
    wait_for_watermark(&cluster.node(1).data_dir);
    // kill -9, not a stop: what counts is in the WAL, as after a power loss.
    cluster.node_mut(1).kill();
    cluster
}

/// The watermark follows the log a little behind it: what it lags nobody can miss.
pub(crate) fn wait_for_watermark(data_dir: &Path) {
    /// Looks without a change: longer together than it may lag.
    const QUIET: u32 = 10;
    let path = data_dir.join("WATERMARK");
    let (mut last, mut n_same) = (Vec::new(), 0);
    wait_for("the watermark has caught up", SOON, || {
        let now = fs::read(&path)?;
        n_same = if now == last { n_same + 1 } else { 0 };
        last = now;
        ensure!(QUIET <= n_same, "it moves");
        Ok(())
    });
}

/// Starts it again; all blocks are there.
#[track_caller]
pub(crate) fn assert_whole(cluster: &mut Cluster) {
    cluster.node_mut(1).start();
    cluster.leader();
    let rows = cluster.node(1).range(1, BLOCKS).expect("it answers");
    assert_eq!(rows.len() as u64, BLOCKS, "blocks after the restart");
    for (height, row) in (1..).zip(&rows) {
        assert_eq!(row["block"]["hash"], Block::sized(height, "kept", 1_000).hash_hex());
    }
}

/// The files of a folder with an ending, largest first.
pub(crate) fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|e| e.expect("readable").path())
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .collect();
    files.sort_by_key(|path| std::cmp::Reverse(path.metadata().map_or(0, |m| m.len())));
    files
}

/// The state in force: a rebuilt one has another name.
pub(crate) fn state_dir(data_dir: &Path) -> PathBuf {
    let entries = fs::read_dir(data_dir).expect("readable");
    let is_state = |path: &PathBuf| path.join("CURRENT").exists() && !path.ends_with("log");
    entries.map(|e| e.expect("readable").path()).find(is_state).expect("a state is there")
}

/// Every file below a folder.
pub(crate) fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            out.extend(walk(&path));
        } else {
            out.push(path);
        }
    }
    out.sort();
    out
}

/// Those with more than a header and a few marks.
pub(crate) fn large_files(dir: &Path) -> Vec<PathBuf> {
    let files: Vec<PathBuf> =
        walk(dir).into_iter().filter(|p| 1_000 < p.metadata().map_or(0, |m| m.len())).collect();
    assert!(!files.is_empty(), "nothing in {}", dir.display());
    files
}

/// The last byte of a file that is not zero: files that grow in large steps end in zeros.
pub(crate) fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1)
}

/// A copy of a folder of a node that is stopped.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("writable");
    for entry in fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable").path();
        let target = to.join(entry.file_name().expect("it has one"));
        if entry.is_dir() {
            copy_dir(&entry, &target);
        } else {
            fs::copy(&entry, &target).expect("readable");
        }
    }
}

/// Another content under the same name. A file of its own: those of `state/` and of its snapshots are
/// links to the same ones, and the damage is meant for one of them.
pub(crate) fn replace(path: &Path, bytes: &[u8]) {
    let copy = path.with_extension("damaged-copy");
    fs::write(&copy, bytes).expect("writable");
    fs::rename(&copy, path).expect("writable");
}

pub(crate) fn cut(path: &Path, keep: usize) {
    let mut bytes = fs::read(path).expect("readable");
    bytes.truncate(keep);
    replace(path, &bytes);
}

pub(crate) fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("readable");
    bytes[at] ^= 0x40;
    replace(path, &bytes);
}

/// A file or folder as [`listing`] tells it from another: its size, and its last change in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    path: PathBuf,
    size: u64,
    changed_ns: i128,
}

impl Listed {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Everything below a folder and the folder itself, with sizes and times of the last change.
pub(crate) fn listing(dir: &Path) -> Vec<Listed> {
    let mut out = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(path) = open.pop() {
        // Of a node that runs it may be gone by now.
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).expect("readable").map(|e| e.expect("readable").path()));
        }
        let changed_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        out.push(Listed { path, size: meta.len(), changed_ns });
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    out
}
