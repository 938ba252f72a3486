//! Lists of jobs, page by page, in a stable order: live jobs by age, then
//! finished ones, newest first. A page scans a bounded number of rows, so a
//! filter that matches little costs pages, never a stall.

use super::{Call, Service, freshness};
use crate::api::convert::answer::{Freshness, JobRow, reasons};
use crate::api::error::Failure;
use nf_core::command::Mode;
use nf_core::id::{JobNo, ModelId, NodeName, TenantId};
use nf_core::job::{Job, JobState, Replica};
use nf_core::node::NodeState;
use nf_core::placement::explain;
use nf_core::reason::Refusal;
use nf_core::state::State;

/// Rows of a page when the caller does not say, and at most.
pub const PER_PAGE: usize = 100;
pub const MAX_PER_PAGE: usize = 1000;
/// Rows that one page may look at.
const MAX_SCAN: usize = 50_000;
/// Finished jobs read at once.
const CHUNK: usize = 256;
/// Rows of one page whose reason is looked for.
const MAX_EXPLAINED: usize = 200;

/// Where a page begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// After this live job.
    Live(JobNo),
    /// Below this position of the history; None: from the newest.
    Finished(Option<u64>),
}

impl Cursor {
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let bad = || Refusal::invalid("next_token", "next_token: not one that this list gave out; start without it");
        let number = |digits: &str| u64::from_str_radix(digits, 16).map_err(|_| bad());
        if text.len() > 20 || !text.is_ascii() || text.is_empty() {
            return Err(bad());
        }
        match text.split_at(1) {
            ("l", digits) => Ok(Cursor::Live(JobNo(number(digits)?))),
            ("h", "") => Ok(Cursor::Finished(None)),
            ("h", digits) => Ok(Cursor::Finished(Some(number(digits)?))),
            _ => Err(bad()),
        }
    }

    pub fn token(self) -> String {
        match self {
            Cursor::Live(no) => format!("l{:x}", no.0),
            Cursor::Finished(None) => "h".to_owned(),
            Cursor::Finished(Some(position)) => format!("h{position:x}"),
        }
    }
}

/// A page of something that is numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberPage {
    /// After this number; None: from the start.
    pub after: Option<u64>,
    pub per_page: usize,
}

impl NumberPage {
    pub fn new(token: Option<&str>, per_page: Option<u64>) -> Result<Self, Refusal> {
        let bad = || Refusal::invalid("next_token", "next_token: not one that this list gave out; start without it");
        let read = |text: &str| {
            let digits = text.strip_prefix('n').filter(|d| d.len() <= 8 && d.bytes().all(|b| b.is_ascii_hexdigit()));
            digits.and_then(|d| u64::from_str_radix(d, 16).ok()).ok_or_else(bad)
        };
        let per_page = per_page.filter(|n| *n > 0).map_or(MAX_PER_PAGE, |n| n as usize).min(MAX_PER_PAGE);
        Ok(Self { after: token.map(read).transpose()?, per_page })
    }

    /// The token of the page after `last`.
    pub fn token(&self, last: u64) -> String {
        format!("n{last:x}")
    }
}

/// Which jobs, and how many at a time.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub tenant: Option<TenantId>,
    pub model: Option<ModelId>,
    pub state: Option<JobState>,
    pub node: Option<NodeName>,
    /// Finished jobs, too.
    pub finished: bool,
    /// Say why each waits.
    pub reasons: bool,
    pub per_page: usize,
    pub cursor: Option<Cursor>,
}

/// The state of that name.
pub fn job_state(text: &str) -> Result<JobState, Refusal> {
    let names = || JobState::ALL.iter().map(|s| s.name()).collect::<Vec<_>>().join(", ");
    let found = JobState::ALL.iter().find(|state| state.name().eq_ignore_ascii_case(text));
    found.copied().ok_or_else(|| Refusal::invalid("state", format!("one of {}", names())))
}

/// A node's state of that name.
pub fn node_state(text: &str) -> Result<NodeState, Refusal> {
    const ALL: [NodeState; 5] =
        [NodeState::Ready, NodeState::Suspect, NodeState::Unknown, NodeState::Down, NodeState::Maintenance];
    let found = ALL.into_iter().find(|state| state.name().eq_ignore_ascii_case(text));
    found.ok_or_else(|| Refusal::invalid("state", "one of Ready, Suspect, Unknown, Down, Maintenance"))
}

impl Filter {
    fn matches(&self, state: &State, job: &Job) -> bool {
        self.tenant.as_ref().is_none_or(|t| *t == job.spec.tenant)
            && self.model.as_ref().is_none_or(|m| *m == job.spec.model)
            && self.state.is_none_or(|s| s == job.state())
            && self.node.as_ref().is_none_or(|name| {
                let node = state.node_named(name).map(|n| n.no);
                node.is_some() && job.replicas.iter().flat_map(Replica::allocations).any(|a| Some(a.node) == node)
            })
    }

    fn wants_live(&self) -> bool {
        self.state.is_none_or(|state| !state.is_final())
    }

