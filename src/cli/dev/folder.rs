//! The folder of a demo cluster: what it is, the nodes' settings, their data and logs.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::cli::{dev::ports::Addresses, exit::Failure};
use crate::store::OpenError;
use crate::store::identity;
use crate::types::NodeId;

/// What tells our folders from others, and what does not change over the life of one.
const MARK: &str = "dev.toml";
const LOCK: &str = "dev.lock";
const NODES: u16 = 3;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    cluster_id: String,
    nodes: u16,
}

/// Owned by the one `dev` that uses it. A temporary one is removed when dropped.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    is_temporary: bool,
    mark: Mark,
    /// Held as long as the folder is used.
    _lock: File,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.is_temporary {
            // What is left of a temporary folder harms nobody.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

impl Folder {
    pub(crate) fn open(dir: Option<&Path>, nodes: Option<u16>) -> Result<Self, Failure> {
        let (path, is_temporary) = match dir {
            Some(dir) => (dir.to_path_buf(), false),
            None => (std::env::temp_dir().join(format!("blockraft-dev-{:08x}", rand::random::<u32>())), true),
        };
        let wrong = |e: &dyn std::fmt::Display| Failure::failed(format!("{}: {e}", path.display()));
        if path.to_str().is_none() {
            return Err(wrong(&"its name is not UTF-8"));
        }
        fs::DirBuilder::new().recursive(!is_temporary).mode(0o700).create(&path).map_err(|e| wrong(&e))?;
        // Settings of the nodes hold it as it is written, whatever folder they run in.
        let path = path.canonicalize().map_err(|e| wrong(&e))?;
        // First: a folder of somebody else is left as it is.
        judge(&path, nodes)?;
        let lock = lock(&path)?;
        // Whoever held it until then may have made the folder.
        let mark = match judge(&path, nodes)? {
            Some(mark) => mark,
            None => make(&path, nodes)?,
        };
        Ok(Self { path, is_temporary, mark, _lock: lock })
    }

    /// A temporary one stays from then on.
    pub(crate) fn keep(&mut self) {
        self.is_temporary = false;
    }

    /// Processes that use a node's data, in words: once ours have ended, nodes that somebody started by hand.
    pub(crate) fn users(&self) -> Vec<(NodeId, String)> {
        (1..=NodeId::from(self.mark.nodes))
            .filter_map(|node_id| match identity::Shared::take(&self.data_of(node_id)) {
                Err(OpenError::Locked { by, .. }) => Some((node_id, by)),
                // Nobody uses what is not there or cannot be read.
                Ok(_) | Err(_) => None,
            })
            .collect()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn is_temporary(&self) -> bool {
        self.is_temporary
    }

    pub(crate) fn cluster_id(&self) -> &str {
        &self.mark.cluster_id
    }

    pub(crate) fn n_nodes(&self) -> u16 {
        self.mark.nodes
    }

    pub(crate) fn config_of(&self, node_id: u64) -> PathBuf {
        self.path.join(format!("n{node_id}.toml"))
    }

    fn data_of(&self, node_id: u64) -> PathBuf {
        self.path.join(format!("n{node_id}"))
    }

    pub(crate) fn log_of(&self, node_id: u64) -> PathBuf {
        self.path.join(format!("n{node_id}.log"))
    }

    /// Writes every node's settings anew: the ports may be others than the last time.
    pub(crate) fn write_configs(&self, addresses: &[Addresses]) -> io::Result<()> {
        for (node_id, _) in (1..).zip(addresses) {
            let data_dir = self.data_of(node_id);
            let text = toml::to_string(&settings(&self.mark.cluster_id, node_id, &data_dir, addresses))
                .map_err(io::Error::other)?;
            let head = "# Written by `blockraft dev` at each start.\n\n";
            fs::write(self.config_of(node_id), format!("{head}{text}"))?;
        }
        Ok(())
    }
}

fn lock(path: &Path) -> Result<File, Failure> {
    let file = path.join(LOCK);
    let wrong = |e: &io::Error| Failure::failed(format!("{}: {e}", file.display()));
    let lock =
        OpenOptions::new().write(true).create(true).truncate(false).open(&file).map_err(|e| wrong(&e))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            Err(Failure::failed(format!("another `blockraft dev` uses {}", path.display())))
        }
        Err(TryLockError::Error(e)) => Err(wrong(&e)),
    }
}

