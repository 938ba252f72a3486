//! openraft's own suite for log stores and state machines, on RocksDB and on the model disk.

use std::sync::Arc;

use neural_fabric::raft::log_store::LogStore;
use neural_fabric::raft::state_machine::StateMachine;
use neural_fabric::raft::types::Types;
use neural_fabric::storage::fatal::Fatal;
use neural_fabric::storage::log_db::LogDb;
use neural_fabric::storage::model::{ModelDisk, ModelTables, Sync};
use neural_fabric::storage::state_db::StateDb;
use openraft::StorageError;
use openraft::impls::TokioRuntime;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

type C = Types<TokioRuntime>;

struct OnRocks;

impl StoreBuilder<C, LogStore<LogDb>, StateMachine<StateDb>, TempDir> for OnRocks {
    async fn build(&self) -> Result<(TempDir, LogStore<LogDb>, StateMachine<StateDb>), StorageError<C>> {
        let dir = tempfile::tempdir().unwrap();
        let disk = LogDb::open(&dir.path().join("raft"), true, Fatal::abort(), Arc::new(|_| {})).unwrap();
        let tables = StateDb::open(dir.path(), true, Fatal::abort()).unwrap();
        let log = LogStore::open(Arc::new(disk)).unwrap();
        let machine = StateMachine::open(Arc::new(tables), Fatal::abort()).unwrap();
        Ok((dir, log, machine))
    }
}

struct OnModel;

impl StoreBuilder<C, LogStore<ModelDisk>, StateMachine<ModelTables>> for OnModel {
    async fn build(&self) -> Result<((), LogStore<ModelDisk>, StateMachine<ModelTables>), StorageError<C>> {
        let log = LogStore::open(Arc::new(ModelDisk::new(Sync::AtOnce))).unwrap();
        let machine = StateMachine::open(Arc::new(ModelTables::new()), Fatal::abort()).unwrap();
        Ok(((), log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_passes_on_rocksdb() {
    Suite::test_all(OnRocks).await.unwrap();
}

#[tokio::test]
async fn openrafts_suite_passes_on_the_model_disk() {
    Suite::test_all(OnModel).await.unwrap();
}
