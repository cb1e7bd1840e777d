//! A real Prometheus scrapes three nodes.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_real_server_stores_every_line_… | promise 7: no series is lost on its way, in either format, to either of two scrapers |
//!
//! Debian's package `prometheus`, where there is one; CI has it. `up` proves little: a server drops a doubled
//! series without a word, so lines, stored samples and stored values are held against each other.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::support::{
    NodeId,
    block::Block,
    cluster::Cluster,
    config::patient,
    exposition::Scrape,
    http,
    node::spawn_mortal,
    otlp::Receiver,
    ports,
    stream::fill,
    wait::{LATER, wait_for},
};

/// Two scrapers that take what the server prefers, and one that is given the classic text.
const JOBS: [&str; 3] = ["one", "two", "text"];

/// A server of its own, gone with the test.
struct Prometheus {
    addr: String,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    fn start(config: &str) -> Self {
        let dir = tempfile::tempdir().expect("writable");
        let path = dir.path().join("prometheus.yml");
        std::fs::write(&path, config).expect("writable");
        let addr = ports::free_addr();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={addr}"))
            .args(["--enable-feature=exemplar-storage", "--log.level=error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self { addr, child: spawn_mortal(command), _dir: dir }
    }

    fn get(&self, path: &str) -> anyhow::Result<Value> {
        let answer = http::request(&self.addr, "GET", path, &[], b"")?;
        let mut answer = answer.json().with_context(|| format!("{path}: {}", answer.text()))?;
        ensure!(answer["status"] == "success", "{path}: {answer}");
        Ok(answer["data"].take())
    }

    /// The value of each series that an expression gives, by job and node.
    fn query(&self, expression: &str) -> anyhow::Result<Vec<(String, NodeId, f64)>> {
        let data = self.get(&format!("/api/v1/query?query={}", escaped(expression)))?;
        let rows = data["result"].as_array().context("no result")?;
        let row = |r: &Value| {
            let label = |name: &str| r["metric"][name].as_str().map(str::to_owned);
            let node = label("node").and_then(|n| n.parse().ok()).context("no node")?;
            let value = r["value"][1].as_str().and_then(|v| v.parse().ok()).context("no value")?;
            Ok((label("job").context("no job")?, node, value))
        };
        rows.iter().map(row).collect()
    }

    /// As [`Prometheus::query`], where every job has the same value of every node.
    fn value_of(&self, expression: &str, want: impl Fn(NodeId) -> f64) -> anyhow::Result<()> {
        let rows = self.query(expression)?;
        let keys: BTreeSet<_> = rows.iter().map(|(job, node, _)| (job.clone(), *node)).collect();
        ensure!(keys.len() == JOBS.len() * 3 && rows.len() == keys.len(), "{expression}: {rows:?}");
        for (job, node, value) in rows {
            let want = want(node);
            ensure!(value == want, "{expression} of node {node} is {value} to job {job}, not {want}");
        }
        Ok(())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn escaped(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

/// Passes `/NODE/metrics` on without the headers of who asks: so the answer is the classic text.
fn text_proxy(nodes: Vec<(NodeId, String)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("bound").to_string();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // Who asks may go away.
            pass(stream, &nodes).ok();
        }
    });
    addr
}

fn pass(mut stream: TcpStream, nodes: &[(NodeId, String)]) -> anyhow::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().context("no request")??;
    while !lines.next().context("no end")??.is_empty() {}
    let id: NodeId = first.split('/').nth(1).and_then(|id| id.parse().ok()).context("no node")?;
    let (_, api) = nodes.iter().find(|(node, _)| *node == id).context("an unknown node")?;
    let answer = http::request(api, "GET", "/metrics", &[], b"")?;
    let (media, n) = (answer.header("content-type").unwrap_or_default(), answer.body.len());
    ensure!(media.starts_with("text/plain"), "{media}");
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nContent-Length: {n}\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(&answer.body)?;
    Ok(())
}

fn config(cluster: &Cluster, proxy: &str) -> String {
    let mut jobs = String::new();
    for job in JOBS {
        jobs += &format!("- job_name: {job}\n  static_configs:\n");
        for (id, api) in cluster.endpoints() {
            let (target, path) = match job {
                "text" => (proxy, format!("/{id}/metrics")),
                _ => (api.as_str(), "/metrics".to_owned()),
            };
            let labels = format!("{{node: '{id}', __metrics_path__: '{path}'}}");
            jobs += &format!("  - {{targets: ['{target}'], labels: {labels}}}\n");
        }
    }
    format!("global: {{scrape_interval: 2s, scrape_timeout: 2s}}\nscrape_configs:\n{jobs}")
}

/// Lines with a value.
fn n_samples(text: &str) -> usize {
    text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).count()
}

/// A hundred names for one label: all that is legal in a name and looks like something else.
fn hostile() -> Vec<String> {
    let words = "__name__ le job instance node subscriber reason NaN Inf -Inf nan -0 0 00 1e5 0x1F .5 5. \
        true null None . .. ... - -- --- _ __ ._- WS Sse INTERNAL ws. sse- _OTHER a A a.b a-b \
        a_b EOF HELP TYPE counter _total _bucket _sum _count trace_id";
    let mut names: Vec<String> = words.split(' ').map(str::to_owned).collect();
    names.extend(["a".repeat(64), "-".repeat(64)]);
    names.extend((names.len()..100).map(|i| format!("{i}.{i}-{i}_")));
    names
}

