//! One value for each key, and where it comes from; and the typed settings made of them.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use crate::config::layers::{self, Source, Sources};
use crate::config::{
    Api, Cluster, Complaint, Executor, Feed, Leadership, Metrics, Node, Peer, Raft, Settings, Snapshot,
    Store, Telemetry, address, keys,
};
use crate::telemetry::log::Config as LogConfig;
use crate::telemetry::trace::Config as TraceConfig;
use crate::types::member::Member;
use crate::types::setting::{Fallback, Given, Key, Value, default_name};
use crate::types::settings::{self, ClusterSettings};

/// `raft.shutdown_timeout` and `executor.sync_timeout` in `raft.send_timeout`s.
const SENDS: u32 = 5;

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) value: Value,
    pub(crate) source: Source,
}

/// What is known of each key. A key whose value is wrong has none, and neither has one that is off.
#[derive(Debug, Clone, Default)]
pub(crate) struct Values {
    entries: BTreeMap<&'static str, Entry>,
}

impl Values {
    /// Everything that was given and obeys its own key's rule, and a complaint for everything else.
    pub(crate) fn read(sources: &Sources) -> (Self, Vec<Complaint>) {
        let layers::Layers { mut given, mut complaints } = layers::read(sources);
        let mut values = Self::default();
        // What a syntax error hides is not missing.
        let is_whole = complaints.iter().all(|c| c.source.is_some());
        for key in keys::all() {
            match given.remove(key.name) {
                Some((given, source)) => match values.put(key, &given, source.clone()) {
                    Ok(()) => {}
                    Err(rule) => {
                        complaints.push(Complaint::at(key.name, Some(given.to_toml()), rule, source))
                    }
                },
                None => match key.fallback {
                    Fallback::Value(toml) => values
                        .put(key, &layers::parse(toml), Source::Default)
                        .expect("a test reads every default"),
                    Fallback::Required { .. } if is_whole => complaints.push(missing(key)),
                    Fallback::Required { .. } | Fallback::Absent { .. } | Fallback::Derived { .. } => {}
                },
            }
        }
        values.derive(&complaints);
        (values, complaints)
    }

    fn put(&mut self, key: &'static Key, given: &Given, source: Source) -> Result<(), String> {
        let value = key.read(given)?;
        if settings::keys::KEYS.iter().any(|k| k.name == key.name) {
            ClusterSettings::default().set(key.name, value.clone())?;
        }
        self.entries.insert(key.name, Entry { value, source });
        Ok(())
    }

