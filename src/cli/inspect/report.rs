//! What `inspect` found, and how it is shown.

use std::path::Path;

use serde::Serialize;

use crate::cli::table::{Cell, Table, Tone};
use crate::cli::{exit, units};
use crate::store;
use crate::store::inspect::{Finding, Found, LogFound, StateFound};
use crate::types::member::Members;
use crate::types::proto::SnapshotManifest;
use crate::types::{Height, LogIndex, NodeId, Term};

/// Everything that is told of a folder. `None`: it is not there, as in a folder that was never used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    pub(crate) dir: String,
    pub(crate) identity: Option<Identity>,
    pub(crate) vote: Option<Vote>,
    pub(crate) log: Option<Log>,
    pub(crate) state: Option<State>,
    pub(crate) membership: Option<Membership>,
    /// Newest first.
    pub(crate) snapshots: Vec<Snapshot>,
    /// How the last process ended.
    pub(crate) last_exit: Option<String>,
    /// Every checksum was looked at.
    pub(crate) is_verified: bool,
    /// Nothing of what a node keeps is there.
    #[serde(skip)]
    pub(crate) is_blank: bool,
    pub(crate) problems: Vec<Problem>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Identity {
    pub(crate) cluster_id: String,
    pub(crate) node_id: NodeId,
    pub(crate) epoch: u64,
    /// Hex.
    pub(crate) incarnation: String,
    pub(crate) format_version: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Vote {
    pub(crate) term: Term,
    pub(crate) voted_for: Option<NodeId>,
    /// A quorum granted it.
    pub(crate) committed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Log {
    pub(crate) purged_index: LogIndex,
    pub(crate) last_index: LogIndex,
    pub(crate) last_term: Term,
    pub(crate) committed_index: Option<LogIndex>,
    /// The watermark: what was once synced.
    pub(crate) synced_index: Option<LogIndex>,
    pub(crate) entries: u64,
    pub(crate) size_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    pub(crate) applied_index: LogIndex,
    pub(crate) applied_term: Term,
    pub(crate) head: Option<Head>,
    pub(crate) oldest_height: Option<Height>,
    /// Hex.
    pub(crate) state_hash: Option<String>,
    pub(crate) size_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Head {
    pub(crate) height: Height,
    /// `0x` hex.
    pub(crate) hash: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Membership {
    pub(crate) version: LogIndex,
    pub(crate) voters: Vec<NodeId>,
    pub(crate) learners: Vec<NodeId>,
    pub(crate) joint: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    /// Unix milliseconds.
    pub(crate) created_at: u64,
    pub(crate) last_index: LogIndex,
    pub(crate) last_term: Term,
    pub(crate) height: Option<Height>,
    pub(crate) size_bytes: u64,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Problem {
    /// The file, below the folder.
    pub(crate) file: String,
    pub(crate) what: String,
    /// A node would refuse to start.
    pub(crate) refuses: bool,
}

/// The data folder refuses (design section 10).
const REFUSED: u8 = 4;

impl Report {
    pub(crate) fn new(dir: &Path, found: Found, is_verified: bool) -> Self {
        let membership = found.members().map(Membership::from);
        let is_blank = found.is_blank();
        Self {
            dir: dir.display().to_string(),
            identity: found.identity.map(Identity::from),
            vote: found.vote.map(|v| Vote {
                term: v.term,
                voted_for: Some(v.voted_for),
                committed: v.committed,
            }),
            log: found.log.map(Log::from),
            state: found.state.map(State::from),
            membership,
            snapshots: found.snapshots.iter().map(Snapshot::from).collect(),
            last_exit: found.last_exit.map(|e| format!("{}: {}", e.cause.label(), e.text)),
            is_verified,
            is_blank,
            problems: found.findings.into_iter().map(Problem::from).collect(),
        }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        if self.problems.iter().any(|p| p.refuses) {
            REFUSED
        } else if self.problems.is_empty() {
            exit::DONE
        } else {
            exit::FAILED
        }
    }

    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain fields are JSON") + "\n"
    }

    pub(crate) fn table(&self, is_colored: bool) -> String {
        let mut t = Table::pairs();
        t.pair("folder", Cell::new(self.dir.as_str(), Tone::Strong));
        let none = || Cell::new("none", Tone::Faint);
        t.pair("identity", self.identity.as_ref().map_or_else(none, identity));
        t.pair("vote", self.vote.as_ref().map_or_else(none, vote));
        t.pair("log", self.log.as_ref().map_or_else(none, log));
        t.pair("state", self.state.as_ref().map_or_else(none, state));
        t.pair("head", self.state.as_ref().and_then(|s| s.head.as_ref()).map_or_else(none, head));
        t.pair("members", self.membership.as_ref().map_or_else(none, membership));
        if let Some(last_exit) = &self.last_exit {
            t.pair("last exit", last_exit.as_str());
        }
        let mut text = t.render(is_colored);
        if !self.snapshots.is_empty() {
            text += "\n";
            text += &snapshots(&self.snapshots).render(is_colored);
        }
        text += "\n";
        text += &self.verdict(is_colored);
        text
    }

    fn verdict(&self, is_colored: bool) -> String {
        if !self.problems.is_empty() {
            let mut t = Table::new(&["FILE", "PROBLEM"]);
            for p in &self.problems {
                t.row([p.file.as_str().into(), Cell::new(p.what.as_str(), Tone::Bad)]);
            }
            return t.render(is_colored);
        }
        let text = if self.is_blank {
            "a node took this folder and has kept nothing in it yet"
        } else if self.is_verified {
            "every checksum holds"
        } else {
            "no problem seen; --verify reads everything"
        };
        format!("{}\n", Tone::Good.paint(text, is_colored))
    }
}

impl From<store::Identity> for Identity {
    fn from(i: store::Identity) -> Self {
        Self {
            cluster_id: i.cluster_id,
            node_id: i.node_id,
            epoch: i.epoch,
            incarnation: format!("{:032x}", u128::from_be_bytes(i.incarnation)),
            format_version: u64::from(i.format_version),
        }
    }
}

impl From<LogFound> for Log {
    fn from(l: LogFound) -> Self {
        let last = l.last.unwrap_or_default();
        Self {
            purged_index: l.purged.map_or(0, |p| p.index),
            last_index: last.index,
            last_term: last.term,
            committed_index: l.committed,
            synced_index: l.marked,
            entries: l.entries,
            size_bytes: l.file_bytes,
        }
    }
}

impl From<StateFound> for State {
    fn from(s: StateFound) -> Self {
        let applied = s.applied.unwrap_or_default();
        Self {
            applied_index: applied.index,
            applied_term: applied.term,
            head: s.head.map(|h| Head { height: h.height, hash: prefixed(&h.hash) }),
            oldest_height: s.oldest_height,
            state_hash: s.applied.is_some().then(|| hex(&s.state_hash)),
            size_bytes: s.file_bytes,
        }
    }
}

impl From<Members> for Membership {
    fn from(m: Members) -> Self {
        Self {
            version: m.version,
            voters: m.voters.into_iter().collect(),
            learners: m.learners.into_iter().collect(),
            joint: m.joint,
        }
    }
}

impl From<&SnapshotManifest> for Snapshot {
    fn from(m: &SnapshotManifest) -> Self {
        let last = m.last_log_id.unwrap_or_default();
        Self {
            id: m.id.clone(),
            created_at: m.created_at_ms,
            last_index: last.index,
            last_term: last.term,
            height: (m.height != 0).then_some(m.height),
            size_bytes: store::snapshot::size_of(m),
        }
    }
}

impl From<Finding> for Problem {
    fn from(f: Finding) -> Self {
        let file = if f.file.as_os_str().is_empty() { ".".into() } else { f.file.display().to_string() };
        Self { file, what: f.what, refuses: f.refuses }
    }
}

fn hex(bytes: &[u8]) -> String {
    hex_simd::encode_to_string(bytes, hex_simd::AsciiCase::Lower)
}

fn prefixed(bytes: &[u8]) -> String {
    format!("0x{}", hex(bytes))
}

fn identity(i: &Identity) -> Cell {
    format!(
        "node {} of {} · epoch {} · incarnation {} · format {}",
        i.node_id, i.cluster_id, i.epoch, i.incarnation, i.format_version
    )
    .into()
}

fn vote(v: &Vote) -> Cell {
    let whom = v.voted_for.map_or("nobody".into(), |id| format!("node {id}"));
    format!("term {} for {whom}{}", v.term, if v.committed { ", granted by a quorum" } else { "" }).into()
}

fn log(l: &Log) -> Cell {
    let or_none = |i: Option<LogIndex>| i.map_or("-".into(), |i| i.to_string());
    format!(
        "{} entries up to {} (term {}) · purged {} · committed {} · synced {} · {}",
        l.entries,
        l.last_index,
        l.last_term,
        l.purged_index,
        or_none(l.committed_index),
        or_none(l.synced_index),
        units::size(l.size_bytes)
    )
    .into()
}

fn state(s: &State) -> Cell {
    let hash = s.state_hash.as_deref().map_or(String::new(), |h| format!(" · hash {h}"));
    let oldest = s.oldest_height.map_or(String::new(), |h| format!(" · blocks from {h}"));
    format!(
        "applied {} (term {}){oldest}{hash} · {}",
        s.applied_index,
        s.applied_term,
        units::size(s.size_bytes)
    )
    .into()
}

fn head(h: &Head) -> Cell {
    format!("{}  {}", h.height, h.hash).into()
}

fn membership(m: &Membership) -> Cell {
    let ids = |ids: &[NodeId]| {
        if ids.is_empty() { "-".into() } else { ids.iter().map(u64::to_string).collect::<Vec<_>>().join(" ") }
    };
    let joint = if m.joint { ", changing" } else { "" };
    format!("voters {} · learners {} · version {}{joint}", ids(&m.voters), ids(&m.learners), m.version).into()
}

fn snapshots(snapshots: &[Snapshot]) -> Table {
    let mut t = Table::new(&["SNAPSHOT", "MADE AT", "INDEX", "TERM", "HEIGHT", "SIZE"]);
    for s in snapshots {
        t.row([
            s.id.as_str().into(),
            units::time_ms(s.created_at).into(),
            s.last_index.into(),
            s.last_term.into(),
            s.height.map_or("-".into(), |h| h.to_string()).into(),
            units::size(s.size_bytes).into(),
        ]);
    }
    t
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::exit::{Cause, LastExit};

    #[test]
    fn a_folder_in_which_nothing_is_kept_yet() {
        let report = Report::new(Path::new("/x"), Found::default(), false);
        assert_eq!(
            report.table(false),
            "folder    /x\nidentity  none\nvote      none\nlog       none\nstate     none\nhead      none\nmembers   none\n\na node took this folder and has kept nothing in it yet\n"
        );
        assert_eq!(report.exit_code(), exit::DONE);
        let ended = LastExit { cause: Cause::Clean, at_ms: 1, text: "stopped in order".into() };
        let mut told = Found::default();
        told.last_exit = Some(ended);
        let told = Report::new(Path::new("/x"), told, false);
        assert!(told.table(false).contains("no problem seen; --verify reads everything\n"));
    }

    #[test]
    fn a_used_folder_and_its_problems() {
        let mut report = Report {
            dir: "/x".into(),
            vote: Some(Vote { term: 3, voted_for: Some(2), committed: true }),
            log: Some(Log {
                purged_index: 300,
                last_index: 533,
                last_term: 3,
                entries: 233,
                size_bytes: 2_048,
                ..Default::default()
            }),
            state: Some(State {
                applied_index: 533,
                applied_term: 3,
                head: Some(Head { height: 530, hash: "0xaa".into() }),
                ..Default::default()
            }),
            snapshots: vec![Snapshot {
                id: "s1".into(),
                last_index: 500,
                last_term: 3,
                height: Some(497),
                ..Default::default()
            }],
            is_verified: true,
            ..Default::default()
        };
        let text = report.table(false);
        for want in [
            "vote      term 3 for node 2, granted by a quorum\n",
            "log       233 entries up to 533 (term 3) · purged 300 · committed - · synced - · 2.0 KiB\n",
            "head      530  0xaa\n",
            "s1        1970-01-01 00:00:00.000Z    500     3     497  0 B\n",
            "every checksum holds\n",
        ] {
            assert!(text.contains(want), "{want} in {text}");
        }
        report.problems.push(Problem { file: "s1/manifest".into(), what: "checksum".into(), refuses: false });
        assert_eq!(report.exit_code(), exit::FAILED);
        report.problems.push(Problem {
            file: "log".into(),
            what: "below its watermark".into(),
            refuses: true,
        });
        assert_eq!(report.exit_code(), REFUSED);
        assert!(report.table(false).contains("log          below its watermark\n"));
        let json: serde_json::Value = serde_json::from_str(&report.json()).expect("JSON");
        assert_eq!(json["log"]["lastIndex"], 533);
    }
}
