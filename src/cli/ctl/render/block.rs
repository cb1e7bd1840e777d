//! Blocks.

use serde_json::Value;

use crate::cli::{
    ctl::render::{Shown, hex_bytes, is_true, list, short_hash, size, text, time},
    table::{Cell, Table, Tone},
    units,
};

/// `block head` and `block get`.
pub(crate) fn one(answer: &Value, is_colored: bool) -> Shown {
    if answer.is_null() {
        return "no block yet\n".to_string().into();
    }
    let b = &answer["block"];
    let mut t = Table::pairs();
    t.pair("height", Cell::new(text(&b["height"]), Tone::Strong));
    t.pair("hash", text(&b["hash"]));
    if !b["parentHash"].is_null() {
        t.pair("parent", text(&b["parentHash"]));
    }
    t.pair("timestamp", timestamp(&b["timestamp"]));
    // `block_head` answers without content.
    if !b["header"].is_null() || !b["data"].is_null() {
        t.pair("header", units::size(hex_bytes(&b["header"])));
        t.pair("data", units::size(hex_bytes(&b["data"])));
    }
    let da = format!(
        "header {} · data {}",
        text(&b["lastSubmittedDaHeaderHeight"]),
        text(&b["lastSubmittedDaDataHeight"])
    );
    t.pair("submitted to DA", da);
    t.pair("entry", format!("term {} · index {}", text(&answer["term"]), text(&answer["index"])));
    t.render(is_colored).into()
}

/// `1700000000000000001 (2023-11-14 …)`.
fn timestamp(value: &Value) -> String {
    let ns = text(value);
    match ns.parse::<u64>() {
        Ok(n) => format!("{ns} ({})", units::time_ms(n / 1_000_000)),
        Err(_) => ns,
    }
}

pub(crate) fn range(answer: &Value, is_colored: bool) -> Shown {
    let blocks = list(answer, "blocks");
    if blocks.is_empty() {
        return "no block at or above that height\n".to_string().into();
    }
    let mut t = Table::new(&["HEIGHT", "HASH", "TIME", "HEADER", "DATA", "TERM", "INDEX"]);
    for one in blocks {
        let b = &one["block"];
        let ms = b["timestamp"].as_str().and_then(|t| t.parse::<u64>().ok()).map(|ns| ns / 1_000_000);
        t.row([
            text(&b["height"]).into(),
            short_hash(&b["hash"]).into(),
            ms.map_or("-".into(), units::time_ms).into(),
            units::size(hex_bytes(&b["header"])).into(),
            units::size(hex_bytes(&b["data"])).into(),
            text(&one["term"]).into(),
            text(&one["index"]).into(),
        ]);
    }
    let next = match &answer["nextHeight"] {
        Value::Null => String::new(),
        height => format!("more from {height}\n"),
    };
    (t.render(is_colored) + &next).into()
}

pub(crate) fn provenance(answer: &Value, is_colored: bool) -> Shown {
    let mut t = Table::pairs();
    t.pair("height", Cell::new(text(&answer["height"]), Tone::Strong));
    t.pair("hash", text(&answer["hash"]));
    t.pair("proposed by", format!("node {}", text(&answer["proposerId"])));
    t.pair("proposed at", time(&answer["proposedAt"]));
    t.pair("applied at", time(&answer["appliedAt"]));
    t.pair("entry", format!("term {} · index {}", text(&answer["term"]), text(&answer["index"])));
    t.pair("size", format!("header {} · data {}", size(&answer["headerBytes"]), size(&answer["dataBytes"])));
    t.pair("trace", text(&answer["traceId"]));
    t.render(is_colored).into()
}

/// A waterfall of all nodes, each put right by how far its clock is from that of the node asked.
pub(crate) fn timeline(answer: &Value, is_colored: bool) -> Shown {
    // By eye: leaves room for the other columns on 100 characters.
    const BAR: i64 = 40;
    let nodes = list(answer, "nodes");
    let offset = |n: &Value| n["clockOffsetUs"].as_i64().unwrap_or(0);
    let start = |n: &Value, s: &Value| s["startUs"].as_i64().unwrap_or(0) - offset(n);
    let took = |s: &Value| s["durationUs"].as_i64().unwrap_or(0).max(0);
    let bounds = || {
        let of_node = |n: &'_ Value| -> Vec<(i64, i64)> {
            list(n, "stages").iter().map(|s| (start(n, s), start(n, s) + took(s))).collect()
        };
        nodes.iter().flat_map(of_node)
    };
    let first = bounds().map(|(from, _)| from).min().unwrap_or(0);
    let end = bounds().map(|(_, to)| to).max().unwrap_or(first);
    let whole = (end - first).max(1);
    let mut t = Table::new(&["NODE", "STAGE", "FROM", "TOOK", ""]);
    for n in nodes {
        for s in list(n, "stages") {
            let (from, took) = (start(n, s) - first, took(s));
            let blanks = usize::try_from(from * BAR / whole).unwrap_or(0);
            let bar = usize::try_from((took * BAR + whole - 1) / whole).unwrap_or(0).max(1);
            let stage = match &s["peerId"] {
                Value::Null => text(&s["stage"]),
                peer => format!("{} to {}", text(&s["stage"]), text(peer)),
            };
            t.row([
                format!("{} {}", text(&n["nodeId"]), text(&n["role"])).into(),
                stage.into(),
                format!("{from} µs").into(),
                format!("{took} µs").into(),
                format!("{}{}", " ".repeat(blanks), "█".repeat(bar)).into(),
            ]);
        }
    }
    let head = format!(
        "block {} · term {} · index {} · {whole} µs · trace {}\n",
        text(&answer["height"]),
        text(&answer["term"]),
        text(&answer["index"]),
        text(&answer["traceId"])
    );
    let unmeasured = nodes.iter().any(|n| n["clockOffsetUs"].is_null());
    let note = if unmeasured { "a clock was not compared yet: its node's times may be off\n" } else { "" };
    (head + &t.render(is_colored) + note).into()
}

