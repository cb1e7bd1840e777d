//! What RocksDB was really told, and what is exported from the start.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use openraft::storage::IOFlushed;
use prometheus::Registry;

use crate::store::files::takes_direct_writes;
use crate::store::log::open::log_dir;
use crate::store::rocks::{LOG_FAMILIES, STATE_FAMILIES};
use crate::store::tests::support::{close, folder, open_with, who};

/// Section, option, value of the newest OPTIONS file.
fn options(dir: &Path) -> BTreeMap<(String, String), String> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|p| p.file_name().unwrap().to_string_lossy().starts_with("OPTIONS-"));
    files.sort();
    let text = fs::read_to_string(files.pop().expect("an OPTIONS file")).unwrap();
    let mut section = String::new();
    let mut found = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some((key, value)) = line.split_once('=') {
            found.insert((section.clone(), key.to_owned()), value.to_owned());
        }
    }
    found
}

#[tokio::test]
async fn every_family_has_the_options_it_was_meant_to_have() {
    let (_guard, dir) = folder();
    // Opened again: a database that is made and one that is opened are told the same.
    close(open_with(&dir, &who(), &Registry::new()).unwrap());
    let opened = open_with(&dir, &who(), &Registry::new()).unwrap();
    let state = opened.machine.shared.published().unwrap().db.path().to_owned();
    for (dir, families, merged_at_once) in
        [(log_dir(&dir), &LOG_FAMILIES[..], "32"), (state.clone(), &STATE_FAMILIES[..], "4")]
    {
        let found = options(&dir);
        let get = |section: &str, key: &str| found[&(section.to_owned(), key.to_owned())].clone();
        for (key, value) in [
            ("avoid_flush_during_recovery", "true"),
            ("paranoid_checks", "true"),
            ("keep_log_file_num", "2"),
            ("bytes_per_sync", "1048576"),
            ("create_if_missing", "false"),
            ("info_log_level", "WARN_LEVEL"),
        ] {
            assert_eq!(get("DBOptions", key), value, "{key} of {}", dir.display());
        }
        for family in families {
            let section = format!("CFOptions \"{family}\"");
            assert_eq!(get(&section, "compression"), "kNoCompression", "{section}");
            assert_eq!(get(&section, "write_buffer_size"), "16777216", "{section}");
            assert_eq!(get(&section, "level0_file_num_compaction_trigger"), merged_at_once, "{section}");
        }
        let sections = found.keys().filter(|(s, k)| s.starts_with("CFOptions") && k == "compression").count();
        assert_eq!(sections, families.len());
    }
    let log = options(&log_dir(&dir));
    let get = |key: &str| log[&("DBOptions".to_owned(), key.to_owned())].clone();
    assert_eq!(get("wal_recovery_mode"), "kTolerateCorruptedTailRecords");
    assert_eq!(get("track_and_verify_wals_in_manifest"), "true");
    assert_eq!(get("max_total_wal_size"), "67108864");
    // The state's tables are read again at once, for the checksums of a snapshot.
    let past_the_cache = "use_direct_io_for_flush_and_compaction";
    assert_eq!(get(past_the_cache), takes_direct_writes(&dir).to_string());
    assert_eq!(options(&state)[&("DBOptions".to_owned(), past_the_cache.to_owned())], "false");
    assert_eq!(options(&state)[&("DBOptions".to_owned(), "atomic_flush".to_owned())], "true");
    close(opened);
}

#[tokio::test]
async fn every_series_exists_from_the_start() {
    let (_guard, dir) = folder();
    let registry = Registry::new();
    let opened = open_with(&dir, &who(), &registry).unwrap();
    let series: BTreeMap<String, usize> =
        registry.gather().iter().map(|f| (f.name().to_owned(), f.get_metric().len())).collect();
    for (name, n) in [
        ("blockraft_raft_log_append_seconds", 1),
        ("blockraft_raft_log_sync_seconds", 1),
        ("blockraft_raft_log_sync_batch_entries", 1),
        ("blockraft_raft_log_sync_oldest_wait_seconds", 1),
        ("blockraft_raft_apply_seconds", 4),
        ("blockraft_raft_log_purged_entries_total", 1),
        ("blockraft_store_free_bytes", 1),
        ("blockraft_store_min_free_bytes", 1),
        ("blockraft_store_bytes", 2),
        ("blockraft_store_pending_compaction_bytes", 2),
        ("blockraft_store_write_stall_seconds_total", 2),
        ("blockraft_store_errors_total", 12),
        ("blockraft_blocks_applied_total", 1),
        ("blockraft_block_bytes_total", 1),
        ("blockraft_block_refused_total", 6),
        ("blockraft_block_head_height", 1),
        ("blockraft_block_head_timestamp_seconds", 1),
        ("blockraft_block_applied_timestamp_seconds", 1),
        ("blockraft_block_checkpoint_height", 3),
        ("blockraft_block_checkpoint_fingerprint", 3),
        ("blockraft_raft_snapshot_build_seconds", 3),
        ("blockraft_raft_snapshot_send_seconds", 3),
        ("blockraft_raft_snapshot_install_seconds", 3),
        ("blockraft_raft_snapshots_total", 15),
        ("blockraft_raft_snapshot_running", 3),
        ("blockraft_raft_snapshot_bytes", 1),
        ("blockraft_raft_snapshot_last_success_timestamp_seconds", 1),
        ("blockraft_raft_snapshots_retained", 1),
        ("blockraft_node_starts_total", 1),
        ("blockraft_node_last_exit", 5),
    ] {
        assert_eq!(series.get(name), Some(&n), "{name}");
    }
    close(opened);
}

/// Safety rule 6: many reports after one sync can each cost a timer tick.
#[tokio::test]
async fn of_one_sync_every_signal_is_told_in_order() {
    use crate::store::tests::support::{blank, open, submit};
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    let shared = opened.log.shared.clone();
    shared.queue.hold(true);
    let mut waiting = Vec::new();
    for i in 0..20 {
        waiting.push(submit(&mut opened.log, vec![blank(1, i)]).await);
    }
    openraft::storage::RaftLogStorage::append(&mut opened.log, vec![blank(1, 20)], IOFlushed::noop())
        .await
        .unwrap();
    let before = shared.metrics.sync_seconds.get_sample_count();
    shared.queue.hold(false);
    for durable in waiting {
        durable.await.unwrap().unwrap();
    }
    assert_eq!(shared.metrics.sync_seconds.get_sample_count(), before + 1);
    close(opened);
}
