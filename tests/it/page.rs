//! The status page: who gets it, and what a browser is told to refuse. What it shows is tested in one
//! (`make page-test`).

use crate::support::{cluster::Cluster, config::Settings, http::Response};

const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";

#[track_caller]
fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.header(name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn a_browser_gets_the_page_and_nobody_else() {
    let mut cluster = Cluster::new(1, Settings::new());
    cluster.start();
    let node = cluster.node(1);
    let page = node.get("/", &[("Accept", BROWSER)]).expect("it answers");
    assert_eq!(page.status, 200);
    assert_eq!(header(&page, "content-type"), "text/html; charset=utf-8");
    assert_eq!(header(&page, "cache-control"), "no-store");
    assert_eq!(header(&page, "vary"), "Accept");
    assert!(page.text().contains("<title>blockraft</title>"));
    // JSON-RPC lives at the same path.
    for accept in [&[][..], &[("Accept", "*/*")], &[("Accept", "application/json")]] {
        let refused = node.get("/", accept).expect("it answers");
        assert_eq!((refused.status, header(&refused, "allow")), (405, "POST"), "{accept:?}");
    }
    let status = node.call("raft_status", &serde_json::Value::Null).expect("JSON-RPC goes on");
    assert_eq!(status["nodeId"], 1);
    // A page of somebody else's that frames it or asks for it on a reader's behalf.
    let strange = node.get("/", &[("Accept", BROWSER), ("Origin", "http://elsewhere.example")]);
    assert_eq!(strange.expect("it answers").status, 403, "the Origin is looked at here too");
    let counted = node.get("/metrics", &[]).expect("it answers").text();
    let row = "blockraft_rpc_requests_total{code=\"ok\",method=\"GET /\"} 1";
    let turned = "blockraft_rpc_requests_total{method=\"GET /\",code=\"ok\"} 1";
    assert!(counted.contains(row) || counted.contains(turned), "the page is counted");
    cluster.end();
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let mut cluster = Cluster::new(1, Settings::new());
    cluster.start();
    let get = || cluster.node(1).get("/", &[("Accept", BROWSER)]).expect("it answers");
    let page = get();
    let policy = header(&page, "content-security-policy").to_owned();
    for want in ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"] {
        assert!(policy.contains(want), "{want} in {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(header(&page, "x-content-type-options"), "nosniff");
    assert_eq!(header(&page, "referrer-policy"), "no-referrer");
    let text = page.text();
    let nonce = policy.split("'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).expect("a nonce");
    assert_eq!(nonce.len(), 32, "{nonce}");
    assert_eq!(text.matches(&format!("nonce=\"{nonce}\"")).count(), 2, "its own script and style carry it");
    assert!(!text.contains("{nonce}"));
    assert!(!header(&get(), "content-security-policy").contains(nonce), "a nonce is good for one answer");
    // Whatever a browser would load names this node, or nothing.
    for attribute in ["src=\"", "href=\""] {
        for link in text.split(attribute).skip(1).filter_map(|rest| rest.split('"').next()) {
            let is_ours = link.starts_with('/') && !link.starts_with("//") || link.starts_with('#');
            assert!(is_ours || link == "data:,", "{link}");
        }
    }
    assert!(!text.contains("@import") && !text.contains("url("), "a style that loads something");
    cluster.end();
}
