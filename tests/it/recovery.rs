//! Folders that were damaged, cut off or made by a newer binary.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_newer_disk_format_is_refused | design 4, exit 4 |
//! | a_log_that_was_shortened_… | safety 4: the watermark; design 4, exit 4 with file and index |
//! | a_log_that_is_gone_is_refused | design 4: `create_if_missing` never for what should exist |
//! | a_damaged_byte_in_the_log_is_refused | safety 5: CRC and chain; design 4: no silent `point_in_time` |
//! | a_damaged_state_is_rebuilt | design 4: `state/` is derived; safety 28 |
//! | a_short_history_is_whole_after_every_kill | safety 28: families flushed together; pruning is part of apply |
//! | a_damaged_snapshot_is_set_aside | safety 28 |
//! | damage_that_state_and_snapshots_share_is_refused | safety 28: nothing damaged is ever served |

use std::{fs, path::PathBuf};

use anyhow::ensure;

use crate::support::{
    block::Block,
    cluster::Cluster,
    config::{Settings, settings},
    folder::{
        BLOCKS, FOLDER, assert_whole, cut, files, flip, large_files, replace, state_dir, stopped_node, used,
        walk,
    },
    stream::fill,
    wait::{SOON, wait_for},
};

#[test]
fn a_newer_disk_format_is_refused() {
    let mut cluster = stopped_node(false);
    let path = cluster.node(1).data_dir.join("IDENTITY");
    let text = fs::read_to_string(&path).expect("IDENTITY is text");
    // Whatever the layout: the number beside the word "format".
    let line = text.lines().find(|l| l.contains("format")).unwrap_or_else(|| panic!("no format in {text}"));
    let number: String = line.chars().filter(char::is_ascii_digit).collect();
    let newer = line.replace(&number, "9999");
    fs::write(&path, text.replace(line, &newer)).expect("writable");
    let folder = cluster.node(1).data_dir.to_string_lossy().into_owned();
    cluster.node_mut(1).assert_refuses(FOLDER, &[&folder, "9999"]);
    fs::write(&path, text).expect("writable");
    assert_whole(&mut cluster);
}

#[test]
fn a_log_that_was_shortened_is_refused_with_file_and_index() {
    // Half of the newest WAL is gone: RocksDB by itself takes that for a clean end.
    let mut cluster = stopped_node(false);
    let log = cluster.node(1).data_dir.join("log");
    let wal = files(&log, ".log").remove(0);
    let whole = fs::read(&wal).expect("readable");
    cut(&wal, used(&whole) / 2);
    cluster.node_mut(1).assert_refuses(FOLDER, &[&log.to_string_lossy(), "index"]);
    // Refused again, not mended in silence by the first attempt.
    cluster.node_mut(1).assert_refuses(FOLDER, &[&log.to_string_lossy()]);
}

#[test]
fn a_log_that_was_put_back_is_whole() {
    let mut cluster = stopped_node(false);
    let log = cluster.node(1).data_dir.join("log");
    let before: Vec<(PathBuf, Vec<u8>)> =
        walk(&log).into_iter().map(|path| (path.clone(), fs::read(&path).expect("readable"))).collect();
    let wal = files(&log, ".log").remove(0);
    let whole = fs::read(&wal).expect("readable");
    cut(&wal, used(&whole) / 2);
    cluster.node_mut(1).assert_refuses(FOLDER, &[]);
    // What a person restores from a copy of the folder is accepted: a refusal damages nothing.
    fs::remove_dir_all(&log).expect("writable");
    for (path, bytes) in before {
        fs::create_dir_all(path.parent().expect("it has one")).expect("writable");
        fs::write(path, bytes).expect("writable");
    }
    assert_whole(&mut cluster);
}

#[test]
fn a_log_that_is_gone_is_refused() {
    for what in ["CURRENT", ""] {
        let mut cluster = stopped_node(false);
        let log = cluster.node(1).data_dir.join("log");
        match what {
            "" => fs::remove_dir_all(&log).expect("writable"),
            file => fs::remove_file(log.join(file)).expect("it was there"),
        }
        // Twice: a database of RocksDB without CURRENT is an error once, and empty at the next open.
        for _ in 0..2 {
            cluster.node_mut(1).assert_refuses(FOLDER, &[&log.to_string_lossy()]);
        }
    }
}

#[test]
fn a_damaged_byte_in_the_log_is_refused() {
    let mut cluster = stopped_node(false);
    let log = cluster.node(1).data_dir.join("log");
    let wal = files(&log, ".log").remove(0);
    let used = used(&fs::read(&wal).expect("readable"));
    // In the middle: entries that were synced lie behind it.
    flip(&wal, used / 2);
    cluster.node_mut(1).assert_refuses(FOLDER, &[&log.to_string_lossy()]);
}

