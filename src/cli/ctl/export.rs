//! `snapshot export`: a snapshot as a tar file that is complete or not there.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use http_body_util::BodyExt;
use hyper::{StatusCode, body::Incoming};
use tokio::time::Instant;

use crate::cli::ctl::command::{Command, Snapshot};
use crate::cli::ctl::{Context, acts, curl, plan};
use crate::cli::exit::{self, Failure};
use crate::cli::{out, units};
use crate::client::cluster::{Cluster, Target};
use crate::client::endpoint::Endpoint;
use crate::client::http::Ask;

pub(crate) async fn run(cx: &Context, id: Option<String>, output: Option<PathBuf>) -> Result<u8, Failure> {
    let target = cx.flags.node.map_or(Target::Any, Target::Node);
    if cx.flags.curl {
        let id = id.unwrap_or_else(|| "ID".into());
        let endpoint = acts::endpoint_for_curl(cx, target).await;
        let flags = curl_flags(&id, output.as_deref());
        let path = format!("/v1/snapshots/{id}");
        out::print_line(&curl::get(&endpoint, &flags, &path, cx.token_file()))?;
        return Ok(exit::DONE);
    }
    let cluster = cx.cluster(plan::PATIENCE);
    let endpoint = cluster.find(target, Instant::now() + cluster.timeout()).await?;
    let id = match id {
        Some(id) => id,
        None => newest(&cluster, &endpoint).await?,
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if id.is_empty() || id.starts_with('.') || !id.chars().all(is_plain) {
        return Err(Failure::usage(format!("`{id}` is no snapshot's id")));
    }
    // No bound in time: it takes as long as the state is large.
    let response = cluster.http().open(&endpoint, Ask::get(&format!("/v1/snapshots/{id}"))).await;
    let response = response.map_err(|e| Failure::failed(e.to_string()))?;
    if response.status() != StatusCode::OK {
        return Err(Failure::failed(format!("{endpoint}: HTTP {} for snapshot {id}", response.status())));
    }
    let mut body = response.into_body();
    match output {
        Some(output) if output.as_os_str() == "-" => {
            copy(&mut body, &mut io::stdout().lock()).await?;
        }
        output => {
            let output = output.unwrap_or_else(|| PathBuf::from(format!("{id}.tar")));
            let bytes = save(&mut body, &output).await.map_err(|e| {
                Failure::failed(format!("snapshot {id} was not written to {}: {e}", output.display()))
            })?;
            out::print_line(&format!("{} ({})", output.display(), units::size(bytes)))?;
        }
    }
    Ok(exit::DONE)
}

/// curl takes `-` for stdout, too.
fn curl_flags(id: &str, output: Option<&Path>) -> String {
    let file = output.map_or_else(|| format!("{id}.tar"), |output| output.display().to_string());
    format!("-fsS -o {}", curl::quote(&file))
}

async fn newest(cluster: &Cluster, endpoint: &Endpoint) -> Result<String, Failure> {
    let end = Instant::now() + cluster.timeout();
    let call = plan::plan(Command::Snapshot(Snapshot::List), "")?;
    let list = cluster.call_at(endpoint, &call.method, &call.params, end).await;
    let list = list.map_err(|e| acts::failure(&call, e.into()))?.value();
    match list["snapshots"][0]["id"].as_str() {
        Some(id) => Ok(id.into()),
        None => Err(Failure::failed(format!("{endpoint} has no snapshot yet"))),
    }
}

/// Under another name until it is whole and on disk.
async fn save(body: &mut Incoming, output: &PathBuf) -> io::Result<u64> {
    let mut part: OsString = output.clone().into();
    part.push(".part");
    let written = async {
        let mut file = File::create(&part)?;
        let bytes = copy(body, &mut file).await?;
        file.sync_all()?;
        std::fs::rename(&part, output)?;
        Ok(bytes)
    }
    .await;
    if written.is_err() {
        // The failure itself is what the user must hear of.
        let _ = std::fs::remove_file(&part);
    }
    written
}

async fn copy(body: &mut Incoming, to: &mut dyn Write) -> io::Result<u64> {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
            to.write_all(&data)?;
            bytes += data.len() as u64;
        }
    }
    to.flush()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curl_line_writes_where_it_is_asked_to() {
        assert_eq!(curl_flags("s-1", None), "-fsS -o s-1.tar");
        assert_eq!(curl_flags("s-1", Some(Path::new("my file"))), "-fsS -o 'my file'");
        assert_eq!(curl_flags("s-1", Some(Path::new("-"))), "-fsS -o -");
    }
}
