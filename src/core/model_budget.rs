//! What a model version may take (P6): the latency and the memory that its manifest states.
//! Nothing that asks for more is let in, whoever asks; the memory is a hard limit where it is
//! launched. It does not measure.

use crate::job::JobSpec;
use crate::reason::{Reason, Refusal};
use crate::resources::Resources;
use serde::{Deserialize, Serialize};

/// See the module's text. None: the manifest says nothing of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ModelBudget {
    /// Of the 95th percentile, in milliseconds.
    pub latency_ms: Option<u32>,
    /// Bytes of the host's memory, and of each device's.
    pub memory: Option<u64>,
}

impl ModelBudget {
    /// Whether there is anything to hold to.
    pub fn is_stated(&self) -> bool {
        *self != Self::default()
    }
}

/// Whether a job asks for no more than its version may take.
///
/// # Errors
/// `MemoryBudgetExceeded` or `LatencyBudgetExceeded` with both numbers.
pub fn judge(spec: &JobSpec) -> Result<(), Refusal> {
    let (ask, budget) = (&spec.resources, &spec.budget);
    let named = format!("version {} of model {}", spec.version, spec.model);
    for (field, bytes) in [("resources.mem", ask.memory), ("resources.gpu_memory", ask.gpu_memory)] {
        if let Some(most) = budget.memory.filter(|most| bytes > *most) {
            let detail = format!("{named} may have {most} bytes of memory, as its manifest says, not {bytes}");
            return Err(Refusal::field(Reason::MemoryBudgetExceeded, field, detail));
        }
    }
    let slower = |most: &u32| spec.constraints.latency_ms.is_some_and(|ms| ms > *most);
    if let Some(most) = budget.latency_ms.filter(slower) {
        let detail = format!("{named} answers within {most} ms, as its manifest says; ask for that or less");
        return Err(Refusal::field(Reason::LatencyBudgetExceeded, "constraints.latency_ms", detail));
    }
    Ok(())
}

impl JobSpec {
    /// The bound on its p95 latency that holds, in milliseconds: what the job states, else its version's.
    pub fn latency_ms(&self) -> Option<u32> {
        self.constraints.latency_ms.or(self.budget.latency_ms)
    }