#[test]
fn a_damaged_state_is_rebuilt() {
    for damage in ["cut", "CURRENT", "gone"] {
        let mut cluster = stopped_node(true);
        let state = state_dir(&cluster.node(1).data_dir);
        match damage {
            "cut" => match files(&state, ".sst").first() {
                Some(sst) => cut(sst, 100),
                // All of it is still in memory and in the log.
                None => cut(&files(&state, "").remove(0), 10),
            },
            "CURRENT" => fs::remove_file(state.join("CURRENT")).expect("it was there"),
            _ => fs::remove_dir_all(&state).expect("it was there"),
        }
        assert_whole(&mut cluster);
    }
}

#[test]
fn a_damaged_snapshot_is_set_aside() {
    let mut cluster = stopped_node(true);
    let snapshots = cluster.node(1).data_dir.join("snapshots");
    let damaged = large_files(&snapshots);
    damaged.iter().for_each(|path| flip(path, 500));
    // `state/` is whole: another one is built from it before anything relies on a snapshot.
    assert_whole(&mut cluster);
    cluster.node_mut(1).stop(SOON);
    assert_whole(&mut cluster);
}

#[test]
fn damage_that_state_and_snapshots_share_is_refused() {
    // Their files are links: what rots in one place rots in all of them, and the log no longer begins at
    // its beginning. Nothing to rebuild from: refused, never served.
    let mut cluster = stopped_node(true);
    let data_dir = cluster.node(1).data_dir.clone();
    let files: Vec<(PathBuf, Vec<u8>)> = [data_dir.join("snapshots"), state_dir(&data_dir)]
        .iter()
        .flat_map(|dir| large_files(dir))
        .filter(|path| path.to_string_lossy().ends_with(".sst"))
        .map(|path| (path.clone(), fs::read(&path).expect("readable")))
        .collect();
    for (path, bytes) in &files {
        let mut damaged = bytes.clone();
        damaged[bytes.len() / 2] ^= 0x40;
        replace(path, &damaged);
    }
    cluster.node_mut(1).start();
    // RocksDB reads a block of a file when it is needed: a node may start, and then it must not serve one
    // that is damaged.
    let is_refused = wait_for("the node ends or leads", SOON, || {
        if let Some(exit) = cluster.node_mut(1).exit() {
            return Ok(Some(exit.code()));
        }
        ensure!(cluster.node(1).status()?["ready"] == true, "neither");
        Ok(None)
    });
    match is_refused {
        Some(code) => assert_eq!(code, Some(FOLDER)),
        None => {
            for row in cluster.node(1).range(1, BLOCKS).unwrap_or_default() {
                let height = row["block"]["height"].as_u64().expect("a height");
                Block::sized(height, "kept", 1_000).assert_json(&row["block"]);
            }
        }
    }
}

#[test]
fn a_folder_of_a_node_that_never_led_alone_is_whole_after_a_kill() {
    // The empty folder of a first start that was killed at any moment starts again.
    let mut cluster = Cluster::new(1, Settings::new());
    for _ in 0..5 {
        cluster.node_mut(1).start();
        cluster.node(1).wait_line(&["{"]);
        cluster.node_mut(1).kill();
    }
    cluster.node_mut(1).start();
    cluster.leader();
    cluster.end();
}

#[test]
fn a_short_history_is_whole_after_every_kill() {
    const KEPT: u64 = 50;
    let mut cluster = Cluster::new(
        1,
        settings([
            ("state.history_blocks", toml::Value::Integer(KEPT as i64)),
            ("snapshot.threshold", toml::Value::Integer(20)),
            ("snapshot.trailing_logs", toml::Value::Integer(1)),
        ]),
    );
    cluster.start();
    let mut top = 0;
    for round in 1..=10 {
        let blocks: Vec<Block> = (top + 1..=top + 30 * round).map(|h| Block::new(h, "kept")).collect();
        fill(&cluster.node(1).api.clone(), &blocks);
        top += 30 * round;
        cluster.node_mut(1).kill();
        cluster.node_mut(1).start();
        cluster.leader();
        assert_eq!(cluster.height(1), top, "the head after the restart");
        let oldest = top.saturating_sub(KEPT) + 1;
        let rows = cluster.node(1).range(oldest, top).expect("it answers");
        assert_eq!(rows.len() as u64, top - oldest + 1, "blocks from {oldest} to {top}");
        for (height, row) in (oldest..).zip(&rows) {
            Block::new(height, "kept").assert_json(&row["block"]);
        }
        if 1 < oldest {
            let below = cluster.node(1).call("block_get", &serde_json::json!({"height": oldest - 1}));
            let error = below.expect_err("it is pruned").rpc();
            assert_eq!((error.code, error.reason()), (-32037, "pruned"));
            assert_eq!(error.data["oldestHeight"], oldest);
        }
    }
    cluster.end();
}
