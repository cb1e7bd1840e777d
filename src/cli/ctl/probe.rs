//! `live` and `ready`: the probes, as exit codes.

use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value, json, value::RawValue};
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

/// What one endpoint said when it was asked whether it is ready.
struct Probed {
    endpoint: Endpoint,
    answer: Result<Readiness, HttpError>,
}

struct Readiness {
    is_ready: bool,
    /// As the node wrote them.
    body: String,
}

impl From<Answer> for Readiness {
    fn from(answer: Answer) -> Self {
        let body = String::from_utf8_lossy(&answer.body).trim().to_owned();
        Self { is_ready: answer.status == StatusCode::OK, body }
    }
}

impl Probed {
    fn is_ready(&self) -> bool {
        self.answer.as_ref().is_ok_and(|r| r.is_ready)
    }

    fn is_nobody_there(&self) -> bool {
        matches!(self.answer, Err(HttpError::NotSent { .. }))
    }
}

const READYZ: &str = "/readyz?verbose";

pub(crate) async fn ready(cx: &Context, wait: Option<Duration>) -> Result<u8, Failure> {
    if cx.flags.curl {
        return ready_curl(cx).await;
    }
    let cluster = cx.cluster(PATIENCE);
    let end = wait.map(|w| Instant::now() + w);
    loop {
        let patience = Instant::now() + cluster.timeout();
        // The last look takes no longer than the wait.
        let looked = look(cx, &cluster, end.map_or(patience, |end| end.min(patience))).await;
        let is_over = end.is_none_or(|end| end <= Instant::now() + LOOK_AGAIN);
        match looked {
            Ok(probed) if is_over || probed.iter().all(Probed::is_ready) => return show(cx, &probed),
            Err(failure) if is_over || failure.code == exit::USAGE => return Err(failure),
            Ok(_) | Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

async fn ready_curl(cx: &Context) -> Result<u8, Failure> {
    if cx.flags.node.is_some() {
        return print_curl(cx, READYZ).await;
    }
    for endpoint in &cx.endpoints {
        out::print_line(&curl::get(endpoint, "-sS", READYZ, cx.token_file()))?;
    }
    Ok(exit::DONE)
}

/// All that are asked, at the same time.
async fn look(cx: &Context, cluster: &Cluster, end: Instant) -> Result<Vec<Probed>, Failure> {
    let asked = match cx.flags.node {
        Some(node_id) => vec![cluster.find(Target::Node(node_id), end).await?],
        None => cx.endpoints.clone(),
    };
    let probed = asked.into_iter().map(|endpoint| async move {
        let within = end.saturating_duration_since(Instant::now());
        let answer = cluster.http().ask(&endpoint, Ask::get(READYZ), within).await;
        Probed { endpoint, answer: answer.map(Readiness::from) }
    });
    let probed = futures::future::join_all(probed).await;
    Ok(if cx.flags.node.is_none() && cx.flags.endpoints.is_default() { listening(probed) } else { probed })
}

/// Nobody said that there is a node at each default endpoint: those count at which something listens. All of
/// them, when that is none.
fn listening(probed: Vec<Probed>) -> Vec<Probed> {
    if probed.iter().all(Probed::is_nobody_there) {
        return probed;
    }
    probed.into_iter().filter(|p| !p.is_nobody_there()).collect()
}

fn show(cx: &Context, probed: &[Probed]) -> Result<u8, Failure> {
    let text = match probed {
        // As the node gives it.
        [Probed { answer: Ok(readiness), .. }] if cx.flags.json => format!("{}\n", readiness.body),
        several if cx.flags.json => {
            let raw = RawValue::from_string(as_json(several).to_string()).expect("a value is JSON");
            format!("{}\n", out::pretty(&raw))
        }
        probed => as_text(probed, cx.is_colored),
    };
    out::print(&text)?;
    let waited_for: Vec<&str> =
        probed.iter().filter(|p| !p.is_ready()).map(|p| p.endpoint.as_str()).collect();
    match (waited_for.len(), probed.len()) {
        (0, _) => Ok(exit::DONE),
        (_, 1) => Ok(exit::FAILED),
        _ => Err(Failure::failed(format!("not ready: {}", waited_for.join(", ")))),
    }
}

/// A single one is told with all of its checks; of several, only those that are not ready are.
fn as_text(probed: &[Probed], is_colored: bool) -> String {
    let mut text = String::new();
    for Probed { endpoint, answer } in probed {
        let (word, tone) = match answer {
            Ok(r) if r.is_ready => ("ready", Tone::Good),
            Ok(_) | Err(_) => ("not ready", Tone::Bad),
        };
        let word = tone.paint(word, is_colored);
        match answer {
            Ok(readiness) => {
                text += &format!("{endpoint} is {word}\n");
                if probed.len() == 1 || !readiness.is_ready {
                    let checks = serde_json::from_str(&readiness.body).unwrap_or(Value::Null);
                    text += &table(&checks, is_colored);
                }
            }
            Err(e) => text += &format!("{endpoint} is {word}: it does not answer ({})\n", why(endpoint, e)),
        }
    }
    text
}

/// Without the endpoint, which stands before it.
fn why(endpoint: &Endpoint, error: &HttpError) -> String {
    error.to_string().trim_start_matches(&format!("{endpoint}: ")).to_owned()
}

fn as_json(probed: &[Probed]) -> Value {
    let rows: Vec<Value> = probed
        .iter()
        .map(|Probed { endpoint, answer }| match answer {
            Ok(r) => {
                let body: Value = serde_json::from_str(&r.body).unwrap_or(Value::Null);
                json!({"endpoint": endpoint.as_str(), "ok": r.is_ready, "checks": body["checks"]})
            }
            Err(e) => json!({"endpoint": endpoint.as_str(), "ok": false, "error": why(endpoint, e)}),
        })
        .collect();
    json!({"ok": probed.iter().all(Probed::is_ready), "nodes": rows})
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

    fn probed(endpoint: &str, answer: Result<&str, fn(Endpoint) -> HttpError>) -> Probed {
        let endpoint: Endpoint = endpoint.parse().expect("well-formed");
        let answer = match answer {
            Ok(body) => Ok(Readiness { is_ready: body.contains(r#""ok":true"#), body: body.into() }),
            Err(error) => Err(error(endpoint.clone())),
        };
        Probed { endpoint, answer }
    }

    const REFUSED: fn(Endpoint) -> HttpError =
        |endpoint| HttpError::NotSent { endpoint, why: "connection refused".into() };
    const HUNG: fn(Endpoint) -> HttpError =
        |endpoint| HttpError::TimedOut { endpoint, after: Duration::from_secs(1) };

    #[test]
    fn every_endpoint_counts_and_those_that_are_not_ready_are_told() {
        let all = [
            probed("a:1", Ok(r#"{"ok":true,"checks":[]}"#)),
            probed("b:2", Ok(r#"{"ok":false,"checks":[{"name":"leader","ok":false,"detail":"none"}]}"#)),
            probed("c:3", Err(HUNG)),
        ];
        assert_eq!(
            as_text(&all, false),
            "a:1 is ready\nb:2 is not ready\nCHECK   OK  DETAIL\nleader  no  none\n\
             c:3 is not ready: it does not answer (no answer within 1s)\n"
        );
        let told = as_json(&all);
        assert_eq!((&told["ok"], &told["nodes"][0]["ok"]), (&json!(false), &json!(true)));
        assert_eq!(told["nodes"][2], json!({"endpoint": "c:3", "ok": false, "error": "no answer within 1s"}));
        assert_eq!(as_json(&all[..1])["ok"], true);
    }

    #[test]
    fn of_the_default_endpoints_those_count_where_somebody_listens() {
        let names = |probed: Vec<Probed>| {
            listening(probed).iter().map(|p| p.endpoint.to_string()).collect::<Vec<_>>().join(" ")
        };
        let ready = r#"{"ok":true}"#;
        assert_eq!(names(vec![probed("a:1", Err(REFUSED)), probed("b:2", Ok(ready))]), "b:2");
        assert_eq!(names(vec![probed("a:1", Err(HUNG)), probed("b:2", Ok(ready))]), "a:1 b:2");
        assert_eq!(names(vec![probed("a:1", Err(REFUSED)), probed("b:2", Err(REFUSED))]), "a:1 b:2");
    }
}
