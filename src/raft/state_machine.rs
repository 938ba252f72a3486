//! openraft's state machine: the core's `State` in memory, its rows in [`Tables`].
//!
//! Entries of one call are applied, their rows written together with the position, the new state
//! published, and only then the callers answered. It decides nothing: `nf_core::apply` does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use nf_core::apply::{BatchOutcome, LEVELS, apply_batch};
use nf_core::invariants;
use nf_core::rows::{self, RowChange, Table};
use nf_core::state::State;
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{AsyncRuntime, OptionalSend};
use tokio::sync::watch;

use super::encoding::Position;
use super::marks::Marks;
use super::types::{Entry, EntryPayload, LogId, Outcome, Snapshot, SnapshotMeta, StoredMembership, Types};
use crate::storage::fatal::Fatal;
use crate::storage::frame::invalid;
use crate::storage::tables::{Change, Tables};

/// Commands whose rows are written in one batch; bounds the memory of a catch-up.
const BATCH_COMMANDS: usize = 4_096;

/// The state after an applied batch.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    pub state: Arc<State>,
    /// Log index of the last applied entry, 0 before the first.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
}

/// See the module.
pub struct StateMachine<T> {
    tables: Arc<T>,
    state: State,
    position: Position,
    published: watch::Sender<Applied>,
    commands: Arc<AtomicU64>,
    marks: Arc<Marks>,
    fatal: Fatal,
}

fn applied(state: &State, position: &Position) -> Applied {
    let at = position.applied;
    Applied {
        state: Arc::new(state.speculative()),
        index: at.map_or(0, |id| id.index),
        term: at.map_or(0, |id| id.leader_id.term),
    }
}

fn table(number: u8) -> io::Result<Table> {
    let found = Table::ALL.iter().find(|t| **t as u8 == number);
    found.copied().ok_or_else(|| invalid(format!("unknown table {number}: written by a newer version")))
}

/// Loads rows and position and holds the state against its invariants.
fn load<T: Tables>(tables: &T) -> io::Result<(State, Position)> {
    let live = |number: u8| Table::LIVE.iter().any(|t| *t as u8 == number);
    let rows = tables.rows(&live)?;
    let position = match tables.position()? {
        Some(bytes) => Position::decode(&bytes)?,
        None if rows.is_empty() => Position::default(),
        None => return Err(invalid("state: rows without a position")),
    };
    if rows.is_empty() {
        return Ok((State::new(), position));
    }
    let rows: io::Result<Vec<_>> = rows.into_iter().map(|row| Ok((table(row.table)?, row.key, row.value))).collect();
    let state = State::from_rows(rows?).map_err(|e| invalid(format!("state: {e}")))?;
    let level = state.meta().level;
    if !LEVELS.contains(&level) {
        let (from, to) = (LEVELS.start(), LEVELS.end());
        return Err(invalid(format!(
            "state: the group is at feature level {level}, this build runs {from} to {to}: start the version that the \
             other members run"
        )));
    }
    let violations = invariants::check(&state);
    if let Some(first) = violations.first() {
        let count = violations.len();
        return Err(invalid(format!("state: {count} broken invariants, the first: {first:?}")));
    }
    Ok((state, position))
}

impl<T: Tables> StateMachine<T> {
    /// Loads the state as of the last flush; openraft replays the rest of the log.
    pub fn open(tables: Arc<T>, fatal: Fatal) -> io::Result<Self> {
        let (state, position) = load(&*tables)?;
        let (published, _) = watch::channel(applied(&state, &position));
        let machine =
            Self { tables, state, position, published, commands: Arc::default(), marks: Arc::default(), fatal };
        machine.note_loaded();
        Ok(machine)
    }

    /// What was loaded is compared, too, also when nothing follows it.
    fn note_loaded(&self) {
        if let Some(applied) = self.position.applied {
            self.marks.note(applied.index, self.state.hash());
        }
    }

    /// The state after each applied batch.
    pub fn watch(&self) -> watch::Receiver<Applied> {
        self.published.subscribe()
    }

    /// Counts applied commands, for deciding when to flush.
    pub fn commands(&self) -> Arc<AtomicU64> {
        self.commands.clone()
    }

    /// The state's hash at some indexes, for comparison with other members.
    pub fn marks(&self) -> Arc<Marks> {
        self.marks.clone()
    }

