//! History, audit, settings, and the verdicts of what verifies.

use serde_json::Value;

use crate::cli::{
    ctl::render::{Shown, is_true, list, more, span, text, time},
    exit,
    table::{Cell, Table, Tone},
};

pub(crate) fn history(answer: &Value, is_colored: bool) -> Shown {
    let events = list(answer, "events");
    let has_nodes = events.iter().any(|e| !e["nodeId"].is_null());
    let mut titles = vec!["ID", "AT", "KIND", "TERM", "LEADER", "CAUSE", "TOOK", "DETAIL"];
    if has_nodes {
        titles.insert(0, "NODE");
    }
    let mut t = Table::new(&titles);
    for e in events {
        let mut row: Vec<Cell> = vec![
            text(&e["id"]).into(),
            time(&e["at"]).into(),
            text(&e["kind"]).into(),
            text(&e["term"]).into(),
            text(&e["leaderId"]).into(),
            text(&e["cause"]).into(),
            span(&e["durationMs"]).into(),
            detail(&e["detail"]).into(),
        ];
        if has_nodes {
            row.insert(0, text(&e["nodeId"]).into());
        }
        t.row(row);
    }
    empty_or(t, "no events", is_colored, &more(answer))
}

/// Fields of an event's own, as `name=value`.
fn detail(detail: &Value) -> String {
    match detail.as_object() {
        Some(map) => map.iter().map(|(k, v)| format!("{k}={}", text(v))).collect::<Vec<_>>().join(" "),
        None => text(detail),
    }
}

pub(crate) fn audit(answer: &Value, is_colored: bool) -> Shown {
    let mut t = Table::new(&["NODE", "ID", "AT", "WHO", "FROM", "METHOD", "OUTCOME", "PARAMS"]);
    for r in list(answer, "records") {
        let outcome = match r["reason"].as_str() {
            Some(reason) => format!("{}: {reason}", text(&r["outcome"])),
            None => text(&r["outcome"]),
        };
        let tone = match r["outcome"].as_str() {
            Some("ok") => Tone::Good,
            Some("refused" | "unknown") => Tone::Warn,
            Some(_) | None => Tone::Plain,
        };
        t.row([
            text(&r["nodeId"]).into(),
            text(&r["id"]).into(),
            time(&r["at"]).into(),
            text(&r["who"]).into(),
            text(&r["remoteAddr"]).into(),
            text(&r["method"]).into(),
            Cell::new(outcome, tone),
            detail(&r["params"]).into(),
        ]);
    }
    empty_or(t, "no records", is_colored, &more(answer))
}

pub(crate) fn empty_or(table: Table, nothing: &str, is_colored: bool, tail: &str) -> Shown {
    if table.is_empty() {
        return format!("{nothing}\n").into();
    }
    (table.render(is_colored) + tail).into()
}

/// `audit verify` and `snapshot verify`: problems are exit code 1.
pub(crate) fn verdict(answer: &Value, is_colored: bool) -> Shown {
    let problems = list(answer, "problems");
    if is_true(&answer["ok"]) && problems.is_empty() {
        let checked = if answer["checked"].is_null() {
            String::new()
        } else {
            format!(": {} checked", answer["checked"])
        };
        return format!("{}{checked}\n", Tone::Good.paint("ok", is_colored)).into();
    }
    let mut t = Table::new(&["WHERE", "PROBLEM"]);
    for p in problems {
        let place = if p["file"].is_null() { &p["id"] } else { &p["file"] };
        t.row([text(place).into(), Cell::new(text(&p["what"]), Tone::Bad)]);
    }
    Shown { text: t.render(is_colored), code: exit::FAILED }
}

/// The verdict of each node, under its id.
pub(crate) fn verdicts(nodes: &[(u64, Value)], is_colored: bool) -> Shown {
    let mut all = Shown { text: String::new(), code: exit::DONE };
    for (node_id, answer) in nodes {
        let one = verdict(answer, is_colored);
        let gap = if one.code == exit::DONE { ' ' } else { '\n' };
        all.text += &format!("node {node_id}:{gap}{}", one.text);
        all.code = all.code.max(one.code);
    }
    all
}

pub(crate) fn settings(answer: &Value, is_colored: bool) -> Shown {
    let mut t = Table::new(&["SETTING", "VALUE"]);
    if let Some(map) = answer["settings"].as_object() {
        for (key, value) in map {
            t.row([key.into(), text(value).into()]);
        }
    }
    format!("{}set by entry {}\n", t.render(is_colored), text(&answer["index"])).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn history_of_one_node_and_of_all() {
        let event = json!({"id": 3, "at": 0, "kind": "leadership", "term": 2, "leaderId": 1, "cause": "election", "detail": {"votes": 2}});
        let shown = history(&json!({"events": [event], "nextId": 4}), false).text;
        assert!(shown.starts_with("ID  AT"), "{shown}");
        assert!(shown.ends_with("votes=2\nmore from --from-id 4\n"), "{shown}");
        let mut of_node = event;
        of_node["nodeId"] = 2.into();
        assert!(history(&json!({"events": [of_node]}), false).text.starts_with("NODE"));
        assert_eq!(history(&json!({"events": []}), false).text, "no events\n");
    }

    #[test]
    fn problems_are_exit_code_1() {
        assert_eq!(
            verdict(&json!({"ok": true, "checked": 12, "problems": []}), false).text,
            "ok: 12 checked\n"
        );
        let bad = verdict(&json!({"ok": false, "problems": [{"file": "x.sst", "what": "checksum"}]}), false);
        assert_eq!((bad.code, bad.text.as_str()), (exit::FAILED, "WHERE  PROBLEM\nx.sst  checksum\n"));
        let answers = [
            (1, json!({"ok": true, "checked": 12, "problems": []})),
            (3, json!({"ok": false, "problems": [{"id": 7, "what": "hash"}]})),
        ];
        let all = verdicts(&answers, false);
        assert_eq!(all.text, "node 1: ok: 12 checked\nnode 3:\nWHERE  PROBLEM\n    7  hash\n");
        assert_eq!(all.code, exit::FAILED);
    }
}
