//! A log that lost something is refused, and the refusal names what.

use std::fs;
use std::path::Path;

use crate::store::log::open::{log_dir, watermark_path};
use crate::store::log::payloads::{Payloads, Reading, payload_dir};
use crate::store::rocks::WAL_RESERVED_BYTES;
use crate::store::tests::support::{
    append, blocks, close, copy_dir, file_with, folder, newest_wal, open, refusal, untell, vote,
};
use crate::store::watermark::{Found, Mark, Slots};
use openraft::storage::RaftLogStorage;

/// A closed folder with a vote and a hundred entries, all of them in the WAL.
async fn filled(dir: &Path) {
    let mut opened = open(dir);
    opened.log.save_vote(&vote(1, true)).await.unwrap();
    for start in (1..=100).step_by(10) {
        append(&mut opened.log, blocks(1, start..=start + 9, 200)).await;
    }
    close(opened);
}

fn assert_refused(dir: &Path, parts: &[&str]) {
    let error = refusal(dir);
    assert_eq!(error.exit_code(), 4, "{error}");
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[tokio::test]
async fn a_shortened_log_is_refused() {
    let (_guard, dir) = folder();
    filled(&dir).await;
    let wal = file_with(&log_dir(&dir), "log");
    let length = fs::metadata(&wal).unwrap().len();
    fs::OpenOptions::new().write(true).open(&wal).unwrap().set_len(length - 1000).unwrap();
    assert_refused(&dir, &["log", "ends at index 90", "up to index 100"]);
}

#[tokio::test]
async fn a_flipped_byte_in_the_middle_is_refused() {
    let (_guard, dir) = folder();
    filled(&dir).await;
    let wal = file_with(&log_dir(&dir), "log");
    flip(&wal, fs::metadata(&wal).unwrap().len() / 2);
    let name = wal.file_name().unwrap().to_str().unwrap();
    assert_refused(&dir, &[name, "damaged at byte", "whole records behind it"]);
    // Nothing was changed by looking: it is refused again, and for the same reason.
    assert_refused(&dir, &[name, "whole records behind it"]);
}

#[tokio::test]
async fn a_flipped_byte_in_the_last_record_is_refused_when_it_was_reported_durable() {
    let (_guard, dir) = folder();
    filled(&dir).await;
    let wal = file_with(&log_dir(&dir), "log");
    flip(&wal, fs::metadata(&wal).unwrap().len() - 10);
    let name = wal.file_name().unwrap().to_str().unwrap();
    assert_refused(&dir, &[name, "ends at index 90", "up to index 100"]);
}

#[tokio::test]
async fn a_torn_last_record_that_nobody_was_told_of_is_dropped() {
    let (_guard, dir) = folder();
    filled(&dir).await;
    let marked = {
        // As a power loss would leave it: the last batch torn, the watermark one batch behind.
        let mut opened = open(&dir);
        let marked = opened.log.shared.tail().last();
        append(&mut opened.log, blocks(1, 101..=110, 200)).await;
        close(opened);
        marked
    };
    untell(&dir, marked);
    let wal = newest_wal(&dir);
    flip(&wal, fs::metadata(&wal).unwrap().len() - 10);
    let mut opened = open(&dir);
    assert_eq!(opened.log.shared.stats().last.map(|p| p.index), Some(100));
    append(&mut opened.log, blocks(1, 101..=120, 200)).await;
    close(opened);
    let opened = open(&dir);
    assert_eq!(opened.log.shared.stats().last.map(|p| p.index), Some(120));
    close(opened);
}

#[tokio::test]
async fn a_kill_leaves_zeros_behind_the_last_record_which_are_no_damage() {
    let (guard, dir) = folder();
    filled(&dir).await;
    let killed = guard.path().join("killed");
    let marked = {
        let mut opened = open(&dir);
        let marked = opened.log.shared.tail().last();
        append(&mut opened.log, blocks(1, 101..=110, 200)).await;
        copy_dir(&dir, &killed);
        close(opened);
        marked
    };
    let wal = newest_wal(&killed);
    let content = fs::read(&wal).unwrap();
    assert!(WAL_RESERVED_BYTES <= content.len() as u64, "the size is not what is reserved");
    assert!(fs::metadata(newest_wal(&dir)).unwrap().len() < WAL_RESERVED_BYTES, "a close cuts it off");
    let torn = guard.path().join("torn");
    copy_dir(&killed, &torn);
    for _ in 0..2 {
        let opened = open(&killed);
        assert_eq!(opened.log.shared.stats().last.map(|p| p.index), Some(110));
        // Not closed in between: what is there is copied again.
        copy_dir(&killed, &guard.path().join("again"));
        close(opened);
    }
    let opened = open(&guard.path().join("again"));
    assert_eq!(opened.log.shared.stats().last.map(|p| p.index), Some(110));
    close(opened);

    // A record torn in front of the zeros, which nobody was told of.
    untell(&torn, marked);
    let end = content.iter().rposition(|b| *b != 0).unwrap();
    flip(&newest_wal(&torn), end as u64 - 10);
    let opened = open(&torn);
    assert_eq!(opened.log.shared.stats().last.map(|p| p.index), Some(100));
    close(opened);
}

#[tokio::test]
async fn a_deleted_log_is_refused() {
    for what in ["wal", "current", "folder"] {
        let (_guard, dir) = folder();
        filled(&dir).await;
        match what {
            "wal" => fs::remove_file(file_with(&log_dir(&dir), "log")).unwrap(),
            "current" => fs::remove_file(log_dir(&dir).join("CURRENT")).unwrap(),
            _ => fs::remove_dir_all(log_dir(&dir)).unwrap(),
        }
        assert_refused(&dir, &["log"]);
        assert_refused(&dir, &["log"]);
    }
}

#[tokio::test]
async fn a_missing_or_damaged_watermark_is_refused() {
    let (_guard, dir) = folder();
    filled(&dir).await;
    let path = watermark_path(&dir);
    let content = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_refused(&dir, &["WATERMARK", "missing"]);
    // One slot is enough, the older one included: it claims less.
    let mut torn = content.clone();
    torn[20] ^= 1;
    fs::write(&path, &torn).unwrap();
    close(open(&dir));
    torn[..64].fill(0);
    torn[4096..4096 + 64].fill(0);
    fs::write(&path, &torn).unwrap();
    assert_refused(&dir, &["WATERMARK", "neither slot"]);
}

#[tokio::test]
async fn a_log_of_an_older_vote_is_refused() {
    let (_guard, dir) = folder();
    filled(&dir).await;
    let Found::Mark(mut slots, mark) = Slots::open(&watermark_path(&dir)).unwrap() else { panic!("a mark") };
    slots.write(&Mark { vote: Some(vote(2, false)), ..mark }).unwrap();
    assert_refused(&dir, &["log", "vote"]);
}

#[tokio::test]
async fn a_lost_identity_beside_a_log_is_refused() {
    let (_guard, dir) = folder();
    filled(&dir).await;
    fs::remove_file(dir.join("IDENTITY")).unwrap();
    assert_refused(&dir, &["IDENTITY is missing"]);
}

#[tokio::test]
async fn a_hole_and_a_broken_chain_name_their_index() {
    use crate::store::codec::{Frame, first_key};
    use crate::store::log::read::Frames;
    use crate::store::rocks::{Recovery, Shared};
    for (is_hole, parts) in
        [(true, ["log", "entry 50 is missing"]), (false, ["log", "entry 50 does not continue"])]
    {
        let (_guard, dir) = folder();
        filled(&dir).await;
        let db = Shared::new().unwrap().open_log(&log_dir(&dir), false, Recovery::ShortTail).unwrap();
        let (frame, payload) = {
            let mut frames = Frames::new(&db, 50..51);
            let frame = frames.current().unwrap().expect("entry 50");
            (frame, frames.payload(&frame, &mut Reading::new(&Payloads::of(&dir))).unwrap())
        };
        db.delete(frame.to_key()).unwrap();
        if !is_hole {
            let forged = Frame { pos: crate::types::position::LogPos { term: 7, ..frame.pos }, ..frame };
            assert!(forged.to_key().starts_with(&first_key(50)));
            db.put(forged.to_key(), payload).unwrap();
        }
        drop(db);
        assert_refused(&dir, &parts);
    }
}

#[tokio::test]
async fn a_damaged_or_lost_file_of_the_log_is_refused_by_name() {
    // Small entries lie in tables, the payloads of large ones in files of their own.
    for (bytes, kind, harm) in [200, 100 << 10]
        .into_iter()
        .zip(["sst", "payloads"])
        .flat_map(|(bytes, kind)| ["flipped", "lost", "cut"].map(|harm| (bytes, kind, harm)))
    {
        let (_guard, dir) = folder();
        let mut opened = open(&dir);
        append(&mut opened.log, blocks(1, 1..=100, bytes)).await;
        let db = opened.log.shared.db().unwrap();
        db.flush().unwrap();
        drop(db);
        close(opened);
        let is_large = kind == "payloads";
        let file = file_with(&if is_large { payload_dir(&dir) } else { log_dir(&dir) }, kind);
        let end = if is_large { 10 << 20 } else { fs::metadata(&file).unwrap().len() };
        match harm {
            "lost" => fs::remove_file(&file).unwrap(),
            "cut" => fs::File::options().write(true).open(&file).unwrap().set_len(end / 2).unwrap(),
            _ => flip(&file, 500_000.min(end / 2)),
        }
        let entry = match harm {
            _ if !is_large => "",
            "flipped" => "entry 5:",
            "lost" => "entry 1:",
            _ => "the payload of entry 52",
        };
        assert_refused(&dir, &[file.file_name().unwrap().to_str().unwrap(), entry]);
    }
}

fn flip(path: &Path, at: u64) {
    let mut content = fs::read(path).unwrap();
    content[at as usize] ^= 0x40;
    fs::write(path, content).unwrap();
}