    fn apply_one(&mut self, entry: &Entry) -> io::Result<Option<BatchOutcome>> {
        let outcome = match &entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Membership(membership) => {
                self.position.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                None
            }
            EntryPayload::Normal(payload) => {
                let batch = payload.batch().map_err(|e| {
                    let reason = format!("log entry {} cannot be applied: {e}", entry.log_id.index);
                    // Skipping it would fork history, so the member stops here.
                    self.fatal.raise(&reason);
                    invalid(reason)
                })?;
                let count = batch.commands.len() as u64;
                self.commands.fetch_add(count, Ordering::Relaxed);
                Some(apply_batch(&mut self.state, batch))
            }
        };
        self.position.applied = Some(entry.log_id);
        Ok(outcome)
    }

    fn commit<RT: AsyncRuntime>(&mut self, pending: &mut Pending<RT>) -> io::Result<()> {
        let position = Bytes::from(self.position.encode());
        forget_requests(&*self.tables, &mut pending.changes)?;
        self.tables.commit(std::mem::take(&mut pending.changes), position)?;
        self.published.send_replace(applied(&self.state, &self.position));
        for (responder, outcome) in pending.answers.drain(..) {
            responder.send(outcome);
        }
        pending.commands = 0;
        Ok(())
    }
}

/// Adds to a batch what goes with the finished jobs that it deletes: the rows by which their requests find them.
/// Whose request has finished another job since keeps its row.
fn forget_requests<T: Tables>(tables: &T, changes: &mut Vec<Change>) -> io::Result<()> {
    let (history, index) = (Table::History as u8, Table::HistoryOf as u8);
    let deleted = |change: &&Change| change.table == history && change.value.is_none();
    let positions: Vec<_> = changes.iter().filter(deleted).map(|change| change.key.clone()).collect();
    for position in positions {
        let Some(row) = tables.get(history, &position)? else { continue };
        let job = rows::read_history(&row).map_err(|e| invalid(format!("history: {e}")))?;
        let request = rows::history_key(&job.spec.tenant, &job.request);
        let newest = changes.iter().rev().find(|change| change.table == index && change.key == request);
        let points_to = match newest {
            Some(change) => change.value.clone(),
            None => tables.get(index, &request)?,
        };
        if points_to.is_some_and(|to| to == position) {
            changes.push(Change { table: index, key: request, value: None });
        }
    }
    Ok(())
}

/// Applied but not yet written or answered.
struct Pending<RT: AsyncRuntime> {
    changes: Vec<Change>,
    answers: Vec<(ApplyResponder<Types<RT>>, Outcome)>,
    commands: usize,
}

fn change(row: RowChange) -> Change {
    Change { table: row.table as u8, key: row.key, value: row.value }
}

