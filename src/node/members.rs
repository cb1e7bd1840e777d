//! Follows the membership: how far each member came, whether this node is one, and what is told of changes.

use std::time::Duration;

use crate::audit::history::{Event, History, Kind};
use crate::consensus::core::Stopped;
use crate::consensus::handle::Handle;
use crate::consensus::membership::Changer;
use crate::node::remembered::Remembered;
use crate::peer::Floor;
use crate::store;
use crate::telemetry::ticks;
use crate::types::NodeId;
use crate::types::member::Members;
use crate::types::member::Removed;

/// How often it is looked at the membership beside what raft tells of it: its own view and what it tells are
/// two watches, the second of which is ahead for a moment.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often it is written down how far others came, in looks: what a folder put back from a copy may lack
/// unseen where the leader changed meanwhile.
const FLOORS_EVERY: u32 = 4;

/// A member says that this node is none (safety rule 21d).
pub(super) fn told_not_member(raft: &Handle, remembered: &Remembered, history: &History, removed: Removed) {
    let status = raft.status();
    // Before raft has run once it knows no membership.
    if !status.is_started || !raft.removal().on_told(removed, &status.members, raft.node_id()) {
        return;
    }
    remembered.set_removed(Some(removed));
    let Removed { version, told_by } = removed;
    tracing::info!(version, told_by, "this node is in no membership up to this version");
    if status.members.nodes.contains_key(&raft.node_id()) {
        let event = Event::new(Kind::Membership, status.term, "removed").with("toldBy", told_by);
        history.record(Event { index: Some(version), ..event });
    }
}

/// Runs until raft stops.
pub(super) async fn run(
    raft: Handle,
    changer: Changer,
    remembered: Remembered,
    history: History,
    reader: store::Reader,
) -> Result<(), Stopped> {
    let mut changes = raft.role_changes();
    let mut looks = ticks::every(LOOK_EVERY);
    let mut n_looks = 0u32;
    // What was in force before this process is in the history of the one before.
    let mut seen = raft.committed_members();
    loop {
        let is_look = tokio::select! {
            _ = looks.tick() => true,
            changed = changes.next() => {
                changed?;
                false
            }
        };
        n_looks = n_looks.wrapping_add(is_look.into());
        let are_floors_due = is_look && n_looks.is_multiple_of(FLOORS_EVERY);
        let committed = raft.committed_members();
        // The first membership of all has version 0, as none has.
        let is_news = committed.version != seen.version || committed.nodes.len() != seen.nodes.len();
        if is_look && !are_floors_due && !is_news {
            continue;
        }
        let status = raft.status();
        if !status.is_running {
            return Err(Stopped("its core ended".into()));
        }
        if raft.removal().on_membership(&status.members, raft.node_id()) {
            remembered.set_removed(None);
            tracing::info!(version = status.members.version, "this node is a member again");
        }
        // The end of a change tells what it was.
        if is_news && !committed.joint {
            for (cause, node_id) in differences(&seen, &committed) {
                let event = Event::new(Kind::Membership, status.term, cause);
                let event = node_id.into_iter().fold(event, |event, id| event.with("nodeId", id));
                history.record(Event {
                    index: Some(committed.version),
                    leader_id: status.leader_id,
                    operation_id: changer.operation(committed.version),
                    ..event
                        .with("voters", Vec::from_iter(committed.voters.iter().copied()))
                        .with("learners", Vec::from_iter(committed.learners.iter().copied()))
                });
            }
            remembered.keep_floors(|id| status.members.nodes.contains_key(&id));
            seen = committed;
        }
        if are_floors_due {
            remembered.set_own_floor(own_floor(&raft, &reader));
            for (node_id, pos) in raft.held_by_others() {
                remembered.raise_floor(node_id, pos);
            }
        }
    }
}

/// What is committed and on this leader's own disk.
fn own_floor(raft: &Handle, reader: &store::Reader) -> Option<Floor> {
    let pos = reader.committed_before(raft.status().term)?;
    let is_held = raft.is_leader() && pos.index <= reader.log_stats().synced;
    is_held.then(|| Floor { node_id: raft.node_id(), incarnation: raft.config().incarnation, pos })
}

/// What became of whom between two memberships that are not joint.
fn differences(before: &Members, after: &Members) -> Vec<(&'static str, Option<NodeId>)> {
    if before.nodes.is_empty() {
        return vec![("founded", None)];
    }
    if before.joint {
        // This process began in the middle of a change.
        return vec![("completed", None)];
    }
    let mut found = Vec::new();
    for (id, member) in &after.nodes {
        match before.nodes.get(id) {
            None => found.push(("addLearner", Some(*id))),
            Some(old) if old != member => found.push(("updateMember", Some(*id))),
            Some(_) => {}
        }
        match (before.voters.contains(id), after.voters.contains(id)) {
            (false, true) => found.push(("promote", Some(*id))),
            (true, false) => found.push(("demote", Some(*id))),
            (true, true) | (false, false) => {}
        }
    }
    let gone = before.nodes.keys().filter(|id| !after.nodes.contains_key(id));
    found.extend(gone.map(|id| ("removeMember", Some(*id))));
    // A change that was cut short and taken back leaves everybody where he was.
    if found.is_empty() { vec![("unchanged", None)] } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::member::Member;

    fn members(voters: &[NodeId], learners: &[NodeId]) -> Members {
        let all = voters.iter().chain(learners);
        Members {
            version: 1,
            voters: voters.iter().copied().collect(),
            learners: learners.iter().copied().collect(),
            nodes: all.map(|id| (*id, Member { node_id: *id, ..Member::default() })).collect(),
            joint: false,
        }
    }

    #[test]
    fn each_change_is_told_by_what_differs() {
        let three = members(&[1, 2, 3], &[]);
        assert_eq!(differences(&Members::default(), &three), [("founded", None)]);
        let four = members(&[1, 2, 3], &[4]);
        assert_eq!(differences(&three, &four), [("addLearner", Some(4))]);
        assert_eq!(differences(&four, &members(&[1, 2, 3, 4], &[])), [("promote", Some(4))]);
        assert_eq!(differences(&members(&[1, 2, 3, 4], &[]), &four), [("demote", Some(4))]);
        assert_eq!(differences(&four, &three), [("removeMember", Some(4))]);
        assert_eq!(differences(&three, &members(&[1, 2], &[])), [("removeMember", Some(3))]);
        let mut moved = three.clone();
        moved.nodes.get_mut(&2).unwrap().peer_addr = "elsewhere:1".into();
        assert_eq!(differences(&three, &moved), [("updateMember", Some(2))]);
        // Two changes between two looks.
        assert_eq!(
            differences(&three, &members(&[1, 2], &[4])),
            [("addLearner", Some(4)), ("removeMember", Some(3))]
        );
        let joint = Members { joint: true, ..four };
        assert_eq!(differences(&joint, &three), [("completed", None)]);
    }
}
