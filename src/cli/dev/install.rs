//! Snapshots on their way into nodes, in words.

use crate::cli::units;
use crate::client::wire::{Install, Status};

/// Stages as the API names them.
const INTERRUPTED: &str = "interrupted";
const VERIFYING: &str = "verifying";
const INSTALLING: &str = "installing";

/// How far a node is with the snapshot that comes in.
pub(crate) fn line(status: &Status) -> Option<String> {
    let install = status.install.as_ref()?;
    let doing = match install.stage.as_str() {
        INTERRUPTED => "waits for the rest of",
        VERIFYING => "verifies",
        INSTALLING => "installs",
        _ => "receives",
    };
    Some(format!("node {} {doing} a snapshot: {}", status.node_id, how_far(install)))
}

fn how_far(install: &Install) -> String {
    let percent = 100 * install.received_bytes / install.size_bytes.max(1);
    format!("{} of {} ({percent} %)", units::size(install.received_bytes), units::size(install.size_bytes))
}

/// What is worth telling of two looks at a node, one after the other.
pub(crate) fn change(before: Option<&Status>, now: &Status) -> Option<String> {
    let id = now.node_id;
    match (before.and_then(|s| s.install.as_ref()), &now.install) {
        (None, Some(install)) => {
            Some(format!("node {id} receives a snapshot of {}", units::size(install.size_bytes)))
        }
        (Some(was), Some(is)) if was.stage != INTERRUPTED && is.stage == INTERRUPTED => {
            Some(format!("a snapshot to node {id} broke off at {}", how_far(is)))
        }
        (Some(was), None) if was.last_index <= now.applied_index => {
            Some(format!("node {id} has installed a snapshot"))
        }
        (None | Some(_), None) | (Some(_), Some(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(stage: Option<&str>, received_mib: u64) -> Status {
        let install = stage.map(|stage| Install {
            snapshot_id: "s".into(),
            last_index: 900,
            stage: stage.into(),
            received_bytes: received_mib << 20,
            size_bytes: 8 << 20,
        });
        Status { node_id: 3, applied_index: 5, install, ..Default::default() }
    }

    #[test]
    fn a_snapshot_is_followed_from_its_first_piece_to_its_end() {
        let receiving = status(Some("receiving"), 2);
        assert_eq!(line(&status(None, 0)), None);
        assert_eq!(
            line(&receiving).as_deref(),
            Some("node 3 receives a snapshot: 2.0 MiB of 8.0 MiB (25 %)")
        );
        assert_eq!(
            change(Some(&status(None, 0)), &receiving).as_deref(),
            Some("node 3 receives a snapshot of 8.0 MiB")
        );
        assert_eq!(change(Some(&receiving), &status(Some("receiving"), 3)), None);
        let interrupted = status(Some(INTERRUPTED), 4);
        assert_eq!(
            change(Some(&receiving), &interrupted).as_deref(),
            Some("a snapshot to node 3 broke off at 4.0 MiB of 8.0 MiB (50 %)")
        );
        assert_eq!(
            line(&interrupted).as_deref(),
            Some("node 3 waits for the rest of a snapshot: 4.0 MiB of 8.0 MiB (50 %)")
        );
        assert_eq!(change(Some(&interrupted), &status(Some(VERIFYING), 8)), None);
        let installing = status(Some(INSTALLING), 8);
        let done = Status { applied_index: 900, ..status(None, 0) };
        assert_eq!(change(Some(&installing), &done).as_deref(), Some("node 3 has installed a snapshot"));
        assert_eq!(change(Some(&installing), &status(None, 0)), None, "another one comes, or none does");
    }
}