impl<RT: AsyncRuntime, T: Tables> RaftStateMachine<Types<RT>> for StateMachine<T> {
    type SnapshotData = T::Snapshot;
    type SnapshotBuilder = Builder<T>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.position.applied, self.position.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types<RT>>, io::Error>> + Unpin + OptionalSend,
    {
        let mut pending = Pending::<RT> { changes: Vec::new(), answers: Vec::new(), commands: 0 };
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let batch = self.apply_one(&entry)?;
            let changes = self.state.take_changes();
            self.marks.note(entry.log_id.index, self.state.hash());
            pending.commands += changes.len().max(1);
            pending.changes.extend(changes.into_iter().map(change));
            if let Some(responder) = responder {
                let outcome = Outcome { index: entry.log_id.index, batch, state: Arc::new(self.state.speculative()) };
                pending.answers.push((responder, outcome));
            }
            if pending.commands >= BATCH_COMMANDS {
                self.commit(&mut pending)?;
            }
        }
        if pending.commands > 0 {
            self.commit(&mut pending)?;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Builder<T>> {
        // Content and position are fixed here, between two applies; the build only describes.
        let draft = self.tables.checkpoint(Bytes::from(self.position.encode()));
        Some(Builder { tables: self.tables.clone(), draft: Some(draft), position: self.position.clone() })
    }

    async fn get_snapshot_builder(&mut self) -> Builder<T> {
        let builder = <Self as RaftStateMachine<Types<RT>>>::try_create_snapshot_builder(self, true).await;
        builder.expect("never deferred")
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: T::Snapshot) -> Result<(), io::Error> {
        self.tables.install(snapshot).await?;
        let (state, position) = load(&*self.tables)?;
        if position.applied != meta.last_log_id {
            return Err(invalid(format!(
                "snapshot: its rows stand at {:?}, it claims {:?}",
                position.applied, meta.last_log_id
            )));
        }
        (self.state, self.position) = (state, position);
        self.note_loaded();
        self.published.send_replace(applied(&self.state, &self.position));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<T::Snapshot>>, io::Error> {
        let Some((snapshot, meta)) = self.tables.latest()? else {
            return Ok(None);
        };
        let position = Position::decode(&meta)?;
        Ok(Some(Snapshot { meta: meta_of(position), snapshot }))
    }
}

/// The description openraft wants of a checkpoint.
pub fn meta_of(position: Position) -> SnapshotMeta {
    SnapshotMeta { last_log_id: position.applied, last_membership: position.membership }
}

/// A checkpoint whose content is fixed, on its way to being complete.
pub struct Builder<T: Tables> {
    tables: Arc<T>,
    draft: Option<io::Result<T::Draft>>,
    position: Position,
}

impl<RT: AsyncRuntime, T: Tables> RaftSnapshotBuilder<Types<RT>> for Builder<T> {
    type SnapshotData = T::Snapshot;

    async fn build_snapshot(&mut self) -> Result<Snapshot<T::Snapshot>, io::Error> {
        let draft = match self.draft.take() {
            Some(draft) => draft?,
            None => return Err(io::Error::other("a checkpoint is built once")),
        };
        let snapshot = self.tables.finish(draft).await?;
        Ok(Snapshot { meta: meta_of(self.position.clone()), snapshot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::model::ModelTables;
    use nf_core::id::{RequestId, TenantId};
    use nf_core::plan::Intent;
    use nf_core::reason::Reason;
    use nf_core::resources::Gpus;
    use nf_core::testing;

    /// The rows of ten jobs that ended one after another; none was ever placed.
    fn ended_jobs() -> (State, Vec<Change>) {
        let mut state = State::new();
        for i in 0..10 {
            let request = format!("r{i}");
            testing::run(&mut state, testing::schedule(&request, testing::job_spec("t1", Gpus::Whole(1))));
            let request = RequestId::new(&request).unwrap();
            testing::run(&mut state, Intent::Stop { request, tenant: None, why: Reason::StoppedByUser });
        }
        let changes = state.take_changes().into_iter().map(change).collect();
        (state, changes)
    }

    fn rows(tables: &ModelTables, of: Table) -> usize {
        tables.rows(&|table| table == of as u8).unwrap().len()
    }

    #[test]
    fn a_finished_job_that_is_forgotten_leaves_nothing_behind() {
        let (_, changes) = ended_jobs();
        let tables = ModelTables::new();
        tables.commit(changes, Bytes::new()).unwrap();
        assert_eq!((rows(&tables, Table::History), rows(&tables, Table::HistoryOf)), (10, 10));
        // All but the last three positions go, and the request of the first has just finished another job.
        let table = Table::History as u8;
        let delete = |position: u64| Change { table, key: position.to_be_bytes().to_vec(), value: None };
        let mut batch: Vec<_> = (1..=7).map(delete).collect();
        let again = rows::history_key(&TenantId::new("t1").unwrap(), &RequestId::new("r0").unwrap());
        let newer = 10u64.to_be_bytes().to_vec();
        batch.push(Change { table: Table::HistoryOf as u8, key: again.clone(), value: Some(newer.clone()) });
        forget_requests(&tables, &mut batch).unwrap();
        tables.commit(batch, Bytes::new()).unwrap();
        assert_eq!((rows(&tables, Table::History), rows(&tables, Table::HistoryOf)), (3, 4));
        assert_eq!(tables.get(Table::HistoryOf as u8, &again).unwrap(), Some(newer), "it finds the newer one");
    }

    #[test]
    fn a_state_of_a_newer_feature_level_is_refused() {
        let (state, _) = ended_jobs();
        let at_level = |level: u32| {
            let mut state = state.clone();
            testing::set_level(&mut state, level);
            let rows =
                state.live_rows().map(|(table, key, value)| Change { table: table as u8, key, value: Some(value) });
            let tables = ModelTables::new();
            tables.commit(rows.collect(), Bytes::from(Position::default().encode())).unwrap();
            load(&tables).map(|_| ())
        };
        at_level(*LEVELS.end()).unwrap();
        let error = at_level(*LEVELS.end() + 1).unwrap_err().to_string();
        assert!(error.contains("feature level 2, this build runs 1 to 1"), "{error}");
    }
}
