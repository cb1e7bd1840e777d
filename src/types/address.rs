//! `host:port`, as nodes are told where others are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest name that DNS knows.
const HOST_BYTES_MAX: usize = 253;

/// The host of `host:port`, IPv6 in brackets, no scheme, the port from 1.
pub(crate) fn host(text: &str) -> Option<Host<'_>> {
    let (host, port) = text.rsplit_once(':')?;
    if number(port)? == 0 {
        return None;
    }
    if let Some(v6) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        return v6.parse::<Ipv6Addr>().ok().map(|ip| Host::Ip(ip.into()));
    }
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Some(Host::Ip(ip.into()));
    }
    // "0", "127.1": resolvers take such for addresses.
    let is_numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    (is_name(host) && !is_numeric).then_some(Host::Name(host))
}

pub(crate) fn is_host_and_port(text: &str) -> bool {
    host(text).is_some()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host<'a> {
    Ip(IpAddr),
    Name(&'a str),
}

impl Host<'_> {
    /// Such as 0.0.0.0: nobody can be reached there.
    pub(crate) fn is_unspecified(&self) -> bool {
        match self {
            Self::Ip(ip) => ip.to_canonical().is_unspecified(),
            Self::Name(_) => false,
        }
    }
}

/// A host name as DNS and compose files have them, without a port.
pub(crate) fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.len() <= HOST_BYTES_MAX && text.strip_suffix('.').unwrap_or(text).split('.').all(is_label)
}

pub(crate) fn number(port: &str) -> Option<u16> {
    port.parse().ok().filter(|_| port.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advertise_takes_names_and_addresses() {
        for text in ["n1:7500", "n1.example.org:7500", "10.0.0.1:7500", "[fd00::1]:7500", "my_node:1"] {
            assert!(host(text).is_some_and(|h| !h.is_unspecified()), "{text}");
        }
        for text in ["0.0.0.0:7500", "[::]:7500", "[::ffff:0.0.0.0]:7500"] {
            assert!(host(text).is_some_and(|h| h.is_unspecified()), "{text}");
        }
        for text in [
            "",
            "n1",
            "n1:",
            "n1:0",
            "n1:+5",
            "http://n1:7500",
            "fd00::1:7500",
            "0:7500",
            "127.1:7500",
            "a b:1",
            "n1:7500/",
        ] {
            assert_eq!(host(text), None, "{text}");
        }
    }
}
