//! What is exported is what `api/metrics.md` says, and what the dashboards and alerts use.
//!
//! Attacks promise 7. `UPDATE_SPEC=1` writes the catalogue anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use crate::support::{
    block::Block,
    cluster::Cluster,
    config::Settings,
    exposition::{Family, Scrape},
    stream::fill,
};

/// Labels whose values depend on the cluster, the build or the caller: no closed set.
const OPEN_LABELS: &[&str] = &["cluster_id", "node_id", "node_name", "peer_id", "version", "revision"];
/// Of these only `ok` exists from the start.
const CODE: &str = "code";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

/// The families of all three nodes together: some are the leader's alone.
fn scrape_all(cluster: &Cluster) -> BTreeMap<String, Family> {
    let mut all: BTreeMap<String, Family> = BTreeMap::new();
    for node in &cluster.nodes {
        let text = node.get("/metrics", &[]).expect("it answers").text();
        for (name, family) in Scrape::parse(&text).families {
            let have = all.entry(name).or_insert_with(|| family.clone());
            for (label, values) in family.labels {
                have.labels.entry(label).or_default().extend(values);
            }
        }
    }
    all
}

fn catalogue(families: &BTreeMap<String, Family>) -> String {
    let mut out = String::from(
        "# Metrics\n\nWhat a node exports, from a live scrape of three nodes; compared by a test. A label without values has no closed set.\n\n\
         | metric | type | labels | meaning |\n| --- | --- | --- | --- |\n",
    );
    for (name, family) in families {
        let labels: Vec<String> = family
            .labels
            .iter()
            .map(|(label, values)| match label.as_str() {
                CODE => format!("`{label}`"),
                open if OPEN_LABELS.contains(&open) => format!("`{label}`"),
                _ => format!("`{label}` = {}", values.iter().cloned().collect::<Vec<_>>().join(" ")),
            })
            .collect();
        let help = family.help.replace('|', "\\|");
        let _ = writeln!(out, "| `{name}` | {} | {} | {help} |", family.kind, labels.join("; "));
    }
    out
}

#[test]
fn the_catalogue_of_metrics_is_what_a_cluster_exports() {
    let mut cluster = Cluster::three(Settings::new());
    // Leader-only families appear with the peers' first answers.
    let leader = cluster.leader();
    fill(&cluster.node(leader).api.clone(), &[Block::new(1, "one")]);
    cluster.settled();
    let families = scrape_all(&cluster);
    for (name, family) in &families {
        assert!(!family.help.is_empty(), "{name} has no help");
        assert!(!family.kind.is_empty(), "{name} has no type");
        if name.starts_with("blockraft_") {
            assert_eq!(family.kind == "counter", name.ends_with("_total"), "{name} is a {}", family.kind);
        }
    }
    let got = catalogue(&families);
    let path = root().join("api/metrics.md");
    if std::env::var_os("UPDATE_SPEC").is_some() {
        fs::write(&path, &got).expect("writable");
    }
    let want = fs::read_to_string(&path).unwrap_or_default();
    for (want, got) in want.lines().zip(got.lines()) {
        assert_eq!(want, got, "api/metrics.md; UPDATE_SPEC=1 writes it anew");
    }
    assert_eq!(want.lines().count(), got.lines().count(), "api/metrics.md has other rows");
    cluster.end();
}

#[test]
fn every_series_is_read_twice_alike() {
    // Reading changes nothing: two scrapers see the same families, labels and settled counts.
    let mut cluster = Cluster::three(Settings::new());
    let leader = cluster.leader();
    fill(&cluster.node(leader).api.clone(), &[Block::new(1, "one"), Block::new(2, "two")]);
    cluster.settled();
    for node in &cluster.nodes {
        let read = || Scrape::parse(&node.get("/metrics", &[]).expect("it answers").text());
        let (one, two) = (read(), read());
        let keys = |s: &Scrape| -> BTreeSet<String> {
            s.samples.iter().map(|sample| format!("{} {:?}", sample.name, sample.labels)).collect()
        };
        assert_eq!(keys(&one), keys(&two), "series of node {}", node.id);
        for scrape in [one, two] {
            assert_eq!(scrape.get("blockraft_blocks_applied_total", &[]), Some(2.0));
            assert_eq!(scrape.get("blockraft_block_head_height", &[]), Some(2.0));
        }
    }
    cluster.end();
}

/// Every name in a text that looks like a metric of ours.
fn names_in(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    text.split(|c| !is_part(c))
        .filter(|word| word.starts_with("blockraft_") && word.len() > "blockraft_".len())
        .map(str::to_owned)
        .collect()
}

#[test]
fn dashboards_and_alerts_use_only_what_is_exported() {
    let catalogue = fs::read_to_string(root().join("api/metrics.md")).unwrap_or_default();
    let exported: BTreeSet<&str> =
        catalogue.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next()).collect();
    let mut files = Vec::new();
    for dir in ["dashboards", "dashboards/boards", "dashboards/provisioning"] {
        for entry in fs::read_dir(root().join(dir)).into_iter().flatten() {
            let path = entry.expect("readable").path();
            if path.extension().is_some_and(|e| e == "json" || e == "yml" || e == "yaml") {
                files.push(path);
            }
        }
    }
    let n_boards = files.iter().filter(|p| p.extension().is_some_and(|e| e == "json")).count();
    assert_eq!(n_boards, 5, "boards");
    for path in files {
        let text = fs::read_to_string(&path).expect("readable");
        for name in names_in(&text) {
            let is_exported = ["", "_bucket", "_sum", "_count"]
                .iter()
                .any(|suffix| name.strip_suffix(suffix).is_some_and(|base| exported.contains(base)));
            // Of parts that come later: what looks at them is written, and stays silent until then.
            let is_reserved =
                ["blockraft_tls_certificate_not_after_timestamp_seconds"].contains(&name.as_str());
            // What the rules record under a name of their own.
            let is_recorded = text.contains(&format!("record: {name}\n"));
            assert!(
                is_exported || is_reserved || is_recorded,
                "{} uses {name}, which no node exports",
                path.display()
            );
        }
    }
}
