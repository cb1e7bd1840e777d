//! `blockraft inspect`: what lies in a stopped node's folder, and that looking changes nothing.

use std::fs;

use serde_json::Value;

use crate::support::{
    cluster::{CLUSTER_ID, Cluster},
    config::Settings,
    folder::{
        BLOCKS, FOLDER, assert_whole, cut, files, flip, large_files, listing, state_dir, stopped_node, used,
    },
    inspect::{inspect, report},
    wait::SOON,
};

/// Whether a problem is told of a file, by the words of both.
#[track_caller]
fn assert_problem(report: &Value, file: &str, what: &str) {
    let problems = report["problems"].as_array().expect("a list");
    let is_told = |p: &Value| {
        p["file"].as_str().is_some_and(|f| f.contains(file))
            && p["what"].as_str().is_some_and(|w| w.contains(what))
    };
    assert!(problems.iter().any(is_told), "nothing of {file} and {what:?} in {problems:#?}");
}

#[test]
fn a_stopped_nodes_folder_is_told_and_not_changed() {
    let mut cluster = stopped_node(true);
    let dir = cluster.node(1).data_dir.clone();
    // Killed, with entries in the WAL, and then stopped in order.
    for _ in 0..2 {
        for more in [&[][..], &["--verify"]] {
            let (r, code) = report(&dir, more);
            assert_eq!((code, &r["problems"]), (Some(0), &serde_json::json!([])), "{r:#}");
            assert_eq!(r["identity"]["clusterId"], CLUSTER_ID);
            assert_eq!((&r["identity"]["nodeId"], &r["vote"]["votedFor"]), (&1.into(), &1.into()));
            assert_eq!(r["membership"]["voters"], serde_json::json!([1]));
            let last = r["log"]["lastIndex"].as_u64().expect("an index");
            assert!(BLOCKS < last, "{r:#}");
            assert_eq!(r["log"]["entries"], last - r["log"]["purgedIndex"].as_u64().expect("an index"));
            let applied = r["state"]["appliedIndex"].as_u64().expect("an index");
            let newest = r["snapshots"][0]["lastIndex"].as_u64().expect("there is one");
            assert!(0 < newest && newest <= applied && applied <= last, "{r:#}");
        }
        let text = String::from_utf8(inspect(&dir, &[]).stdout).expect("text");
        assert!(text.contains("node 1 of test-cluster") && text.contains("no problem seen"), "{text}");
        let text = String::from_utf8(inspect(&dir, &["--verify"]).stdout).expect("text");
        assert!(text.contains("every checksum holds"), "{text}");
        assert_whole(&mut cluster);
        cluster.node_mut(1).stop(SOON);
    }
    // In order: everything is applied and the head is the last block.
    let (r, _) = report(&dir, &[]);
    assert_eq!(r["state"]["head"]["height"], BLOCKS);
    assert!(r["lastExit"].as_str().is_some_and(|e| e.starts_with("clean")), "{r:#}");
}

#[test]
fn a_running_nodes_folder_is_refused() {
    let mut cluster = Cluster::new(1, Settings::new());
    cluster.start();
    let out = inspect(&cluster.node(1).data_dir, &[]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("in use by") && said.contains("node 1"), "{said}");
    cluster.end();
}

#[test]
fn a_folder_that_is_not_there_is_not_made() {
    let dir = tempfile::tempdir().expect("writable");
    let gone = dir.path().join("n1");
    let out = inspect(&gone, &[]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("no such folder"));
    assert!(!gone.exists());
    let out = inspect(dir.path(), &["--verify"]);
    assert_eq!((out.status.code(), out.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8_lossy(&out.stderr).contains("this is no data folder of blockraft"));
    assert!(listing(dir.path()).len() == 1, "something was made");
}

#[test]
fn a_damaged_log_is_told_with_file_and_index() {
    let mut cluster = stopped_node(false);
    let dir = cluster.node(1).data_dir.clone();
    let log = dir.join("log");
    let wal = files(&log, ".log").remove(0);
    let whole = fs::read(&wal).expect("readable");
    cut(&wal, used(&whole) / 2);
    let (r, code) = report(&dir, &[]);
    assert_eq!(code, Some(FOLDER));
    assert_problem(&r, "log", "index");
    fs::write(&wal, &whole).expect("writable");

    flip(&wal, used(&whole) / 2);
    let (r, code) = report(&dir, &[]);
    assert_eq!(code, Some(FOLDER));
    assert_problem(&r, &wal.file_name().expect("it has one").to_string_lossy(), "damaged at byte");
    fs::write(&wal, &whole).expect("writable");

    let mark = dir.join("WATERMARK");
    let kept = fs::read(&mark).expect("readable");
    fs::remove_file(&mark).expect("it was there");
    let (r, code) = report(&dir, &[]);
    assert_eq!(code, Some(FOLDER));
    assert_problem(&r, "WATERMARK", "missing");
    fs::write(&mark, kept).expect("writable");

    let current = log.join("CURRENT");
    let kept = fs::read(&current).expect("readable");
    fs::remove_file(&current).expect("it was there");
    let (r, code) = report(&dir, &[]);
    assert_eq!(code, Some(FOLDER));
    assert_problem(&r, "log", "CURRENT");
    fs::write(&current, kept).expect("writable");

    // Nothing of all that looking was left behind.
    assert_whole(&mut cluster);
}

#[test]
fn what_a_start_would_mend_is_told_and_not_mended() {
    let mut cluster = stopped_node(true);
    let dir = cluster.node(1).data_dir.clone();
    let state = state_dir(&dir);
    let current = state.join("CURRENT");
    let kept = fs::read(&current).expect("readable");
    fs::remove_file(&current).expect("it was there");
    let (r, code) = report(&dir, &[]);
    assert_eq!(code, Some(1), "{r:#}");
    assert_problem(&r, "state", "a start rebuilds it");
    fs::write(&current, kept).expect("writable");

    // One bit of the newest snapshot: seen by --verify alone, as by a start that reads it.
    let newest = r["snapshots"][0]["id"].as_str().expect("there is one").to_owned();
    let damaged = large_files(&dir.join("snapshots").join(&newest)).remove(0);
    flip(&damaged, 500);
    let (r, code) = report(&dir, &["--verify"]);
    assert_eq!(code, Some(1), "{r:#}");
    assert_problem(&r, &newest, "checksum");
    assert_whole(&mut cluster);
}
