//! The flags that say which nodes are meant, and with which token.

use std::path::{Path, PathBuf};

use hyper::header::HeaderValue;

use crate::cli::exit::Failure;
use crate::client::endpoint::{self, Endpoint};

/// The ports of one node at the defaults, and of `blockraft dev`.
pub(crate) const DEFAULT: &str = "127.0.0.1:7400,127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403";

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Nodes to ask, host:port between commas.
    #[arg(long, global = true, env = "BLOCKRAFT_ENDPOINTS", default_value = DEFAULT, value_name = "A,B,…")]
    pub(crate) endpoints: String,
    /// A file that holds the bearer token.
    #[arg(long, global = true, env = "BLOCKRAFT_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

impl Args {
    pub(crate) fn list(&self) -> Result<Vec<Endpoint>, Failure> {
        endpoint::parse_list(&self.endpoints).map_err(|e| Failure::usage(format!("--endpoints: {e}")))
    }

    /// Nobody said which nodes: it need not be that there is one at each.
    pub(crate) fn is_default(&self) -> bool {
        self.endpoints == DEFAULT
    }

    /// What is added where no endpoint answers: which ones were asked is nobody's choice then.
    pub(crate) fn hint(&self) -> &'static str {
        if self.is_default() {
            "; these are the defaults: name the nodes in --endpoints or BLOCKRAFT_ENDPOINTS"
        } else {
            ""
        }
    }

    pub(crate) fn token_file(&self) -> Option<&Path> {
        self.token_file.as_deref()
    }

    /// `Bearer …`, when there is a token.
    pub(crate) fn token(&self) -> Result<Option<HeaderValue>, Failure> {
        let Some(file) = &self.token_file else { return Ok(None) };
        let wrong = |why: String| Failure::usage(format!("--token-file {}: {why}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
        let mut token: HeaderValue =
            format!("Bearer {}", text.trim()).parse().map_err(|_| wrong("not one line of text".into()))?;
        token.set_sensitive(true);
        Ok(Some(token))
    }
}