/// `block propose`.
pub(crate) fn accepted(answer: &Value, is_colored: bool) -> Shown {
    let words = if is_true(&answer["duplicate"]) { "was there already" } else { "accepted" };
    let mut t = Table::pairs();
    t.pair("block", Cell::new(format!("{} {words}", text(&answer["height"])), Tone::Good));
    t.pair("hash", text(&answer["hash"]));
    t.pair("entry", format!("term {} · index {}", text(&answer["term"]), text(&answer["index"])));
    t.pair("trace", text(&answer["traceId"]));
    t.render(is_colored).into()
}

/// One item of `tail` in one line.
pub(crate) fn applied(item: &Value) -> String {
    if item["block"].is_object() {
        let b = &item["block"];
        let content = if is_true(&item["truncated"]) {
            "content left out".into()
        } else {
            units::size(hex_bytes(&b["header"]) + hex_bytes(&b["data"]))
        };
        let replayed = if is_true(&item["replayed"]) { "  replayed" } else { "" };
        return format!(
            "block {}  {}  {content}  term {} index {}{replayed}",
            text(&b["height"]),
            short_hash(&b["hash"]),
            text(&item["term"]),
            text(&item["index"])
        );
    }
    if let Some(gap) = item["gap"].as_object() {
        let get = |name: &str| gap.get(name).map_or("-".into(), text);
        return format!(
            "gap: {} items from index {} to {} were dropped, repair: {}",
            get("dropped"),
            get("fromIndex"),
            get("toIndex"),
            get("repair")
        );
    }
    if item["caughtUp"].is_object() {
        return format!(
            "caught up at height {}, index {}",
            text(&item["caughtUp"]["height"]),
            text(&item["caughtUp"]["index"])
        );
    }
    item.to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_block_with_and_without_content() {
        let head = json!({"block": {"height": 7, "hash": "0xaa", "timestamp": "1000000", "lastSubmittedDaHeaderHeight": 0, "lastSubmittedDaDataHeight": 0}, "term": 2, "index": 9});
        let shown = one(&head, false).text;
        assert!(shown.contains("timestamp        1000000 (1970-01-01 00:00:00.001Z)\n"), "{shown}");
        assert!(!shown.contains("header  "), "{shown}");
        assert_eq!(one(&Value::Null, false).text, "no block yet\n");
    }

    #[test]
    fn items_of_the_feed_in_one_line() {
        let block = json!({"block": {"height": 7, "hash": "0xaa", "header": "0x00", "data": "0x0011"}, "term": 2, "index": 9, "replayed": true});
        assert_eq!(applied(&block), "block 7  0xaa  3 B  term 2 index 9  replayed");
        assert_eq!(
            applied(&json!({"caughtUp": {"height": 7, "index": 9}})),
            "caught up at height 7, index 9"
        );
        assert!(
            applied(&json!({"gap": {"fromIndex": 1, "toIndex": 3, "dropped": 3, "repair": "replay"}}))
                .starts_with("gap: 3 items")
        );
        assert_eq!(applied(&json!({"rewound": 1})), r#"{"rewound":1}"#);
    }

    #[test]
    fn a_timeline_is_drawn_to_scale() {
        let answer = json!({"height": 7, "term": 2, "index": 9, "nodes": [
            {"nodeId": 1, "role": "leader", "clockOffsetUs": 0, "stages": [
                {"stage": "sync", "startUs": 100, "durationUs": 100}, {"stage": "apply", "startUs": 200, "durationUs": 100}]},
            {"nodeId": 2, "role": "follower", "clockOffsetUs": 5000, "stages": [{"stage": "apply", "startUs": 5200, "durationUs": 100}]}]});
        let shown = timeline(&answer, false).text;
        assert!(shown.contains(&format!("sync   0 µs    100 µs  {}\n", "█".repeat(20))), "{shown}");
        let apply = format!("apply  100 µs  100 µs  {}{}\n", " ".repeat(20), "█".repeat(20));
        assert_eq!(shown.matches(&apply).count(), 2, "a clock that is ahead is put right: {shown}");
    }
}
