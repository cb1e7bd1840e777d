//! The ports of a demo cluster.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use crate::cli::exit::Failure;

/// The API of node 1 where nothing else is asked for.
pub(crate) const BASE: u16 = 7401;
/// Peer ports start so far above the API ports: a hundred nodes would fit between, and 7501 goes with 7401.
const PEERS_ABOVE: u16 = 100;
/// By eye: more nodes are of no use on one machine, and one digit names each.
pub(crate) const NODES_MAX: u16 = 9;

/// The addresses of node 1, 2, …
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) api: SocketAddr,
    pub(crate) peer: SocketAddr,
}

/// All on loopback.
pub(crate) fn addresses(base_port: u16, n_nodes: u16) -> Result<Vec<Addresses>, Failure> {
    let is_in_range = 0 < base_port
        && base_port.checked_add(PEERS_ABOVE).and_then(|p| p.checked_add(n_nodes - 1)).is_some();
    if !is_in_range {
        let max = u16::MAX - PEERS_ABOVE - (n_nodes - 1);
        return Err(Failure::usage(format!("--base-port: 1 to {max} for {n_nodes} nodes")));
    }
    let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Ok((0..n_nodes)
        .map(|i| Addresses { api: at(base_port + i), peer: at(base_port + PEERS_ABOVE + i) })
        .collect())
}

/// Looks whether all are free, before anything is started.
pub(crate) fn check_free(addresses: &[Addresses]) -> Result<(), Failure> {
    let mut taken = Vec::new();
    let mut held = Vec::new();
    for (address, of) in addresses.iter().flat_map(|a| [(a.api, "an API"), (a.peer, "a peer")]) {
        match TcpListener::bind(address) {
            Ok(listener) => held.push(listener),
            Err(e) => taken.push((address, of, e)),
        }
    }
    let Some((address, of, e)) = taken.first() else { return Ok(()) };
    let ports: Vec<String> = taken.iter().map(|(a, _, _)| a.port().to_string()).collect();
    let what = match e.kind() {
        std::io::ErrorKind::AddrInUse => "is taken".to_string(),
        _ => format!("cannot be used: {e}"),
    };
    Err(Failure::failed(if taken.len() == 1 {
        format!("port {} on {}, {of} port, {what}; choose others with --base-port", ports[0], address.ip())
    } else {
        format!(
            "ports {} on {}: the first {what}; choose others with --base-port",
            ports.join(", "),
            address.ip()
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit::{FAILED, USAGE};

    #[test]
    fn apis_from_the_base_and_peers_above() {
        let list = addresses(7401, 3).expect("in range");
        let ports: Vec<_> = list.iter().map(|a| (a.api.port(), a.peer.port())).collect();
        assert_eq!(ports, [(7401, 7501), (7402, 7502), (7403, 7503)]);
        for (base, n) in [(0, 3), (65_534, 3), (65_434, 3)] {
            assert_eq!(addresses(base, n).expect_err("out of range").code, USAGE);
        }
        assert!(addresses(65_433, 3).is_ok());
    }

    #[test]
    fn a_taken_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let api = listener.local_addr().expect("bound");
        let failure = check_free(&[Addresses { api, peer: api }]).expect_err("taken");
        let message = failure.message.expect("a message");
        assert_eq!(failure.code, FAILED);
        assert!(message.contains(&api.port().to_string()) && message.contains("--base-port"), "{message}");
    }
}
