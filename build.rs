//! Turns the protobuf contract under `api/proto` into Rust types, and tells the binary its revision.

use std::{env, path::PathBuf, process::Command};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("api/proto");
    let files = ["block", "command", "membership", "peer", "snapshot"]
        .map(|f| root.join(format!("blockraft/v1/{f}.proto")));
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let descriptors = protox::compile(&files, [&root])?;
    // `bytes` fields are slices of the received frame: payloads are never copied by decoding.
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;

    let revision = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|out| out.status.success())
        .and_then(|out| String::from_utf8(out.stdout).ok())
        .unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=BLOCKRAFT_REVISION={}", revision.trim());
    println!("cargo:rerun-if-changed=.git/HEAD");
    Ok(())
}
