use std::{
    io::{self, Write},
    sync::{
        Mutex,
        mpsc::{Receiver, sync_channel},
    },
    time::Duration,
};

use serde_json::Value;

use super::*;

/// Longer than any step takes; a test that waits so long has failed.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panics").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lines(&self) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().expect("nobody panics").clone()).expect("lines are UTF-8");
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }
}

/// Runs `act` with a JSON log and returns its lines.
fn logged(filter: &str, act: impl FnOnce(&Handle)) -> Vec<Value> {
    let output = Shared::default();
    let (sender, lines) = lines::start(output.clone(), &Registry::new()).expect("a thread");
    let (layer, reload) = reload::Layer::new(filter::parse(filter).expect("a filter"));
    let filters = Filters { in_force: filter.to_owned(), lasting: filter.to_owned(), generation: 0 };
    let handle = Handle { reload, filters: Arc::new(Mutex::new(filters)) };
    let subscriber = tracing_subscriber::registry().with(json_layer(sender).with_filter(layer));
    tracing::subscriber::with_default(subscriber, || act(&handle));
    lines.flush(LIMIT);
    output.lines()
}

#[derive(Debug, thiserror::Error)]
#[error("the log cannot be opened")]
struct Outer(#[source] io::Error);

#[test]
fn a_line_is_one_object_with_the_ids_at_the_top() {
    let lines = logged("info", |_| {
        let outer = tracing::info_span!("node", node_id = 3, trace_id = tracing::field::Empty, note = "a\"b");
        outer.record("trace_id", "0af7651916cd43dd8448eb211c80319c");
        let _outer = outer.entered();
        let _inner = tracing::info_span!("handover", term = 7_u64).entered();
        let error = Outer(io::Error::other("disk\nfull"));
        tracing::warn!(error = &error as &dyn std::error::Error, lag = 1.5, is_ready = false, "gave up");
        tracing::info!(trace_id = "b7", "other");
    });
    assert_eq!(lines.len(), 2);
    let line = &lines[0];
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["message"], "gave up");
    assert_eq!(line["target"], "blockraft::telemetry::log::tests");
    assert_eq!(line["error"], "the log cannot be opened: disk\nfull");
    assert_eq!((line["lag"].as_f64(), line["is_ready"].as_bool()), (Some(1.5), Some(false)));
    assert_eq!(line["trace_id"], "0af7651916cd43dd8448eb211c80319c");
    let spans = line["spans"].as_array().expect("spans");
    assert_eq!(
        (&spans[0]["name"], &spans[0]["node_id"], &spans[0]["note"]),
        (&"node".into(), &3.into(), &"a\"b".into())
    );
    assert_eq!((&spans[1]["name"], &spans[1]["term"]), (&"handover".into(), &7.into()));
    let time = line["timestamp"].as_str().expect("a time");
    assert!(time.ends_with('Z') && time.starts_with("20"), "{time}");
    assert_eq!(lines[1]["trace_id"], "b7");
}

#[test]
fn the_filter_is_changed_while_running() {
    let lines = logged("info", |handle| {
        tracing::debug!("hidden");
        assert_eq!(
            handle.set_filter("debug,a=b=c").map_err(|e| e.to_string().contains("no log filter")),
            Err(true)
        );
        assert_eq!(handle.set_filter("debug"), Ok("info".to_owned()));
        tracing::debug!("shown");
        tracing::info!(target: "openraft::core", "quiet");
        assert_eq!((handle.set_filter("off"), handle.filter()), (Ok("debug".to_owned()), "off".to_owned()));
        tracing::error!("hidden too");
    });
    assert_eq!(lines.iter().map(|l| &l["message"]).collect::<Vec<_>>(), ["shown"]);
}

#[test]
fn a_filter_for_a_while_gives_way_to_the_last_one_without_a_time() {
    logged("info", |handle| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let moment = Duration::from_millis(20);
            assert_eq!(handle.set_filter_for("debug", LIMIT), Ok("info".to_owned()));
            assert_eq!(handle.set_filter_for("trace", moment), Ok("debug".to_owned()));
            let until = tokio::time::Instant::now() + LIMIT;
            while handle.filter() == "trace" && tokio::time::Instant::now() < until {
                tokio::time::sleep(moment).await;
            }
            assert_eq!(handle.filter(), "info");
            // The timer of a filter that is not in force any more changes nothing.
            assert_eq!(handle.set_filter_for("debug", moment), Ok("info".to_owned()));
            assert_eq!(handle.set_filter("warn"), Ok("debug".to_owned()));
            tokio::time::sleep(5 * moment).await;
            assert_eq!(handle.filter(), "warn");
        });
    });
}

/// An output whose every write waits for a word.
struct Blocked(Receiver<()>, Shared);

impl Write for Blocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_blocked_and_a_closed_output_cost_lines_and_nothing_else() {
    let registry = Registry::new();
    let (go_tx, go_rx) = sync_channel(0);
    let output = Shared::default();
    let (mut sender, lines) = lines::start(Blocked(go_rx, output.clone()), &registry).expect("a thread");
    let dropped = || registry.gather()[0].get_metric()[0].get_counter().get_value();
    let line = b"{}\n";
    // More than the queue and the first write hold together: the thread may empty the queue while it is filled.
    let n = 2 * (lines::LINES_MAX + lines::WRITE_BYTES / line.len());
    for _ in 0..n {
        sender.write_all(line).expect("a line never fails");
    }
    let full = dropped();
    assert!(0.0 < full, "the queue has no bound");
    // The queue is full and nobody reads it: the wait is bounded.
    lines.flush(Duration::from_millis(20));
    // Open for one write, then closed for good.
    go_tx.send(()).expect("the thread waits");
    drop(go_tx);
    lines.flush(LIMIT);
    let written = output.lines().len();
    assert!(
        0 < written && written + dropped() as usize == n,
        "{written} written, {} dropped of {n}",
        dropped()
    );
}

#[test]
fn bytes_are_bounded_too() {
    let registry = Registry::new();
    let (_go_tx, go_rx) = sync_channel(0);
    let (mut sender, _lines) = lines::start(Blocked(go_rx, Shared::default()), &registry).expect("a thread");
    let line = vec![b'x'; 1 << 20];
    for _ in 0..64 {
        sender.write_all(&line).expect("a line never fails");
    }
    assert!(40.0 < registry.gather()[0].get_metric()[0].get_counter().get_value());
}
