//! Ports that are free on loopback.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    process,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

/// Given once per test process, so that two tests never share one.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
/// Looks so far.
static LOOKS: AtomicU32 = AtomicU32::new(0);
/// Ports between the first looks of two test processes that were started one after the other. By eye: as many as one
/// takes.
const STRIDE: u32 = 2_003;

/// Below the range that outgoing connections take their ports from: a node that is started again needs
/// its port once more, and a client's connection must not sit on it meanwhile. Free when this returns.
pub(crate) fn free() -> u16 {
    let (low, high) = range();
    let span = u32::from(high - low);
    let first = process::id().wrapping_mul(STRIDE);
    for _ in 0..span {
        let n = first.wrapping_add(LOOKS.fetch_add(1, Ordering::Relaxed));
        let port = low + (n % span) as u16;
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
