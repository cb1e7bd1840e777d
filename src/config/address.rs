//! Addresses in settings: where to listen, and what others are told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest name that DNS knows.
const HOST_BYTES_MAX: usize = 253;

/// `IP:port`, IPv6 in brackets; `localhost` is 127.0.0.1.
pub(crate) fn listen(text: &str) -> Option<SocketAddr> {
    if let Some(port) = text.strip_prefix("localhost:") {
        return Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), number(port)?));
    }
    text.parse().ok()
}

pub(crate) fn is_listen(text: &str) -> bool {
    listen(text).is_some()
}

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

/// `scheme://host`, with a port or without, nothing behind it.
pub(crate) fn is_origin(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let is_scheme =
        !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    is_scheme && !rest.is_empty() && !rest.contains(['/', '?', '#', '@', ' '])
}

/// Whether both cannot be listened on at once.
pub(crate) fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.port() != 0
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

fn number(port: &str) -> Option<u16> {
    port.parse().ok().filter(|_| port.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_takes_addresses_and_localhost() {
        for text in ["127.0.0.1:7400", "0.0.0.0:7400", "[::1]:7400", "[::]:0", "localhost:7400"] {
            assert!(is_listen(text), "{text}");
        }
        for text in [
            "",
            "7400",
            ":7400",
            "n1:7400",
            "127.0.0.1",
            "127.0.0.1:70000",
            "http://127.0.0.1:7400",
            "::1:7400",
        ] {
            assert!(!is_listen(text), "{text}");
        }
    }

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

    #[test]
    fn origins_have_a_scheme_and_no_path() {
        assert!(is_origin("https://console.example.org") && is_origin("http://localhost:3000"));
        for text in ["", "console.example.org", "https://", "https://a/", "https://a/b", "://a"] {
            assert!(!is_origin(text), "{text}");
        }
    }

    #[test]
    fn listeners_collide() {
        let at = |text: &str| listen(text).expect("the tests give good ones");
        assert!(collide(at("127.0.0.1:1"), at("127.0.0.1:1")) && collide(at("0.0.0.0:1"), at("127.0.0.1:1")));
        assert!(
            !collide(at("127.0.0.1:1"), at("127.0.0.1:2")) && !collide(at("127.0.0.1:1"), at("127.0.0.2:1"))
        );
        assert!(!collide(at("127.0.0.1:0"), at("127.0.0.1:0")));
    }
}
