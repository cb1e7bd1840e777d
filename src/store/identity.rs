//! Whose data folder this is, and that only one process uses it.
//!
//! `LOCK` is taken before anything else is touched; `IDENTITY` is written last when a folder is
//! made, so that a folder with one is whole.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::store::{OpenError, Who, files};
use crate::types::NodeId;

/// Version of the layout of the data folder that this binary writes; it reads the older ones. 2: payloads in files of their
/// own.
pub(crate) const FORMAT_VERSION: u32 = 2;
const IDENTITY: &str = "IDENTITY";
const LOCK: &str = "LOCK";

/// Who this node is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster_id: String,
    pub(crate) node_id: NodeId,
    /// 0 as founded; random after `recover`, so that nodes left behind do not come back (safety
    /// rule 10).
    pub(crate) epoch: u64,
    /// Made once with the folder: a wiped node is not the one that voted (safety rule 8).
    pub(crate) incarnation: [u8; 16],
    /// Version of the layout that the folder was found in.
    pub(crate) format_version: u32,
}

/// Held as long as the folder is used.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Makes the folder if need be. `Err` says whose it is when another process holds it.
    pub(crate) fn take(data_dir: &Path, who: &Who) -> Result<Self, OpenError> {
        if !data_dir.is_dir() {
            files::create_dir_synced(data_dir).map_err(|e| OpenError::io(data_dir, e))?;
        }
        let path = data_dir.join(LOCK);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = file.map_err(|e| OpenError::io(&path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held(data_dir, file)),
            Err(TryLockError::Error(e)) => return Err(OpenError::io(&path, e)),
        }
        let text =
            format!("process {}, node {} of cluster {}\n", std::process::id(), who.node_id, who.cluster_id);
        // What stands in it is for people: a full disk must not keep the node from starting.
        let _ = file.set_len(0).and_then(|()| file.write_all(text.as_bytes()));
        Ok(Self { _file: file })
    }
}

/// Held while a folder is looked at: no node starts meanwhile.
#[derive(Debug)]
pub(crate) struct Shared {
    _file: Option<File>,
}

impl Shared {
    /// Changes nothing. `Err` says whose the folder is when a process uses it.
    pub(crate) fn take(data_dir: &Path) -> Result<Self, OpenError> {
        let path = data_dir.join(LOCK);
        let file = match File::open(&path) {
            Ok(file) => file,
            // Nobody ever used it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self { _file: None }),
            Err(e) => return Err(OpenError::io(&path, e)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(Self { _file: Some(file) }),
            Err(TryLockError::WouldBlock) => Err(held(data_dir, file)),
            Err(TryLockError::Error(e)) => Err(OpenError::io(&path, e)),
        }
    }
}

/// Says who holds the lock.
fn held(data_dir: &Path, lock: File) -> OpenError {
    let mut by = String::new();
    let _ = lock.take(256).read_to_string(&mut by);
    let by = if by.trim().is_empty() { "another process".to_owned() } else { by.trim().to_owned() };
    OpenError::Locked { path: data_dir.to_owned(), by }
}

impl Identity {
    /// A new one for a folder that is being made.
    pub(crate) fn new(who: &Who) -> Self {
        Self {
            cluster_id: who.cluster_id.clone(),
            node_id: who.node_id,
            epoch: 0,
            incarnation: rand::random(),
            format_version: FORMAT_VERSION,
        }
    }

    /// `None`: the folder was never finished.
    pub(crate) fn read(data_dir: &Path) -> Result<Option<Self>, OpenError> {
        let path = path_of(data_dir);
        let Some(content) = files::read_optional(&path).map_err(|e| OpenError::io(&path, e))? else {
            return Ok(None);
        };
        let text = String::from_utf8(content).map_err(|_| OpenError::damage(&path, "it is not text"))?;
        let field = |key: &str| {
            text.lines()
                .filter_map(|l| l.split_once('='))
                .find(|(k, _)| k.trim() == key)
                .map(|(_, v)| v.trim())
                .ok_or_else(|| OpenError::damage(&path, format!("{key} is missing")))
        };
        let number = |key: &str| {
            field(key)?.parse::<u64>().map_err(|_| OpenError::damage(&path, format!("{key} is not a number")))
        };
        let version = number("format_version")?;
        if u64::from(FORMAT_VERSION) < version {
            return Err(OpenError::NewerFormat { path, version, known: FORMAT_VERSION });
        }
        let sum = field("checksum")?;
        let identity = Self {
            cluster_id: field("cluster_id")?.to_owned(),
            node_id: number("node_id")?,
            epoch: number("epoch")?,
            incarnation: from_hex(field("incarnation")?)
                .ok_or_else(|| OpenError::damage(&path, "incarnation is not 16 bytes of hex"))?,
            format_version: version as u32,
        };
        if sum != checksum(&identity.body(version)) {
            return Err(OpenError::damage(&path, "its checksum differs: it was changed by hand or damaged"));
        }
        Ok(Some(identity))
    }

    /// Durable on return.
    pub(crate) fn write(&self, data_dir: &Path) -> io::Result<()> {
        let body = self.body(u64::from(FORMAT_VERSION));
        let text = format!("{body}checksum = {}\n", checksum(&body));
        files::write_atomic(&path_of(data_dir), text.as_bytes())
    }

    /// Says that the folder is of this binary's format, where it is of an older one: those that do not know it refuse it
    /// from then on. Durable on return.
    pub(crate) fn upgrade(&self, data_dir: &Path) -> Result<(), OpenError> {
        if FORMAT_VERSION <= self.format_version {
            return Ok(());
        }
        let path = path_of(data_dir);
        self.write(data_dir).map_err(|e| match files::is_no_space(&e) {
            true => OpenError::DiskFull { path, what: e.to_string() },
            false => OpenError::io(&path, e),
        })
    }

    /// Compares it with what the settings say; `Err` names every difference.
    pub(crate) fn check(&self, data_dir: &Path, who: &Who) -> Result<(), OpenError> {
        let mut what = String::new();
        if self.cluster_id != who.cluster_id {
            let _ = write!(
                what,
                "cluster.id is {:?}, the folder belongs to {:?}",
                who.cluster_id, self.cluster_id
            );
        }
        if self.node_id != who.node_id {
            let and = if what.is_empty() { "" } else { "; " };
            let _ =
                write!(what, "{and}node.id is {}, the folder belongs to node {}", who.node_id, self.node_id);
        }
        if what.is_empty() { Ok(()) } else { Err(OpenError::Identity { path: path_of(data_dir), what }) }
    }

    fn body(&self, version: u64) -> String {
        let incarnation = format!("{:032x}", u128::from_be_bytes(self.incarnation));
        format!(
            "format_version = {version}\ncluster_id = {}\nnode_id = {}\nepoch = {}\nincarnation = {incarnation}\n",
            self.cluster_id, self.node_id, self.epoch
        )
    }
}

fn checksum(body: &str) -> String {
    format!("{:08x}", crc32fast::hash(body.as_bytes()))
}

fn path_of(data_dir: &Path) -> PathBuf {
    data_dir.join(IDENTITY)
}

fn from_hex(text: &str) -> Option<[u8; 16]> {
    let is_hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(u128::to_be_bytes)
}