    /// Fills in what follows from other settings, except where a wrong value was given.
    fn derive(&mut self, complaints: &[Complaint]) {
        let sends = self.duration("raft.send_timeout").map(|t| Value::Duration(t * SENDS));
        let name = self.integer("node.id").map(|id| Value::Text(default_name(id)));
        for (key, value) in [
            ("node.name", name),
            ("peer.advertise", self.get("peer.listen").cloned()),
            ("api.advertise", self.get("api.listen").cloned()),
            ("raft.shutdown_timeout", sends.clone()),
            ("executor.sync_timeout", sends),
        ] {
            let is_wrong = complaints.iter().any(|c| c.problem.key == key);
            if let Some(value) = value.filter(|_| !is_wrong && !self.entries.contains_key(key)) {
                self.entries.insert(key, Entry { value, source: Source::Default });
            }
        }
    }

    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        debug_assert!(keys::find(key).is_some(), "{key} is no key");
        self.entries.get(key)
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.entry(key).map(|e| &e.value)
    }

    pub(crate) fn duration(&self, key: &str) -> Option<Duration> {
        match self.get(key)? {
            Value::Duration(value) => Some(*value),
            value => unreachable!("{key} is no duration: {value:?}"),
        }
    }

    /// Of an integer or a size.
    pub(crate) fn integer(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Value::Integer(value) | Value::Size(value) => Some(*value),
            value => unreachable!("{key} is no integer: {value:?}"),
        }
    }

    pub(crate) fn is_on(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(value) => Some(*value),
            value => unreachable!("{key} is no bool: {value:?}"),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::Text(value) => Some(value),
            value => unreachable!("{key} is no text: {value:?}"),
        }
    }

    pub(crate) fn listen(&self, key: &str) -> Option<SocketAddr> {
        self.text(key).map(|text| address::listen(text).expect("the key's kind says so"))
    }

    pub(crate) fn members(&self) -> &[Member] {
        match self.get("cluster.peers") {
            Some(Value::Members(list)) => list,
            None => &[],
            Some(value) => unreachable!("cluster.peers is no list of members: {value:?}"),
        }
    }

    fn list(&self, key: &str) -> Vec<String> {
        match self.get(key) {
            Some(Value::List(list)) => list.clone(),
            value => unreachable!("{key} is no list: {value:?}"),
        }
    }

    /// # Panics
    /// When there was a complaint.
    pub(crate) fn to_settings(&self) -> Settings {
        const WHY: &str = "without a complaint every key that must have a value has one";
        let duration = |key| self.duration(key).expect(WHY);
        let integer = |key| self.integer(key).expect(WHY);
        let text = |key| self.text(key).expect(WHY).to_owned();
        Settings {
            cluster: Cluster { id: text("cluster.id"), peers: self.members().to_vec() },
            node: Node {
                id: integer("node.id"),
                name: text("node.name"),
                data_dir: PathBuf::from(text("node.data_dir")),
            },
            peer: Peer {
                listen: self.listen("peer.listen").expect(WHY),
                advertise: text("peer.advertise"),
                insecure: self.is_on("peer.insecure").expect(WHY),
            },
            api: self.to_api(),
            metrics: Metrics { listen: self.listen("metrics.listen") },
            raft: Raft {
                heartbeat_interval: duration("raft.heartbeat_interval"),
                heartbeat_timeout: duration("raft.heartbeat_timeout"),
                election_timeout: duration("raft.election_timeout"),
                leader_lease_timeout: duration("raft.leader_lease_timeout"),
                send_timeout: duration("raft.send_timeout"),
                shutdown_timeout: duration("raft.shutdown_timeout"),
                resign_timeout: duration("raft.resign_timeout"),
            },
            leadership: Leadership {
                stall_after: duration("leadership.stall_after"),
                last_resort_after: duration("leadership.last_resort_after"),
                handover_budget: integer("leadership.handover_budget"),
                handover_window: duration("leadership.handover_window"),
            },
            snapshot: Snapshot {
                threshold: integer("snapshot.threshold"),
                trailing_logs: integer("snapshot.trailing_logs"),
                retain: integer("snapshot.retain"),
                grace_entries: integer("snapshot.grace_entries"),
                threshold_bytes: integer("snapshot.threshold_bytes"),
                min_interval: duration("snapshot.min_interval"),
            },
            settings: self.to_cluster_settings(),
            store: Store { min_free: integer("store.min_free") },
            feed: Feed { buffer: integer("feed.buffer"), watched: self.list("feed.watched") },
            executor: Executor {
                required: self.is_on("executor.required").expect(WHY),
                max_lag: integer("executor.max_lag"),
                sync_timeout: duration("executor.sync_timeout"),
                report_timeout: duration("executor.report_timeout"),
            },
            telemetry: self.to_telemetry(),
        }
    }

    fn to_api(&self) -> Api {
        const WHY: &str = "without a complaint every key that must have a value has one";
        let duration = |key| self.duration(key).expect(WHY);
        let integer = |key| self.integer(key).expect(WHY);
        Api {
            listen: self.listen("api.listen").expect(WHY),
            advertise: self.text("api.advertise").expect(WHY).to_owned(),
            insecure: self.is_on("api.insecure").expect(WHY),
            propose_timeout: duration("api.propose_timeout"),
            max_in_flight: integer("api.max_in_flight"),
            max_in_flight_bytes: integer("api.max_in_flight_bytes"),
            reorder_window: integer("api.reorder_window"),
            reorder_wait: duration("api.reorder_wait"),
            max_body: integer("api.max_body"),
            max_batch: integer("api.max_batch"),
            max_connections: integer("api.max_connections"),
            max_connections_per_address: integer("api.max_connections_per_address"),
            rate_limit: integer("api.rate_limit"),
            allowed_hosts: self.list("api.allowed_hosts"),
            allowed_origins: self.list("api.allowed_origins"),
        }
    }

    pub(crate) fn to_cluster_settings(&self) -> ClusterSettings {
        let mut all = ClusterSettings::default();
        for key in &settings::keys::KEYS {
            if let Some(value) = self.get(key.name) {
                all.set(key.name, value.clone()).expect("it was set once before, in put");
            }
        }
        all
    }

    fn to_telemetry(&self) -> Telemetry {
        const WHY: &str = "without a complaint every key that must have a value has one";
        let ratio = match self.get("telemetry.sample_ratio") {
            Some(Value::Ratio(ratio)) => *ratio,
            value => unreachable!("telemetry.sample_ratio is no ratio: {value:?}"),
        };
        let text = |key| self.text(key).expect(WHY);
        Telemetry {
            log: LogConfig::new(text("telemetry.log_format"), text("telemetry.log_filter")),
            traces: TraceConfig::new(
                self.text("telemetry.otlp_endpoint"),
                text("telemetry.otlp_protocol"),
                ratio,
                self.integer("telemetry.traces_per_second").expect(WHY),
            ),
        }
    }
}

fn missing(key: &Key) -> Complaint {
    let Fallback::Required { example } = key.fallback else {
        unreachable!("only a required key can be missing")
    };
    let rule = format!(
        "is not set, and is required ({}): in the file, by {}, or by --set {}={example}",
        key.rule(),
        key.env_name(),
        key.name,
    );
    Complaint::of(key.name, rule)
}
