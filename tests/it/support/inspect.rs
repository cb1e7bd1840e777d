//! `blockraft inspect` on a folder.

use std::{path::Path, process::Output};

use serde_json::Value;

use crate::support::{folder::listing, node::binary};

pub(crate) fn inspect(dir: &Path, more: &[&str]) -> Output {
    binary().arg("inspect").arg(dir).args(more).output().expect("the binary runs")
}

/// The report, and the exit code. Looking changes nothing.
#[track_caller]
pub(crate) fn report(dir: &Path, more: &[&str]) -> (Value, Option<i32>) {
    let before = listing(dir);
    let out = inspect(dir, &[&["--json"], more].concat());
    assert_eq!(listing(dir), before, "inspect changed the folder");
    let json = serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stderr)));
    (json, out.status.code())
}