fn is_installed(program: &str) -> bool {
    let version = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|exit| exit.success())
}

#[test]
fn a_real_server_stores_every_line_and_two_scrapers_see_the_same() {
    if !is_installed("prometheus") || !is_installed("promtool") {
        #[expect(clippy::print_stderr, reason = "who reads the tests' output must know what was left out")]
        {
            eprintln!("left out: no prometheus on this machine (Debian's package prometheus)");
        }
        return;
    }
    let receiver = Receiver::start();
    // A leader that loses its lease takes its own series with it.
    let mut all = patient();
    all.insert("telemetry.otlp_endpoint".into(), receiver.endpoint.as_str().into());
    all.insert("feed.watched".into(), hostile().into());
    let mut cluster = Cluster::three(all);
    let leader = cluster.leader();
    let blocks: Vec<Block> = (1..=60).map(|h| Block::new(h, "scraped")).collect();
    fill(&cluster.node(leader).api.clone(), &blocks);
    cluster.settled();
    let server = Prometheus::start(&config(&cluster, &text_proxy(cluster.endpoints())));
    wait_for("every target answers every job", LATER, || server.value_of("up", |_| 1.0));

    // As many samples as lines, in both formats, and as many series stored as samples: none is doubled.
    const OPEN: [(&str, &str); 1] = [("Accept", "application/openmetrics-text; version=1.0.0")];
    for node in &cluster.nodes {
        let text = node.get("/metrics", &[]).expect("it answers");
        let open = node.get("/metrics", &OPEN).expect("it answers");
        assert!(open.header("content-type").is_some_and(|t| t.starts_with("application/openmetrics-text")));
        assert_eq!(n_samples(&text.text()), n_samples(&open.text()), "lines of node {}", node.id);
        assert_promtool(&text.body);
    }
    wait_for("as many samples are scraped as there are lines", LATER, || {
        let lines =
            |id: NodeId| n_samples(&cluster.node(id).get("/metrics", &[]).expect("it answers").text());
        let counts: Vec<usize> = cluster.nodes.iter().map(|n| lines(n.id)).collect();
        let want = |id: NodeId| counts[id as usize - 1] as f64;
        server.value_of("scrape_samples_scraped", want)?;
        server.value_of("scrape_samples_post_metric_relabeling", want)?;
        // What the server adds by itself is called scrape_… and up.
        server.value_of("count by (job, node) ({__name__=~'.+',__name__!~'scrape_.*|up'})", want)
    });

    // Each label value came through as it is, from every node and in both formats.
    let names: BTreeSet<String> =
        hostile().into_iter().chain(["ws", "sse", "internal"].map(Into::into)).collect();
    for name in ["blockraft_raft_apply_messages_total", "blockraft_raft_apply_messages_dropped_total"] {
        let series = server.get(&format!("/api/v1/series?match[]={name}")).expect("it answers");
        for (job, id) in JOBS.iter().flat_map(|job| ["1", "2", "3"].map(|id| (*job, id))) {
            let of = |s: &&Value| s["job"] == job && s["node"] == id;
            let found = series.as_array().expect("a list").iter().filter(of);
            let found: BTreeSet<_> =
                found.filter_map(|s| s["subscriber"].as_str()).map(str::to_owned).collect();
            assert_eq!(found, names, "{name} of node {id} to job {job}");
        }
    }

    // What was stored is what a scrape says now, of all that stands still.
    wait_for("stored values are the nodes' own", LATER, || {
        for name in
            ["blockraft_blocks_applied_total", "blockraft_block_head_height", "blockraft_raft_applied_index"]
        {
            let value = |id: NodeId| {
                let text = cluster.node(id).get("/metrics", &[]).expect("it answers").text();
                Scrape::parse(&text).get(name, &[]).expect("it is exported")
            };
            server.value_of(name, value)?;
        }
        // The last bucket counts all, to both formats under one name.
        let buckets = "blockraft_raft_apply_seconds_bucket{kind='block',le='+Inf'}";
        server.value_of(buckets, |_| 60.0)?;
        server.value_of("count by (job, node) (blockraft_raft_apply_seconds_bucket{kind='block'})", |_| 20.0)
    });

    wait_for("exemplars can be read back", LATER, || {
        let traces: BTreeSet<String> = receiver.all().into_iter().map(|s| s.trace).collect();
        let query = escaped("blockraft_raft_stage_seconds_bucket");
        let found = server.get(&format!("/api/v1/query_exemplars?query={query}&start=0&end=9999999999"))?;
        let series = found.as_array().context("no list")?;
        let mut nodes = BTreeSet::new();
        for s in series {
            // The classic text has none.
            ensure!(s["seriesLabels"]["job"] != "text", "{s}");
            nodes.insert(s["seriesLabels"]["node"].as_str().context("no node")?.to_owned());
            for exemplar in s["exemplars"].as_array().context("no exemplars")? {
                let trace = exemplar["labels"]["trace_id"].as_str().context("no trace")?;
                ensure!(traces.contains(trace), "trace {trace} of an exemplar never arrived");
            }
        }
        ensure!(nodes.len() == 3, "exemplars of {nodes:?}");
        Ok(())
    });
    drop(server);
    cluster.end();
}

/// `promtool check metrics` says nothing.
#[track_caller]
fn assert_promtool(text: &[u8]) {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    child.stdin.take().expect("piped").write_all(text).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.is_empty(), "promtool: {said}");
}
