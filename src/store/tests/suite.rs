//! openraft's own suite, on the real store.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use crate::raft::TypeConfig;
use crate::store::tests::support;
use crate::store::{Closer, LogStore, StateMachine};

struct Builder;

/// Closes the store before its folder goes.
struct Guard {
    closer: Option<Closer>,
    _dir: TempDir,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.closer.take().expect("dropped once").close();
    }
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, LogStore, StateMachine), StorageError<TypeConfig>> {
        let (dir, path) = support::folder();
        let opened = support::open(&path);
        let guard = Guard { closer: Some(opened.closer), _dir: dir };
        Ok((guard, opened.log, opened.machine))
    }
}

#[test]
fn the_store_passes_openrafts_suite() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(Suite::test_all(Builder)).expect("every case passes");
}
