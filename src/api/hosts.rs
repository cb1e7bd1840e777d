//! Who may be asked for, and on whose behalf: the `Host` and `Origin` of a request.
//!
//! A browser sends both whatever page it shows. Without these lists any page could talk to a node on the
//! reader's machine: directly, or through a name of its own that resolves to it.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use axum::http::{HeaderMap, Uri, Version, header};

use crate::api::Config;
use crate::api::error::{Code, Fault};
use crate::api::metrics::Rejected;
use crate::types::member::Members;

/// How long the members' hosts are remembered. By eye: one look at raft a second is nothing.
const MEMBERS_FOR: Duration = Duration::from_secs(1);
/// Longest host that an error repeats.
const SHOWN_BYTES_MAX: usize = 128;

pub(crate) struct Hosts {
    /// Lower case, with or without a port.
    allowed: BTreeSet<String>,
    /// Lower case: scheme, host and port as a browser sends them.
    origins: BTreeSet<String>,
    members: ArcSwap<Known>,
}

struct Known {
    hosts: BTreeSet<String>,
    until: Option<Instant>,
}

impl Hosts {
    pub(crate) fn new(config: &Config) -> Self {
        let own = [host_of(&config.advertise).to_owned(), config.listen.ip().to_string()];
        let named = config.allowed_hosts.iter().map(|h| h.trim_end_matches('.').to_ascii_lowercase());
        Self {
            allowed: named.chain(own.map(|h| h.to_ascii_lowercase())).collect(),
            origins: config.allowed_origins.iter().map(|o| o.to_ascii_lowercase()).collect(),
            members: ArcSwap::from_pointee(Known { hosts: BTreeSet::new(), until: None }),
        }
    }

    /// Whether a request may be answered. `members` is asked only for a name that is not known yet.
    pub(crate) fn check(
        &self,
        version: Version,
        uri: &Uri,
        headers: &HeaderMap,
        members: impl FnOnce() -> Members,
    ) -> Result<(), (Rejected, Fault)> {
        let authority = authority(version, uri, headers)?;
        if let Some(authority) = &authority
            && !self.is_host_allowed(authority, members)
        {
            let why = format!("host {:?} is not in api.allowed_hosts", cut(authority));
            return Err((Rejected::Host, Fault::forbidden(why)));
        }
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
        let origin = origin.to_str().unwrap_or("").to_ascii_lowercase();
        let is_own = authority.is_some_and(|a| {
            origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) == Some(a.as_str())
        });
        if is_own || self.is_origin_listed(&origin) {
            return Ok(());
        }
        let why = format!("origin {:?} is not in api.allowed_origins", cut(&origin));
        Err((Rejected::Origin, Fault::forbidden(why)))
    }

    /// Whether pages of an origin may ask this node, by its settings.
    pub(crate) fn is_origin_listed(&self, origin: &str) -> bool {
        self.origins.contains(&origin.to_ascii_lowercase())
    }

    fn is_host_allowed(&self, authority: &str, members: impl FnOnce() -> Members) -> bool {
        let host = host_of(authority);
        let host = host.strip_suffix('.').unwrap_or(host);
        if host == "localhost"
            || is_ip(host)
            || self.allowed.contains(host)
            || self.allowed.contains(authority)
        {
            return true;
        }
        let now = Instant::now();
        let mut known = self.members.load_full();
        if known.until.is_none_or(|until| until <= now) {
            let hosts = members().nodes.values().map(|m| host_of(&m.api_addr).to_ascii_lowercase()).collect();
            known = Arc::new(Known { hosts, until: Some(now + MEMBERS_FOR) });
            self.members.store(known.clone());
        }
        known.hosts.contains(host)
    }
}

