//! Settings of a node as dotted keys, written as TOML.

use std::{collections::BTreeMap, path::Path};

/// `{"raft.election_timeout": "1s"}`.
pub(crate) type Settings = BTreeMap<String, toml::Value>;

/// Settings from pairs, for calls that read like a file.
pub(crate) fn settings<const N: usize>(pairs: [(&str, toml::Value); N]) -> Settings {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Every block of a story is kept, so that all of them can be compared at its end.
pub(crate) fn long_history() -> Settings {
    settings([("state.history_blocks", toml::Value::Integer(10_000_000))])
}

/// Timings of a cluster whose leader is to stay, however busy the machine; for tests that no change of leader is
/// the matter of.
pub(crate) fn patient() -> Settings {
    settings([
        ("raft.heartbeat_timeout", "4s".into()),
        ("raft.election_timeout", "4s".into()),
        ("raft.leader_lease_timeout", "2s".into()),
    ])
}

/// A founding member, or whatever a test wants to pass for one.
#[derive(Debug, Clone)]
pub(crate) struct Founder {
    pub(crate) id: u64,
    pub(crate) peer: String,
    pub(crate) api: String,
}

/// The value of `cluster.peers`.
pub(crate) fn peers(founders: &[Founder]) -> toml::Value {
    let row = |f: &Founder| {
        let mut row = toml::Table::new();
        row.insert("id".into(), toml::Value::Integer(f.id as i64));
        row.insert("peer".into(), f.peer.clone().into());
        row.insert("api".into(), f.api.clone().into());
        toml::Value::Table(row)
    };
    toml::Value::Array(founders.iter().map(row).collect())
}

/// Writes the settings; every dot of a key opens a table.
pub(crate) fn write(path: &Path, settings: &Settings) {
    let mut root = toml::Table::new();
    for (key, value) in settings {
        let mut at = &mut root;
        let (tables, name) = key.rsplit_once('.').unwrap_or(("", key));
        for table in tables.split('.').filter(|t| !t.is_empty()) {
            at = at
                .entry(table)
                .or_insert_with(|| toml::Value::Table(toml::Table::new()))
                .as_table_mut()
                .expect("a key is not also a table");
        }
        at.insert(name.to_owned(), value.clone());
    }
    std::fs::write(path, toml::to_string(&root).expect("settings are TOML")).expect("writable");
}
