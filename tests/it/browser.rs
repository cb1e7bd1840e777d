//! A real browser reads the feed.
//!
//! | test | attacks |
//! | --- | --- |
//! | an_event_source_misses_nothing_… | design 6: status, `retry`, ids and `end` as a browser takes them; `api.allowed_origins` |
//!
//! Headless Chromium, where there is one; `make browser-feed` insists on it. The page comes from a server of
//! its own, so of another origin than the node's, and reports there what its EventSource is told.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use anyhow::ensure;
use serde_json::Value;

use crate::support::{
    account::Account,
    block::Block,
    cluster::Cluster,
    config::settings,
    node::spawn_mortal,
    stream::fill,
    wait::{LATER, wait_for},
};

const RECONNECTS: usize = 10;
/// Between two reconnects.
const BLOCKS: u64 = 25;
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

const PAGE: &str = r#"<!doctype html><title>feed</title><script>
const waiting = [];
let sending = false;
// One report at a time, so that they arrive in order.
async function report(what) {
  waiting.push(what);
  if (sending) return;
  sending = true;
  while (waiting.length) await fetch("/report", { method: "POST", body: JSON.stringify(waiting.splice(0)) });
  sending = false;
}
const source = new EventSource("http://NODE/v1/applied?fromHeight=1");
source.onopen = () => report({ name: "open" });
source.onerror = () => report({ name: "error", state: source.readyState });
for (const name of ["block", "gap", "caughtUp", "end"])
  source.addEventListener(name, (e) => report({ name, id: e.lastEventId, data: JSON.parse(e.data) }));
</script>"#;

/// What the page said, in order.
type Reports = Arc<Mutex<Vec<Value>>>;

/// Serves the page and takes its reports; its address.
fn serve_page(node: &str, reports: &Reports) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("bound").to_string();
    let page = PAGE.replace("NODE", node);
    let reports = reports.clone();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (page, reports) = (page.clone(), reports.clone());
            // A browser that leaves breaks its connections.
            thread::spawn(move || answer(stream, &page, &reports).ok());
        }
    });
    addr
}

fn answer(mut stream: TcpStream, page: &str, reports: &Reports) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut line, mut length) = (String::new(), 0);
    reader.read_line(&mut line)?;
    let is_report = line.starts_with("POST /report ");
    let is_page = line.starts_with("GET / ");
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        match line.trim().to_ascii_lowercase().split_once(':') {
            Some(("content-length", n)) => length = n.trim().parse().unwrap_or(0),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if is_report && let Ok(Value::Array(said)) = serde_json::from_slice(&body) {
        reports.lock().expect("no holder of the lock panics").extend(said);
    }
    let (status, body) = if is_page { ("200 OK", page) } else { ("204 No Content", "") };
    let length = body.len();
    let head = "Content-Type: text/html\r\nConnection: close";
    write!(stream, "HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// Stands between browser and node, and cuts their connections when it is asked to.
struct Wire {
    addr: String,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
    fn to(node: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("bound").to_string();
        let open = Arc::<Mutex<Vec<TcpStream>>>::default();
        let (node, kept) = (node.to_owned(), open.clone());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // A node that is down refuses; so does the wire, by closing.
                let Ok(server) = TcpStream::connect(&node) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
                    thread::spawn(move || pass(from, to));
                }
                kept.lock().expect("no holder of the lock panics").extend([client, server]);
            }
        });
        Self { addr, open }
    }

    fn cut(&self) {
        for stream in self.open.lock().expect("no holder of the lock panics").drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    // Either end may break off: then so does the other.
    let _ = std::io::copy(&mut from, &mut to);
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn browser() -> Option<&'static str> {
    let answers = |name: &&str| {
        let version =
            Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|exit| exit.success())
    };
    BROWSERS.into_iter().find(|name| answers(name))
}

#[test]
fn an_event_source_misses_nothing_over_ten_reconnects() {
    let Some(browser) = browser() else {
        #[expect(clippy::print_stderr, reason = "who reads the tests' output must know what was left out")]
        {
            eprintln!("left out: no chromium on this machine (Debian's package chromium)");
        }
        return;
    };
    let reports = Reports::default();
    let mut cluster = Cluster::new(3, settings([]));
    let wire = Wire::to(&cluster.nodes[0].api);
    let page = serve_page(&wire.addr, &reports);
    let origin = toml::Value::Array(vec![format!("http://{page}").into()]);
    cluster.settings = settings([("api.allowed_origins", origin)]);
    cluster.write_configs();
    cluster.allow_deaths();
    cluster.start();

    let profile = tempfile::tempdir().expect("writable");
    let mut command = Command::new(browser);
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-sync", "--disable-component-update"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("http://{page}/"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut running = spawn_mortal(command);

    let mut top = 0;
    for round in 0..=RECONNECTS {
        let leader = cluster.leader();
        let more: Vec<Block> = (top + 1..=top + BLOCKS).map(|h| Block::new(h, "browser")).collect();
        fill(&cluster.node(leader).api.clone(), &more);
        top += BLOCKS;
        let n_opened = wait_for("the page has every block so far", LATER, || {
            let said = reports.lock().expect("no holder of the lock panics");
            let last =
                said.iter().rev().find(|r| r["name"] == "block").map(|r| &r["data"]["block"]["height"]);
            ensure!(last.and_then(Value::as_u64) == Some(top), "the last one is {last:?}");
            Ok(said.iter().filter(|r| r["name"] == "open").count())
        });
        if round == RECONNECTS {
            break;
        }
        match round % 3 {
            0 => wire.cut(),
            1 => {
                let (exit, _) = cluster.nodes[0].stop(LATER);
                assert_eq!(exit.code(), Some(0));
                cluster.nodes[0].start();
            }
            _ => {
                cluster.nodes[0].kill();
                cluster.nodes[0].start();
            }
        }
        wait_for("the page comes back by itself", LATER, || {
            let said = reports.lock().expect("no holder of the lock panics");
            ensure!(n_opened < said.iter().filter(|r| r["name"] == "open").count());
            Ok(())
        });
    }
    // Its children go with it.
    running.kill().expect("it runs");
    running.wait().expect("a child can be waited for");

    let said = reports.lock().expect("no holder of the lock panics").clone();
    let mut account = Account::default();
    for report in &said {
        match report["name"].as_str() {
            Some("open") => {}
            Some("error") => assert_eq!(report["state"], 0, "it is not to give up"),
            Some("end") => {}
            _ => {
                account.take(&report["data"]);
                assert_eq!(report["id"], account.position.expect("it moved").to_string(), "{report}");
            }
        }
    }
    assert_eq!(account.heights(), (1..=top).collect::<Vec<_>>(), "each once, in order");
    let n_opened = said.iter().filter(|r| r["name"] == "open").count();
    assert!(RECONNECTS < n_opened, "it opened {n_opened} times");
    assert!(said.iter().any(|r| r["name"] == "end"), "stops are told");
    cluster.leader();
    cluster.end();
}