/// Whom the request is for, in lower case. HTTP/1.0 may leave it out.
fn authority(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<Option<String>, (Rejected, Fault)> {
    if let Some(authority) = uri.authority() {
        let text = authority.as_str();
        return Ok(Some(text.rsplit('@').next().unwrap_or(text).to_ascii_lowercase()));
    }
    let bad = |why: &'static str| Err((Rejected::Host, Fault::new(Code::InvalidRequest, why)));
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => match host.to_str() {
            Ok(host) if !host.is_empty() => Ok(Some(host.to_ascii_lowercase())),
            _ => bad("the Host header names no host"),
        },
        (Some(_), Some(_)) => bad("more than one Host header"),
        (None, _) if version == Version::HTTP_10 || version == Version::HTTP_09 => Ok(None),
        (None, _) => bad("no Host header"),
    }
}

/// `host` out of `host:port`, brackets of an IPv6 address included.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

fn is_ip(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4()),
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(SHOWN_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::member::Member;

    fn hosts() -> Hosts {
        Hosts::new(&Config {
            listen: "10.0.0.5:7400".parse().unwrap(),
            advertise: "Box.example:7400".into(),
            max_body: 32 << 20,
            max_batch: 100,
            max_connections: 10,
            max_connections_per_address: 0,
            rate_limit: 0,
            allowed_hosts: vec!["Gate.example".into(), "pinned.example:8443".into()],
            allowed_origins: vec!["https://Board.example".into()],
        })
    }

    fn members() -> Members {
        let member = |node_id, api: &str| Member { node_id, api_addr: api.into(), ..Default::default() };
        Members {
            nodes: [(1, member(1, "n1:7400")), (2, member(2, "[fd00::2]:7400"))].into(),
            ..Default::default()
        }
    }

    fn ask(host: Option<&str>, origin: Option<&str>) -> Result<(), Rejected> {
        let mut headers = HeaderMap::new();
        if let Some(host) = host {
            headers.insert(header::HOST, host.parse().unwrap());
        }
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        hosts().check(Version::HTTP_11, &Uri::from_static("/"), &headers, members).map_err(|(r, _)| r)
    }

    #[test]
    fn hosts_of_the_cluster_and_addresses_are_allowed() {
        for host in [
            "localhost",
            "LocalHost:7400",
            "127.0.0.1:7400",
            "8.8.8.8",
            "[::1]:7400",
            "[fd00::2]",
            "box.example",
            "BOX.example:1",
            "box.example.:7400",
            "gate.example:7",
            "pinned.example:8443",
            "n1:7400",
            "N1",
        ] {
            assert_eq!(ask(Some(host), None), Ok(()), "{host}");
        }
    }

    #[test]
    fn other_hosts_are_not() {
        for host in
            ["evil.example", "localhost.evil.example", "n3:7400", "pinned.example", "1.2.3.4.example", "::1x"]
        {
            assert_eq!(ask(Some(host), None), Err(Rejected::Host), "{host}");
        }
        assert_eq!(ask(None, None), Err(Rejected::Host), "HTTP/1.1 without a host");
    }

    #[test]
    fn an_origin_is_the_node_itself_or_listed() {
        let at = Some("127.0.0.1:7400");
        assert_eq!(ask(at, Some("http://127.0.0.1:7400")), Ok(()));
        assert_eq!(ask(at, Some("https://board.example")), Ok(()));
        for origin in
            ["http://127.0.0.1:7401", "http://evil.example", "null", "http://board.example", "127.0.0.1:7400"]
        {
            assert_eq!(ask(at, Some(origin)), Err(Rejected::Origin), "{origin}");
        }
    }

    #[test]
    fn a_refusal_names_the_setting() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "evil.example".parse().unwrap());
        let (_, fault) =
            hosts().check(Version::HTTP_11, &Uri::from_static("/"), &headers, members).unwrap_err();
        assert!(fault.message.contains("api.allowed_hosts"), "{}", fault.message);
        assert_eq!(fault.status(), axum::http::StatusCode::FORBIDDEN);
    }

    #[test]
    fn two_hosts_are_none() {
        let mut headers = HeaderMap::new();
        headers.append(header::HOST, "localhost".parse().unwrap());
        headers.append(header::HOST, "evil.example".parse().unwrap());
        let got = hosts().check(Version::HTTP_11, &Uri::from_static("/"), &headers, members);
        assert!(got.is_err());
    }
}
