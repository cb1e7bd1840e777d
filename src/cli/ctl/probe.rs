//! `live` and `ready`: the probes, as exit codes.

use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use serde::Deserialize;
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
use crate::client::rpc;

/// Between two looks of `ready --wait`.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Why an endpoint is taken for neither live nor ready.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("it does not answer ({why})")]
    Silent { why: String, is_nobody_there: bool },
    /// Any web server may listen there.
    #[error(
        "what answers is no blockraft node, or refuses the question: HTTP {status}{}",
        rpc::excerpt(body)
    )]
    Foreign { status: StatusCode, body: Bytes },
}

async fn ask(cluster: &Cluster, endpoint: &Endpoint, path: &str, end: Instant) -> Result<Answer, ProbeError> {
    let within = end.saturating_duration_since(Instant::now());
    cluster.http().ask(endpoint, Ask::get(path), within).await.map_err(|e| ProbeError::Silent {
        // Without the endpoint, which stands before it.
        why: e.to_string().trim_start_matches(&format!("{endpoint}: ")).to_owned(),
        is_nobody_there: matches!(e, HttpError::NotSent { .. }),
    })
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
    let (value, failure) = match find_live(cx, &cx.cluster(PATIENCE)).await {
        Ok(endpoint) if !cx.flags.json => {
            out::print_line(&format!("{endpoint} is live (HTTP 200)"))?;
            return Ok(exit::DONE);
        }
        Ok(endpoint) => (json!({"endpoint": endpoint.as_str(), "live": true}), None),
        Err(failure) => {
            let only = match &cx.endpoints[..] {
                [only] if cx.flags.node.is_none() => Some(only.as_str()),
                _ => None,
            };
            (json!({"endpoint": only, "live": false, "error": failure.message}), Some(failure))
        }
    };
    if cx.flags.json {
        out::print_line(&value.to_string())?;
    }
    failure.map_or(Ok(exit::DONE), Err)
}

/// The first that is live. A probe is answered before raft is up, so nothing else is asked of it.
async fn find_live(cx: &Context, cluster: &Cluster) -> Result<Endpoint, Failure> {
    let end = Instant::now() + cluster.timeout();
    let asked = match cx.flags.node {
        Some(node_id) => vec![cluster.find(Target::Node(node_id), end).await?],
        None => cx.endpoints.clone(),
    };
    let mut tried = Vec::new();
    for (i, endpoint) in asked.iter().enumerate() {
        // One that hangs must leave time for the others.
        let left = end.saturating_duration_since(Instant::now());
        let share = Instant::now() + left / (asked.len() - i) as u32;
        match ask(cluster, endpoint, "/livez", share).await.and_then(check_live) {
            Ok(()) => return Ok(endpoint.clone()),
            Err(e) => tried.push(format!("{endpoint}: {e}")),
        }
    }
    Err(Failure::failed(format!("not live: {}{}", tried.join("; "), cx.flags.endpoints.hint())))
}

fn check_live(answer: Answer) -> Result<(), ProbeError> {
    let Answer { status, body } = answer;
    if status == StatusCode::OK && body.trim_ascii() == LIVE {
        return Ok(());
    }
    Err(ProbeError::Foreign { status, body })
}

/// What a node that is live answers.
const LIVE: &[u8] = b"ok";

/// What one endpoint said when it was asked whether it is ready.
struct Probed {
    endpoint: Endpoint,
    answer: Result<Readiness, ProbeError>,
}

#[derive(Debug)]
struct Readiness {
    is_ready: bool,
    /// The answer as it came.
    body: String,
}

impl TryFrom<Answer> for Readiness {
    type Error = ProbeError;

    fn try_from(Answer { status, body }: Answer) -> Result<Self, ProbeError> {
        #[derive(Deserialize)]
        struct Told {
            ok: bool,
            #[serde(rename = "checks")]
            _checks: Vec<Value>,
        }
        match serde_json::from_slice::<Told>(&body) {
            Ok(told) if told.ok == (status == StatusCode::OK) => {
                Ok(Self { is_ready: told.ok, body: String::from_utf8_lossy(&body).trim().to_owned() })
            }
            Ok(_) | Err(_) => Err(ProbeError::Foreign { status, body }),
        }
    }
}

impl Probed {
    fn is_ready(&self) -> bool {
        self.answer.as_ref().is_ok_and(|r| r.is_ready)
    }

