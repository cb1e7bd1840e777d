//! `api/examples`: every method and every route as a script that curl runs. Generated, and compared by a
//! test.

use prost::Message;

use crate::api::args::Decode;
use crate::api::routes::Route;
use crate::api::table::Method;
use crate::api::{page, routes, sse, subscriptions, table};
use crate::types::block::Block;
use crate::types::proto::RaftBlockState;

const ENDPOINT: &str = r#"set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
"#;

/// The leader alone takes it: ask who that is.
const TO_THE_LEADER: &str = r#"endpoint="$(curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"raft_leader"}' | sed 's/.*"leaderApi":"\([^"]*\)".*/\1/')"
"#;

/// A snapshot that is there.
const NEWEST_ID: &str = r#"id="$(curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"snapshot_create"}' | sed 's/.*"result":{"id":"\([^"]*\)".*/\1/')"
"#;

/// File name and content of every script, sorted by name.
pub(crate) fn scripts() -> Vec<(String, String)> {
    let mut scripts: Vec<(String, String)> = table::methods()
        // curl speaks no WebSocket: `GET /v1/applied` shows the same feed.
        .filter(|m| !subscriptions::needs_socket(m.name))
        .map(of_method)
        .collect();
    scripts.extend(routes::ROUTES.iter().map(of_route));
    scripts.sort();
    scripts
}

fn script(says: &str, to_leader: bool, command: &str) -> String {
    let leader = if to_leader { TO_THE_LEADER } else { "" };
    format!("#!/bin/sh\n# {says}\n{ENDPOINT}{leader}{command}\necho\n")
}

fn of_method(m: &Method) -> (String, String) {
    let params = if m.params.is_empty() { String::new() } else { format!(r#","params":{}"#, m.example.0) };
    let command = format!(
        "curl -sS \"http://$endpoint/\" -H 'Content-Type: application/json' \\\n  -d '{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{}\"{params}}}'",
        m.name
    );
    (format!("{}.sh", m.name), script(&format!("{}: {}", m.name, m.says), m.is_leader_only, &command))
}

fn of_route(route: &Route) -> (String, String) {
    let path = route.path().replace("{height}", "1");
    let url = format!("\"http://$endpoint{path}\"");
    let command = match route.takes {
        // A feed does not end by itself: 28 is curl's own time limit.
        None if route.path() == sse::PATH => {
            format!("curl -sSN --max-time 2 \"http://$endpoint{path}?fromHeight=1\" || [ $? = 28 ]")
        }
        None if route.path() == page::PATH => format!("curl -sS {url} -H 'Accept: text/html'"),
        None if path.contains("{id}") => {
            format!("{NEWEST_ID}curl -sS \"http://$endpoint{}\" -o \"$id.tar\"", path.replace("{id}", "$id"))
        }
        None => format!("curl -sS {url}"),
        Some(media) => {
            let message = message(route.path().ends_with("/stream"));
            format!("printf '{message}' | curl -sS {url} -H 'Content-Type: {media}' --data-binary @-")
        }
    };
    let name: String = route
        .label
        .to_ascii_lowercase()
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("-");
    (
        format!("{name}.sh"),
        script(&format!("{}: {}", route.label, route.says), route.takes.is_some(), &command),
    )
}

/// The block of `block_propose`'s example as protobuf, escaped for printf.
fn message(is_framed: bool) -> String {
    let method = table::find("block_propose").expect("the method is in the table");
    let params: std::collections::BTreeMap<String, Box<serde_json::value::RawValue>> =
        serde_json::from_str(method.example.0).expect("an example's params are JSON");
    let block = Block::decode(&params["block"], "block").expect("the example's block is well-formed");
    let message = RaftBlockState::from(block);
    let bytes = if is_framed { message.encode_length_delimited_to_vec() } else { message.encode_to_vec() };
    bytes.iter().map(|b| format!("\\{b:03o}")).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path};

    use super::*;

    #[test]
    fn the_scripts_are_those_of_the_tables() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("api/examples");
        if std::env::var_os("UPDATE_SPEC").is_some() {
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            for (name, content) in scripts() {
                use std::os::unix::fs::PermissionsExt;
                fs::write(dir.join(&name), content).unwrap();
                fs::set_permissions(dir.join(&name), fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
        let there: BTreeMap<String, String> = fs::read_dir(&dir)
            .unwrap()
            .map(|f| f.unwrap())
            .map(|f| (f.file_name().into_string().unwrap(), fs::read_to_string(f.path()).unwrap()))
            .collect();
        assert_eq!(there, scripts().into_iter().collect(), "rewrite with UPDATE_SPEC=1");
    }
}
