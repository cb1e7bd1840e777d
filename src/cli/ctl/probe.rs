//! `live` and `ready`: the probes, as exit codes.

use std::time::Duration;

use hyper::StatusCode;
use serde_json::Value;
use tokio::time::Instant;

use crate::cli::ctl::plan::PATIENCE;
use crate::cli::ctl::{Context, acts, curl, render};
use crate::cli::exit::{self, Failure};
use crate::cli::out;
use crate::cli::table::{Cell, Table, Tone};
use crate::client::cluster::{Cluster, Target};
use crate::client::endpoint::Endpoint;
use crate::client::http::{Answer, Ask, HttpError};

/// Between two looks of `ready --wait`.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The node to probe. A probe answers before raft does, so the first endpoint that accepts is taken.
async fn probe(cx: &Context, cluster: &Cluster, path: &str) -> Result<(Endpoint, Answer), Failure> {
    let end = Instant::now() + cluster.timeout();
    let within = || end.saturating_duration_since(Instant::now());
    if let Some(node_id) = cx.flags.node {
        let endpoint = cluster.find(Target::Node(node_id), end).await?;
        let answer = cluster.http().ask(&endpoint, Ask::get(path), within()).await;
        return Ok((endpoint, answer.map_err(failed)?));
    }
    let mut tried = Vec::new();
    for (i, endpoint) in cx.endpoints.iter().enumerate() {
        // One that hangs must leave time for the others.
        let share = within() / (cx.endpoints.len() - i) as u32;
        match cluster.http().ask(endpoint, Ask::get(path), share).await {
            Ok(answer) => return Ok((endpoint.clone(), answer)),
            Err(e) => tried.push(e.to_string()),
        }
    }
    Err(Failure::failed(format!("no endpoint answers: {}", tried.join("; "))))
}

fn failed(error: HttpError) -> Failure {
    Failure::failed(error.to_string())
}

async fn print_curl(cx: &Context, path: &str) -> Result<u8, Failure> {
    let target = cx.flags.node.map_or(Target::Any, Target::Node);
    let endpoint = acts::endpoint_for_curl(cx, target).await;
    out::print_line(&curl::get(&endpoint, "-sS", path, cx.token_file()))?;
    Ok(exit::DONE)
}

pub(crate) async fn live(cx: &Context) -> Result<u8, Failure> {
    if cx.flags.curl {
        return print_curl(cx, "/livez").await;
    }
    let (endpoint, answer) = probe(cx, &cx.cluster(PATIENCE), "/livez").await?;
    let is_live = answer.status == StatusCode::OK;
    let word = if is_live { "live" } else { "not live" };
    let text = if cx.flags.json {
        format!(r#"{{"endpoint":"{endpoint}","live":{is_live}}}"#)
    } else {
        format!("{endpoint} is {word} (HTTP {})", answer.status.as_u16())
    };
    out::print_line(&text)?;
    Ok(if is_live { exit::DONE } else { exit::FAILED })
}

pub(crate) async fn ready(cx: &Context, wait: Option<Duration>) -> Result<u8, Failure> {
    const PATH: &str = "/readyz?verbose";
    if cx.flags.curl {
        return print_curl(cx, PATH).await;
    }
    let cluster = cx.cluster(PATIENCE);
    let end = wait.map(|w| Instant::now() + w);
    loop {
        let probed = probe(cx, &cluster, PATH).await;
        let is_over = end.is_none_or(|end| end <= Instant::now() + LOOK_AGAIN);
        match probed {
            Ok((endpoint, answer)) if answer.status == StatusCode::OK || is_over => {
                return show(cx, &endpoint, &answer);
            }
            Err(failure) if is_over || failure.code == exit::USAGE => return Err(failure),
            Ok(_) | Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

fn show(cx: &Context, endpoint: &Endpoint, answer: &Answer) -> Result<u8, Failure> {
    let is_ready = answer.status == StatusCode::OK;
    let code = if is_ready { exit::DONE } else { exit::FAILED };
    let body = String::from_utf8_lossy(&answer.body);
    if cx.flags.json {
        out::print_line(body.trim())?;
        return Ok(code);
    }
    let word = if is_ready { "ready" } else { "not ready" };
    let tone = if is_ready { Tone::Good } else { Tone::Bad };
    let mut text = format!("{endpoint} is {}\n", tone.paint(word, cx.is_colored));
    let checks: Value = serde_json::from_str(&body).unwrap_or(Value::Null);
    text += &table(&checks, cx.is_colored);
    out::print(&text)?;
    Ok(code)
}

fn table(checks: &Value, is_colored: bool) -> String {
    let mut t = Table::new(&["CHECK", "OK", "DETAIL"]);
    for c in checks["checks"].as_array().map_or(&[][..], Vec::as_slice) {
        let is_ok = c["ok"].as_bool().unwrap_or(false);
        let ok = Cell::new(if is_ok { "yes" } else { "no" }, if is_ok { Tone::Good } else { Tone::Bad });
        t.row([render::text(&c["name"]).into(), ok, render::text(&c["detail"]).into()]);
    }
    if t.is_empty() { String::new() } else { t.render(is_colored) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn checks_in_a_table() {
        let checks = json!({"ok": false, "checks": [{"name": "leader", "ok": false, "detail": "none is known", "since": 1}]});
        assert_eq!(table(&checks, false), "CHECK   OK  DETAIL\nleader  no  none is known\n");
        assert_eq!(table(&Value::Null, false), "");
    }
}