    fn is_nobody_there(&self) -> bool {
        matches!(self.answer, Err(ProbeError::Silent { is_nobody_there: true, .. }))
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
            Err(failure) if is_over || failure.code == exit::USAGE => {
                if cx.flags.json {
                    out::print_line(&json!({"ok": false, "error": failure.message}).to_string())?;
                }
                return Err(failure);
            }
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
        let answer = ask(cluster, &endpoint, READYZ, end).await.and_then(Readiness::try_from);
        Probed { endpoint, answer }
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
            Err(e) => text += &format!("{endpoint} is {word}: {e}\n"),
        }
    }
    text
}

fn as_json(probed: &[Probed]) -> Value {
    let rows: Vec<Value> = probed
        .iter()
        .map(|Probed { endpoint, answer }| match answer {
            Ok(r) => {
                let body: Value = serde_json::from_str(&r.body).unwrap_or(Value::Null);
                json!({"endpoint": endpoint.as_str(), "ok": r.is_ready, "checks": body["checks"]})
            }
            Err(e) => json!({"endpoint": endpoint.as_str(), "ok": false, "error": e.to_string()}),
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

    fn probed(endpoint: &str, answer: Result<&str, ProbeError>) -> Probed {
        let status = |body: &str| if body.contains(r#""ok":true"#) { 200 } else { 503 };
        let answer = answer.and_then(|body| Readiness::try_from(said(status(body), body)));
        Probed { endpoint: endpoint.parse().expect("well-formed"), answer }
    }

    fn said(status: u16, body: &str) -> Answer {
        let status = StatusCode::from_u16(status).expect("a status");
        Answer { status, body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    fn refused() -> ProbeError {
        ProbeError::Silent { why: "connection refused".into(), is_nobody_there: true }
    }

    fn hung() -> ProbeError {
        ProbeError::Silent { why: "no answer within 1s".into(), is_nobody_there: false }
    }

    #[test]
    fn a_web_server_is_neither_live_nor_ready() {
        assert!(check_live(said(200, "ok\n")).is_ok());
        for (status, body) in [(200, "<html>hello"), (200, ""), (503, "ok\n")] {
            assert!(check_live(said(status, body)).is_err(), "{status} {body}");
        }
        let told = check_live(said(200, "<html>\nhello")).expect_err("foreign").to_string();
        assert!(told.ends_with("HTTP 200 OK: <html> hello"), "{told}");
        for (status, body) in [
            (200, "<html>"),
            (200, "{}"),
            (200, r#"{"ok":true}"#),
            (200, r#"{"ok":false,"checks":[]}"#),
            (404, r#"{"ok":true,"checks":[]}"#),
        ] {
            assert!(Readiness::try_from(said(status, body)).is_err(), "{status} {body}");
        }
        let all = [probed("a:1", Err(check_live(said(200, "<html>")).expect_err("foreign")))];
        assert!(as_text(&all, false).starts_with("a:1 is not ready: what answers is no blockraft node"));
        assert_eq!(as_json(&all)["ok"], false);
    }

    #[test]
    fn every_endpoint_counts_and_those_that_are_not_ready_are_told() {
        let all = [
            probed("a:1", Ok(r#"{"ok":true,"checks":[]}"#)),
            probed("b:2", Ok(r#"{"ok":false,"checks":[{"name":"leader","ok":false,"detail":"none"}]}"#)),
            probed("c:3", Err(hung())),
        ];
        assert_eq!(
            as_text(&all, false),
            "a:1 is ready\nb:2 is not ready\nCHECK   OK  DETAIL\nleader  no  none\n\
             c:3 is not ready: it does not answer (no answer within 1s)\n"
        );
        let told = as_json(&all);
        assert_eq!((&told["ok"], &told["nodes"][0]["ok"]), (&json!(false), &json!(true)));
        assert_eq!(
            told["nodes"][2],
            json!({"endpoint": "c:3", "ok": false, "error": "it does not answer (no answer within 1s)"})
        );
        assert_eq!(as_json(&all[..1])["ok"], true);
    }

    #[test]
    fn of_the_default_endpoints_those_count_where_somebody_listens() {
        let names = |probed: Vec<Probed>| {
            listening(probed).iter().map(|p| p.endpoint.to_string()).collect::<Vec<_>>().join(" ")
        };
        let ready = r#"{"ok":true,"checks":[]}"#;
        assert_eq!(names(vec![probed("a:1", Err(refused())), probed("b:2", Ok(ready))]), "b:2");
        assert_eq!(names(vec![probed("a:1", Err(hung())), probed("b:2", Ok(ready))]), "a:1 b:2");
        assert_eq!(names(vec![probed("a:1", Err(refused())), probed("b:2", Err(refused()))]), "a:1 b:2");
    }
}