    /// What it is held to where it runs: as asked for, and no more memory than its version may have.
    pub fn held_to(&self) -> Resources {
        let asked = Some(self.resources.memory).filter(|bytes| *bytes > 0);
        let memory = asked.into_iter().chain(self.budget.memory).min().unwrap_or(0);
        Resources { memory, ..self.resources.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::{apply, apply_batch};
    use crate::audit::{Action, Check, Verdict};
    use crate::command::{Batch, Command, Mode};
    use crate::id::JobNo;
    use crate::plan::Intent;
    use crate::policy::{Faults, admission};
    use crate::resources::Gpus;
    use crate::rollout::{Next, Strategy};
    use crate::rows::{self, Table};
    use crate::scaling::{Scaling, Target};
    use crate::state::State;
    use crate::testing;

    #[test]
    fn what_asks_for_more_than_the_manifest_allows_is_told_which_and_how_much() {
        let mut spec = testing::job_spec("t1", Gpus::Whole(1));
        spec.budget = ModelBudget { latency_ms: Some(200), memory: Some(1000) };
        (spec.resources.memory, spec.resources.gpu_memory, spec.constraints.latency_ms) = (1000, 1000, Some(200));
        assert!(judge(&spec).is_ok(), "as much as it may");
        let told = |change: &dyn Fn(&mut JobSpec)| {
            let mut more = spec.clone();
            change(&mut more);
            judge(&more).map_err(|refusal| (refusal.reason, refusal.field.unwrap_or_default()))
        };
        let memory = |field: &str| Err((Reason::MemoryBudgetExceeded, field.to_owned()));
        assert_eq!(told(&|spec| spec.resources.memory = 1001), memory("resources.mem"));
        assert_eq!(told(&|spec| spec.resources.gpu_memory = 1001), memory("resources.gpu_memory"));
        let slow = Err((Reason::LatencyBudgetExceeded, "constraints.latency_ms".to_owned()));
        assert_eq!(told(&|spec| spec.constraints.latency_ms = Some(201)), slow);
        assert_eq!(told(&|spec| spec.constraints.latency_ms = None), Ok(()), "it follows its version then");
        spec.budget = ModelBudget::default();
        assert!(
            judge(&JobSpec { resources: Resources { memory: u64::MAX, ..spec.resources.clone() }, ..spec }).is_ok()
        );
    }

    #[test]
    fn the_smaller_memory_is_the_hard_limit() {
        let mut spec = testing::job_spec("t1", Gpus::Whole(1));
        for (asked, budget, limit) in [(0, None, 0), (0, Some(7), 7), (9, None, 9), (5, Some(7), 5), (9, Some(7), 7)] {
            (spec.resources.memory, spec.budget.memory) = (asked, budget);
            assert_eq!(spec.held_to().memory, limit, "asked {asked}, budget {budget:?}");
        }
        (spec.constraints.latency_ms, spec.budget.latency_ms) = (None, Some(300));
        assert_eq!(spec.latency_ms(), Some(300));
        spec.constraints.latency_ms = Some(100);
        assert_eq!(spec.latency_ms(), Some(100));
    }

    const BUDGET: ModelBudget = ModelBudget { latency_ms: None, memory: Some(1000) };

    /// A service whose version may have 1,000 bytes, of which it asks for `memory`.
    fn service(memory: u64) -> JobSpec {
        let mut spec = JobSpec { budget: BUDGET, ..testing::job_spec("t1", Gpus::Whole(1)) };
        spec.resources.memory = memory;
        JobSpec { scaling: Some(Scaling { min: 0, max: 4, ..Scaling::default() }), ..spec }
    }

    fn world() -> State {
        let mut state = State::new();
        testing::run(&mut state, testing::register("n1", testing::node_spec(8)));
        state
    }

    fn submit(memory: u64) -> Command {
        match testing::schedule("s", service(memory)) {
            Intent::Schedule { submission, .. } => Command::Submit { submission, placements: vec![], claim: None },
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn nothing_over_its_budget_is_let_in_by_plan_or_apply() {
        let mut state = world();
        let planned = testing::try_run(&mut state, testing::schedule("s", service(1001)));
        assert_eq!(planned.unwrap_err().reason, Reason::MemoryBudgetExceeded);
        assert_eq!(apply(&mut state, &submit(1001)).unwrap_err().reason, Reason::MemoryBudgetExceeded);
        assert!(apply(&mut state, &submit(1000)).is_ok());
        // A version that may have less than the job asks for.
        let smaller = ModelBudget { memory: Some(999), ..BUDGET };
        let version = crate::id::VersionId::new("v2").unwrap();
        let next = Box::new(Next { version, budget: smaller, ..Next::of(&service(1000)) });
        let request = crate::id::RequestId::new("s").unwrap();
        let (strategy, rollback) = (Strategy::default(), false);
        let start = Intent::StartRollout { request, tenant: None, next: next.clone(), strategy, rollback };
        let planned = testing::try_run(&mut state, start);
        assert_eq!(planned.unwrap_err().reason, Reason::MemoryBudgetExceeded);
        let start = Command::StartRollout { job: JobNo(1), next, strategy, rollback, by: None };
        assert_eq!(apply(&mut state, &start).unwrap_err().reason, Reason::MemoryBudgetExceeded);
    }

    #[test]
    fn the_matrix_says_what_was_asked_of_admissions_and_of_scaling() {
        let verdict = |spec: &JobSpec| admission(spec, Mode::Simulation, Faults::default())[5];
        let said = |verdict, code| Check { verdict, code };
        assert_eq!(verdict(&service(1000)), said(Verdict::Pass, None));
        assert_eq!(verdict(&service(1001)), said(Verdict::Block, Some(Reason::MemoryBudgetExceeded)));
        let unstated = JobSpec { budget: ModelBudget::default(), ..service(1001) };
        assert_eq!(verdict(&unstated), said(Verdict::Na, None));
        let mut state = world();
        let target =
            Target { replicas: 2, why: crate::autoscaler::Why::Asked, inputs: None, seen: None, learned: None };
        testing::run(&mut state, testing::schedule("s", service(1000)));
        let scale = Command::Scale { job: JobNo(1), target };
        let mut batch = Batch { base: state.meta().base, at_ms: 7, ..Batch::default() };
        batch.push(scale, None);
        apply_batch(&mut state, &batch);
        let rows = state.take_changes();
        let entry = rows.iter().rfind(|row| row.table == Table::AuditEntry).unwrap();
        let entry = rows::read_audit(entry.value.as_ref().unwrap()).unwrap();
        assert_eq!((entry.record.action, entry.record.checks[5].verdict), (Action::ServiceScale, Verdict::Pass));
    }
}