/// Reads what the folder is, and changes nothing; `None`: it is empty.
fn judge(path: &Path, nodes: Option<u16>) -> Result<Option<Mark>, Failure> {
    let file = path.join(MARK);
    let wrong = |e: &dyn std::fmt::Display| Failure::failed(format!("{}: {e}", file.display()));
    match fs::read_to_string(&file) {
        Ok(text) => {
            let mark: Mark = toml::from_str(&text).map_err(|e| wrong(&e.message().to_string()))?;
            match nodes {
                Some(n) if n != mark.nodes => Err(Failure::usage(format!(
                    "{} holds a cluster of {} nodes: leave --nodes out, or take another folder",
                    path.display(),
                    mark.nodes
                ))),
                Some(_) | None => Ok(Some(mark)),
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // A start that was cut short leaves an empty lock file.
            let is_ours = |f: fs::DirEntry| f.file_name() == LOCK && f.metadata().is_ok_and(|m| m.len() == 0);
            if fs::read_dir(path).map_err(|e| wrong(&e))?.flatten().all(is_ours) {
                return Ok(None);
            }
            Err(Failure::failed(format!(
                "{} is not empty, and was not made by `blockraft dev`",
                path.display()
            )))
        }
        Err(e) => Err(wrong(&e)),
    }
}

fn make(path: &Path, nodes: Option<u16>) -> Result<Mark, Failure> {
    let file = path.join(MARK);
    let wrong = |e: &dyn std::fmt::Display| Failure::failed(format!("{}: {e}", file.display()));
    let cluster_id = format!("dev-{:08x}", rand::random::<u32>());
    let mark = Mark { cluster_id, nodes: nodes.unwrap_or(NODES) };
    let text = toml::to_string(&mark).map_err(|e| wrong(&e))?;
    fs::write(&file, text).map_err(|e| wrong(&e))?;
    Ok(mark)
}

fn settings(cluster_id: &str, node_id: u64, data_dir: &Path, addresses: &[Addresses]) -> Table {
    let text = |s: String| Value::String(s);
    let table = |pairs: Vec<(&str, Value)>| {
        Value::Table(pairs.into_iter().map(|(k, v)| (k.to_string(), v)).collect::<Table>())
    };
    let peers = (1i64..)
        .zip(addresses)
        .map(|(id, a)| {
            let (peer, api) = (text(a.peer.to_string()), text(a.api.to_string()));
            table(vec![("id", Value::Integer(id)), ("peer", peer), ("api", api)])
        })
        .collect();
    let own = addresses[node_id as usize - 1];
    let mut settings = Table::new();
    let mut put = |name: &str, pairs| settings.insert(name.to_string(), table(pairs));
    put("cluster", vec![("id", text(cluster_id.into())), ("peers", Value::Array(peers))]);
    let id = Value::Integer(node_id as i64);
    put("node", vec![("id", id), ("data_dir", text(data_dir.display().to_string()))]);
    put("peer", vec![("listen", text(own.peer.to_string()))]);
    put("api", vec![("listen", text(own.api.to_string()))]);
    // For people: the log goes to a file, where `auto` would write JSON.
    put("telemetry", vec![("log_format", text("human".into()))]);
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{
        dev::ports,
        exit::{FAILED, USAGE},
    };
    use crate::store::Who;

    #[test]
    fn a_folder_stays_what_it_is() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("deep/demo");
        let folder = Folder::open(Some(&path), Some(5)).expect("a new one");
        let id = folder.cluster_id().to_string();
        assert_eq!(Folder::open(Some(&path), None).expect_err("in use").code, FAILED);
        drop(folder);
        assert_eq!(Folder::open(Some(&path), Some(3)).expect_err("five nodes").code, USAGE);
        let folder = Folder::open(Some(&path), None).expect("again");
        assert_eq!((folder.cluster_id(), folder.n_nodes()), (id.as_str(), 5));
    }

    #[test]
    fn a_foreign_folder_is_left_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let names = || fs::read_dir(dir.path()).expect("readable").flatten().collect::<Vec<_>>().len();
        for (name, told) in
            [("thesis.txt", "not empty"), ("dev.lock", "not empty"), ("dev.toml", "cluster_id")]
        {
            let file = dir.path().join(name);
            fs::write(&file, "x = 1").expect("written");
            let failure = Folder::open(Some(dir.path()), None).expect_err("foreign");
            let message = failure.message.expect("a message");
            assert!(message.contains(told), "{name}: {message}");
            assert_eq!((names(), fs::read_to_string(&file).expect("there")), (1, "x = 1".into()), "{name}");
            fs::remove_file(&file).expect("there");
        }
    }

    #[test]
    fn a_node_that_somebody_started_by_hand_is_told_by_its_process() {
        let mut folder = Folder::open(None, Some(2)).expect("a temporary one");
        assert!(folder.users().is_empty());
        let who = Who { cluster_id: folder.cluster_id().into(), node_id: 2 };
        let lock = identity::Lock::take(&folder.data_of(2), &who).expect("nobody holds it");
        let users = folder.users();
        assert!(matches!(&users[..], [(2, by)] if by.contains(&format!("process {}", std::process::id()))));
        drop(lock);
        assert!(folder.users().is_empty());
        folder.keep();
        let path = folder.path().to_path_buf();
        drop(folder);
        assert!(path.is_dir());
        fs::remove_dir_all(path).expect("there");
    }

    #[test]
    fn a_temporary_folder_is_removed() {
        let folder = Folder::open(None, None).expect("a temporary one");
        let path = folder.path().to_path_buf();
        assert!(path.is_dir() && folder.is_temporary() && folder.n_nodes() == 3);
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn settings_name_all_founders() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = Folder::open(Some(dir.path()), Some(2)).expect("a new one");
        folder.write_configs(&ports::addresses(7401, 2).expect("in range")).expect("written");
        let text = std::fs::read_to_string(folder.config_of(2)).expect("settings");
        let table: Table = text.parse().expect("TOML");
        assert_eq!(table["node"]["id"].as_integer(), Some(2));
        assert_eq!(table["api"]["listen"].as_str(), Some("127.0.0.1:7402"));
        let peers = table["cluster"]["peers"].as_array().expect("a list");
        assert_eq!(peers.len(), 2);
        assert_eq!(peers[0]["peer"].as_str(), Some("127.0.0.1:7501"));
    }
}
