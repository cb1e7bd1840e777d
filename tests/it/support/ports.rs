//! Ports that are free on loopback.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    process,
    sync::{
        Mutex,
        atomic::{AtomicU16, Ordering},
    },
};

/// Given once per test process, so that two tests never share one.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
/// Where the next look begins: another place for each test process.
static NEXT: AtomicU16 = AtomicU16::new(0);

/// Below the range that outgoing connections take their ports from: a node that is started again needs
/// its port once more, and a client's connection must not sit on it meanwhile. Free when this returns.
pub(crate) fn free() -> u16 {
    let (low, high) = range();
    let span = high - low;
    let offset = process::id() as u16;
    for _ in 0..span {
        let n = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(offset);
        let port = low + n % span;
        let mut given = GIVEN.lock().expect("no holder of the lock panics");
        if !given.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            given.insert(port);
            return port;
        }
    }
    panic!("no free port on 127.0.0.1 between {low} and {high}");
}

/// `127.0.0.1` and a free port.
pub(crate) fn free_addr() -> String {
    format!("127.0.0.1:{}", free())
}

fn range() -> (u16, u16) {
    /// Above what services are usually given.
    const LOW: u16 = 15_000;
    let ephemeral = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    match ephemeral.split_whitespace().next().and_then(|low| low.parse().ok()) {
        Some(first) if LOW + 1_000 <= first => (LOW, first),
        _ => (LOW, 32_000),
    }
}
