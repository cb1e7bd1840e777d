//! The answers that `dev`, `bench` and `ctl` look into. Unknown fields are ignored, absent ones have their default.

use bytes::Bytes;
use serde::Deserialize;

use crate::types::{Height, LogIndex, NodeId, Term};

/// `raft_status`, as far as it is looked at.
#[derive(Debug, Clone, PartialEq, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Status {
    pub(crate) cluster_id: String,
    pub(crate) node_id: NodeId,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) role: String,
    pub(crate) term: Term,
    pub(crate) leader_id: Option<NodeId>,
    pub(crate) fence: Option<u64>,
    pub(crate) ready: bool,
    pub(crate) paused: bool,
    pub(crate) blockers: Vec<Blocker>,
    pub(crate) last_log_index: LogIndex,
    pub(crate) cluster_committed_index: LogIndex,
    pub(crate) applied_index: LogIndex,
    pub(crate) snapshot_index: LogIndex,
    pub(crate) head: Option<Head>,
    pub(crate) membership: Membership,
    pub(crate) install: Option<Install>,
    pub(crate) uptime_ms: u64,
}

impl Status {
    pub(crate) fn height(&self) -> Option<Height> {
        self.head.as_ref().map(|h| h.height)
    }
}

/// A snapshot on its way into a node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Install {
    pub(crate) snapshot_id: String,
    pub(crate) last_index: LogIndex,
    pub(crate) stage: String,
    pub(crate) received_bytes: u64,
    pub(crate) size_bytes: u64,
}

/// Why a node is not ready.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Blocker {
    pub(crate) check: String,
    pub(crate) since_ms: u64,
    pub(crate) hint: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Head {
    pub(crate) height: Height,
    pub(crate) hash: String,
    /// Nanoseconds in decimal.
    #[serde(deserialize_with = "text_or_number")]
    pub(crate) timestamp: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
#[serde(default)]
pub(crate) struct Membership {
    pub(crate) version: LogIndex,
    pub(crate) voters: Vec<NodeId>,
    pub(crate) learners: Vec<NodeId>,
    pub(crate) joint: bool,
}

/// `raft_leader`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Leader {
    pub(crate) leader_id: Option<NodeId>,
    /// `None` too while the leader's member record has no API address.
    #[serde(deserialize_with = "text_or_none")]
    pub(crate) leader_api: Option<String>,
    pub(crate) term: Term,
    pub(crate) fence: Option<u64>,
    pub(crate) is_self: bool,
    pub(crate) ready: Option<bool>,
}

/// `raft_members`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
#[serde(default)]
pub(crate) struct Members {
    pub(crate) version: LogIndex,
    pub(crate) voters: Vec<Member>,
    pub(crate) learners: Vec<Member>,
}

impl Members {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Member> {
        self.voters.iter().chain(&self.learners)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Member {
    pub(crate) node_id: NodeId,
    pub(crate) name: String,
    pub(crate) peer_addr: String,
    /// `None`: it was added without one.
    #[serde(deserialize_with = "text_or_none")]
    pub(crate) api_addr: Option<String>,
}

/// What `block_propose`, `POST /v1/blocks` and a line of the stream answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Acked {
    pub(crate) height: Height,
    pub(crate) term: Term,
    pub(crate) index: LogIndex,
    pub(crate) duplicate: bool,
}

/// A text that is not empty.
fn text_or_none<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.filter(|text| !text.is_empty()))
}

/// A 64-bit integer as a number or as decimal text.
fn text_or_number<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    match Either::deserialize(from)? {
        Either::Number(n) => Ok(n),
        Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

/// Bytes from `0x` hex.
pub(crate) fn bytes(hex: &str) -> Option<Bytes> {
    let digits = hex.strip_prefix("0x")?;
    hex_simd::decode_to_vec(digits).ok().map(Bytes::from)
}

/// Bytes as `0x` hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    format!("0x{}", hex_simd::encode_to_string(bytes, hex_simd::AsciiCase::Lower))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_there_and_back() {
        assert_eq!(bytes("0x00fF").as_deref(), Some(&[0, 255][..]));
        assert_eq!(bytes("0x"), Some(Bytes::new()));
        assert_eq!((bytes("00"), bytes("0x0"), bytes("0xzz")), (None, None, None));
        assert_eq!(hex(&[0, 255]), "0x00ff");
    }

    #[test]
    fn a_member_without_an_api_address() {
        let members: Members = serde_json::from_str(
            r#"{"version":9,"voters":[{"nodeId":1,"name":"","peerAddr":"a:1","apiAddr":"a:2"}],
                "learners":[{"nodeId":4,"apiAddr":null},{"nodeId":5,"apiAddr":""},{"nodeId":6}]}"#,
        )
        .expect("members");
        let apis: Vec<_> = members.all().map(|m| (m.node_id, m.api_addr.as_deref())).collect();
        assert_eq!(apis, [(1, Some("a:2")), (4, None), (5, None), (6, None)]);
        for api in ["null", "\"\""] {
            let leader: Leader =
                serde_json::from_str(&format!(r#"{{"leaderId":4,"leaderApi":{api}}}"#)).expect("a leader");
            assert_eq!((leader.leader_id, leader.leader_api), (Some(4), None), "{api}");
        }
    }

    #[test]
    fn a_status_without_a_head_and_with_more_fields_than_we_know() {
        let s: Status = serde_json::from_str(
            r#"{"nodeId":2,"role":"follower","term":3,"leaderId":null,"head":null,"fence":null,"news":[1]}"#,
        )
        .expect("a status");
        assert_eq!((s.node_id, s.leader_id, s.height()), (2, None, None));
        let s: Status =
            serde_json::from_str(r#"{"head":{"height":7,"hash":"0x00","timestamp":"1700000000000000001"}}"#)
                .expect("a status");
        assert_eq!(s.head.expect("a head").timestamp, 1_700_000_000_000_000_001);
    }
}
