//! Snapshots.

use serde_json::Value;

use crate::cli::{
    ctl::render::{Shown, is_true, list, records, size, span, text, time},
    table::{Cell, Table, Tone},
};

pub(crate) fn created(answer: &Value, is_colored: bool) -> Shown {
    if is_true(&answer["building"]) {
        return format!("building {}\n", text(&answer["id"])).into();
    }
    let mut t = entry(answer);
    t.pair("took", span(&answer["elapsedMs"]));
    t.render(is_colored).into()
}

fn entry(answer: &Value) -> Table {
    let mut t = Table::pairs();
    t.pair("snapshot", Cell::new(text(&answer["id"]), Tone::Strong));
    t.pair("up to", format!("index {} · term {}", text(&answer["lastIndex"]), text(&answer["lastTerm"])));
    t.pair("height", text(&answer["height"]));
    t.pair("size", size(&answer["sizeBytes"]));
    t
}

pub(crate) fn list_all(answer: &Value, is_colored: bool) -> Shown {
    let mut t = Table::new(&["ID", "MADE AT", "INDEX", "TERM", "HEIGHT", "SIZE", "SOURCE"]);
    for s in list(answer, "snapshots") {
        t.row([
            text(&s["id"]).into(),
            time(&s["createdAt"]).into(),
            text(&s["lastIndex"]).into(),
            text(&s["lastTerm"]).into(),
            text(&s["height"]).into(),
            size(&s["sizeBytes"]).into(),
            text(&s["source"]).into(),
        ]);
    }
    records::empty_or(t, "no snapshot yet", is_colored, "")
}

pub(crate) fn describe(answer: &Value, is_colored: bool) -> Shown {
    let mut t = entry(answer);
    t.pair("made at", time(&answer["createdAt"]));
    t.pair("source", text(&answer["source"]));
    t.pair("cluster", text(&answer["clusterId"]));
    t.pair("voters", text(&answer["membership"]["voters"]));
    t.pair("state hash", text(&answer["stateHash"]));
    t.pair("format", text(&answer["formatVersion"]));
    let mut files = Table::new(&["FILE", "SIZE", "CHECKSUM"]);
    for f in list(answer, "files") {
        files.row([text(&f["name"]).into(), size(&f["sizeBytes"]).into(), text(&f["checksum"]).into()]);
    }
    format!("{}\n{}", t.render(is_colored), files.render(is_colored)).into()
}

pub(crate) fn status(answer: &Value, is_colored: bool) -> Shown {
    let mut t = Table::pairs();
    t.pair("due after", format!("{} entries", text(&answer["threshold"])));
    t.pair(
        "kept",
        format!(
            "{} snapshots · {} log entries behind",
            text(&answer["retain"]),
            text(&answer["trailingLogs"])
        ),
    );
    t.pair("log", format!("{} entries · {}", text(&answer["logEntries"]), size(&answer["logBytes"])));
    let positions = format!(
        "last {} · snapshot {} · purged {}",
        text(&answer["lastLogIndex"]),
        text(&answer["snapshotIndex"]),
        text(&answer["purgedIndex"])
    );
    t.pair("positions", positions);
    t.pair("compaction lag", text(&answer["compactionLag"]));
    t.pair("building", text(&answer["building"]));
    if let Some(error) = answer["lastError"].as_str() {
        t.pair("last error", Cell::new(error, Tone::Bad));
    }
    t.render(is_colored).into()
}
