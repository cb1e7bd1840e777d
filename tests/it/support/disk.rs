//! Disks whose syncs fail or hang when a test says so: a library that is loaded before a node (`scripts/failsync.c`).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::node::Node;

/// What happens to every sync of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `EIO`, of the log alone: what was given to the disk is lost.
    Fails,
    /// It returns once the fault is over.
    Hangs,
}

impl Fault {
    const ALL: [Self; 2] = [Self::Fails, Self::Hangs];

    /// The variable that names the file which brings it about.
    fn variable(self) -> &'static str {
        match self {
            Self::Fails => "FAILSYNC",
            Self::Hangs => "HANGSYNC",
        }
    }

    fn trigger(self, node: &Node) -> PathBuf {
        node.log.with_extension(self.variable().to_lowercase())
    }
}

/// Builds the library into a folder, with the compiler that also links the tests.
#[track_caller]
pub(crate) fn build(dir: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/failsync.c");
    let library = dir.join("failsync.so");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .output()
        .expect("a C compiler is there: it links the tests");
    assert!(built.status.success(), "cc: {}", String::from_utf8_lossy(&built.stderr));
    library
}

/// From its next start on the node's disk obeys.
pub(crate) fn prepare(node: &mut Node) {
    let dir = node.config.parent().expect("it has one").to_owned();
    node.env.push(("LD_PRELOAD", build(&dir)));
    for fault in Fault::ALL {
        node.env.push((fault.variable(), fault.trigger(node)));
    }
}

/// From now on.
pub(crate) fn begin(node: &Node, fault: Fault) {
    fs::write(fault.trigger(node), b"").expect("writable");
}

/// From now on syncs fail where a path has this part.
pub(crate) fn begin_failing(node: &Node, part: &str) {
    fs::write(Fault::Fails.trigger(node), part).expect("writable");
}

/// The disk works again.
pub(crate) fn mend(node: &Node) {
    for fault in Fault::ALL {
        // It may not have been there.
        let _ = fs::remove_file(fault.trigger(node));
    }
}