    fn wants_finished(&self) -> bool {
        // What is over holds nothing on any node.
        self.node.is_none() && self.state.map_or(self.finished, JobState::is_final)
    }
}

/// A row, with its times as numbers for those who want them.
#[derive(Clone, Debug)]
pub struct Row {
    pub row: JobRow,
    pub created_ms: u64,
    pub changed_ms: u64,
}

/// A page of jobs.
#[derive(Clone, Debug)]
pub struct Page {
    pub rows: Vec<Row>,
    pub next: Option<Cursor>,
    pub simulation: bool,
    pub read: Freshness,
}

fn row(state: &State, job: &Job) -> Row {
    Row { row: JobRow::new(state, job), created_ms: job.created_ms, changed_ms: job.changed_ms }
}

impl Service {
    /// One page of jobs.
    pub async fn list(&self, call: &Call, mut filter: Filter) -> Result<Page, Failure> {
        filter.tenant = filter.tenant.or_else(|| call.tenant.clone());
        filter.per_page = match filter.per_page {
            0 => PER_PAGE,
            n => n.min(MAX_PER_PAGE),
        };
        let view = self.read(call).await?;
        let read = freshness(&view);
        let state = view.state;
        let simulation = state.meta().mode == Mode::Simulation;
        let start = filter.cursor.unwrap_or(match filter.wants_live() {
            true => Cursor::Live(JobNo(0)),
            false => Cursor::Finished(None),
        });
        let (mut rows, mut next) = match start {
            Cursor::Live(after) => {
                let (state, filter) = (state.clone(), filter.clone());
                super::off_thread(move || live(&state, &filter, after)).await?
            }
            Cursor::Finished(_) => (Vec::new(), Some(start)),
        };
        if let Some(Cursor::Finished(before)) = next {
            next = None;
            if filter.wants_finished() {
                next = self.finished_rows(&state, &filter, before, &mut rows).await?;
            }
        }
        Ok(Page { rows, next, simulation, read })
    }

    /// Appends finished jobs to a page; returns where the next one begins.
    async fn finished_rows(
        &self,
        state: &State,
        filter: &Filter,
        mut before: Option<u64>,
        rows: &mut Vec<Row>,
    ) -> Result<Option<Cursor>, Failure> {
        let mut scanned = 0;
        while rows.len() < filter.per_page && scanned < MAX_SCAN {
            let chunk = self.replica.finished_list(before, CHUNK).await?;
            scanned += chunk.len();
            if chunk.is_empty() {
                return Ok(None);
            }
            for (position, job) in chunk {
                before = Some(position);
                if filter.matches(state, &job) {
                    rows.push(row(state, &job));
                }
                if rows.len() == filter.per_page {
                    break;
                }
            }
        }
        Ok(Some(Cursor::Finished(before)))
    }
}

/// Live jobs after `after`, and where to go on.
fn live(state: &State, filter: &Filter, after: JobNo) -> (Vec<Row>, Option<Cursor>) {
    let mut rows = Vec::new();
    let from = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
    for (scanned, (no, job)) in state.jobs().range(from).enumerate() {
        if filter.matches(state, job) {
            let mut made = row(state, job);
            if filter.reasons && rows.len() < MAX_EXPLAINED && job.state() == JobState::Pending {
                made.row.reasons = Some(reasons(&explain::blockers(state, job)));
            }
            rows.push(made);
        }
        if rows.len() == filter.per_page || scanned + 1 == MAX_SCAN {
            return (rows, Some(Cursor::Live(*no)));
        }
    }
    (rows, Some(Cursor::Finished(None)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::resources::Gpus;
    use nf_core::testing::{job_spec, register, run, schedule};

    #[test]
    fn cursors_survive_the_wire_and_nonsense_is_refused() {
        for cursor in [Cursor::Live(JobNo(7)), Cursor::Finished(None), Cursor::Finished(Some(u64::MAX))] {
            assert_eq!(Cursor::parse(&cursor.token()), Ok(cursor));
        }
        for bad in ["", "x", "l", "lzz", "l-1", "é", "lffffffffffffffffffff"] {
            assert!(Cursor::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pages_cover_every_match_once() {
        let mut state = State::new();
        run(&mut state, register("n1", nf_core::testing::node_spec(8)));
        for i in 0..10 {
            let tenant = if i % 2 == 0 { "even" } else { "odd" };
            run(&mut state, schedule(&format!("r{i}"), job_spec(tenant, Gpus::Milli(1))));
        }
        let filter = Filter { tenant: TenantId::new("even").ok(), per_page: 2, ..Filter::default() };
        let (mut after, mut seen) = (JobNo(0), Vec::new());
        loop {
            let (rows, next) = live(&state, &filter, after);
            seen.extend(rows.into_iter().map(|r| r.row.request_id));
            match next {
                Some(Cursor::Live(no)) => after = no,
                _ => break,
            }
        }
        assert_eq!(seen, ["r0", "r2", "r4", "r6", "r8"]);
    }
}
