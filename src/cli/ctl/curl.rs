//! Commands as curl lines that can be pasted into a shell.

use std::path::Path;

use serde_json::Value;

use crate::client::{endpoint::Endpoint, rpc};

/// A word that the shell leaves as it is.
pub(crate) fn quote(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_string();
    }
    // A single quote cannot stand within single quotes: they are closed around it.
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn with_token(token_file: Option<&Path>) -> String {
    token_file.map_or(String::new(), |file| {
        let file = quote(&file.display().to_string());
        format!(r#" -H "Authorization: Bearer $(cat {file})""#)
    })
}

/// A JSON-RPC call.
pub(crate) fn call(endpoint: &Endpoint, method: &str, params: &Value, token_file: Option<&Path>) -> String {
    format!(
        "curl -sS {} -H 'Content-Type: application/json'{} -d {}",
        quote(&endpoint.url("/")),
        with_token(token_file),
        quote(&rpc::request(method, params))
    )
}

/// A plain `GET`; `flags` are curl's.
pub(crate) fn get(endpoint: &Endpoint, flags: &str, path: &str, token_file: Option<&Path>) -> String {
    format!("curl {flags}{} {}", with_token(token_file), quote(&endpoint.url(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Endpoint {
        "127.0.0.1:7401".parse().expect("well-formed")
    }

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quote("http://n1:7400/"), "http://n1:7400/");
        assert_eq!(quote(""), "''");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quote("/v1/applied?fromHeight=1&x"), "'/v1/applied?fromHeight=1&x'");
    }

    #[test]
    fn what_the_shell_makes_of_them() {
        for word in ["it's", "a\"b\\c", "$(touch x) `y` ; & |", "line\nbreak", "*?[]{}!#~"] {
            let printed = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", quote(word))])
                .output()
                .expect("a shell");
            assert_eq!(String::from_utf8_lossy(&printed.stdout), word);
        }
    }

    #[test]
    fn a_call_and_a_get() {
        let params = serde_json::json!({"reason": "it's time"});
        assert_eq!(
            call(&endpoint(), "raft_resign", &params, None),
            r#"curl -sS http://127.0.0.1:7401/ -H 'Content-Type: application/json' -d '{"jsonrpc":"2.0","id":1,"method":"raft_resign","params":{"reason":"it'\''s time"}}'"#
        );
        assert_eq!(
            get(&endpoint(), "-fsS", "/readyz?verbose", Some(Path::new("/t"))),
            r#"curl -fsS -H "Authorization: Bearer $(cat /t)" 'http://127.0.0.1:7401/readyz?verbose'"#
        );
    }
}
