//! A job whose number of replicas follows its load: between which bounds, what a
//! replica can serve, and how its number is changed. A service that needs none is
//! asleep, not over; its next request wakes it. It does not decide how many are
//! needed (`autoscaler` does), nor where they go (`placement` does), and changes
//! nothing (`apply` does).

use crate::autoscaler::{Inputs, Learned, Steps, Why};
use crate::job::{Job, MAX_REPLICAS, Next, Phase, Replica};
use crate::reason::Refusal;
use serde::{Deserialize, Serialize};

/// Bounds and wishes of a service, as its owner states them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Scaling {
    /// 0 lets it sleep when nobody asks.
    pub min: u16,
    pub max: u16,
    /// Requests that one replica serves at once; each gateway gives it so many at most.
    pub concurrency: u16,
    /// Bound on the time until a request starts to be served, in milliseconds.
    pub wait_ms: u32,
    /// How long a replica takes to start, until that has been seen, in milliseconds.
    pub cold_start_ms: u32,
    /// A replica is kept for so long after the last request, where `min` is 0, in milliseconds.
    pub idle_ms: u32,
    /// Decisions are told and not carried out.
    pub advisory: bool,
    /// How fast the autoscaler may change the number; what people ask for changes at once.
    pub steps: Steps,
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            min: 1,
            max: 1,
            concurrency: 8,
            wait_ms: 2_000,
            cold_start_ms: 30_000,
            idle_ms: 600_000,
            advisory: false,
            steps: Steps::default(),
        }
    }
}

/// Longest of any of its times: a day.
const MOST_MS: u32 = 86_400_000;

impl Scaling {
    /// Refuses what no service can be.
    ///
    /// # Errors
    /// The first field at fault.
    pub fn check(&self, replicas: u16, gang: bool) -> Result<(), Refusal> {
        let bad = |field: &str, detail: String| Err(Refusal::invalid(format!("scaling.{field}"), detail));
        if self.max == 0 || self.max > MAX_REPLICAS {
            return bad("max", format!("1 to {MAX_REPLICAS}, not {}", self.max));
        }
        if self.min > self.max {
            return bad("min", format!("at most max, {}, not {}", self.max, self.min));
        }
        if replicas > self.max || replicas < self.min {
            let detail = format!("replicas, the first number, is {replicas}: between scaling.min and scaling.max");
            return Err(Refusal::invalid("replicas", detail));
        }
        if self.concurrency == 0 {
            return bad("concurrency", "at least 1: requests that a replica serves at once".to_owned());
        }
        let times = [("max_wait", self.wait_ms), ("cold_start", self.cold_start_ms), ("idle", self.idle_ms)];
        if let Some((field, _)) = times.iter().find(|(_, ms)| *ms > MOST_MS) {
            return bad(field, "at most a day".to_owned());
        }
        if self.steps.within_ms == 0 || self.steps.within_ms > MOST_MS {
            return bad("step_within", "more than nothing, at most a day".to_owned());
        }
        if gang {
            return bad("max", "a gang has a fixed number of replicas; leave out gang or scaling".to_owned());
        }
        Ok(())
    }
}

/// How many replicas a service shall have, and on whose word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub replicas: u16,
    pub why: Why,
    /// What the autoscaler saw; None when somebody else asked.
    pub inputs: Option<Box<Inputs>>,
    /// How many were wanted when this was decided: void at any other number.
    pub seen: Option<u16>,
    /// What the autoscaler has learned since it last changed something.
    pub learned: Option<Box<Learned>>,
}

impl Job {
    /// Replicas that run or shall run.
    pub fn desired(&self) -> u16 {
        self.replicas.iter().filter(|r| is_wanted(&r.phase)).count() as u16
    }

    /// Whether replicas that have ended for good are all that stands between the wanted number and more.
    pub(crate) fn is_spent_beyond(&self, to: u16) -> bool {
        to > self.desired() && self.desired() + self.spent() >= to
    }

    /// Replicas that ended by themselves, for good: they are not begun again by asking for more.
    pub(crate) fn spent(&self) -> u16 {
        self.replicas.iter().filter(|r| matches!(r.phase, Phase::Succeeded | Phase::Failed { .. })).count() as u16
    }

    /// A service without a replica, which its next request wakes.
    pub fn is_asleep(&self) -> bool {
        let none = || self.replicas.iter().all(|r| r.has_ended() && matches!(r.phase, Phase::Cancelled));
        !self.stopped && self.spec.scaling.is_some() && none()
    }

    /// Nothing of it runs, or will.
    pub fn is_over(&self) -> bool {
        self.replicas.iter().all(Replica::has_ended) && !self.is_asleep()
    }
}

/// Whether the replica runs, or shall.
pub(crate) fn is_wanted(phase: &Phase) -> bool {
    match phase {
        Phase::Stopping { then, .. } => *then != Next::End,
        phase => matches!(phase, Phase::Waiting { .. } | Phase::Held { .. }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Answer, Report, ReportKind};
    use crate::id::{Incarnation, JobNo, NodeName, RequestId};
    use crate::job::{JobSpec, JobState, Stage};
    use crate::plan::Intent;
    use crate::reason::Reason;
    use crate::resources::Gpus;
    use crate::state::State;
    use crate::{invariants, testing};

    fn service(min: u16, max: u16) -> JobSpec {
        let scaling = Scaling { min, max, ..Scaling::default() };
        JobSpec { scaling: Some(scaling), ..testing::job_spec("t1", Gpus::Milli(100)) }
    }

    fn world(min: u16, max: u16) -> State {
        let mut state = State::new();
        testing::run(&mut state, testing::register("n1", testing::node_spec(8)));
        testing::run(&mut state, testing::schedule("s1", service(min, max)));
        state
    }

    fn scale(state: &mut State, to: u16) -> Vec<Answer> {
        let target = Target { replicas: to, why: Why::QueueDepth, inputs: None, seen: None, learned: None };
        let request = RequestId::new("s1").unwrap();
        let answer = testing::run(state, Intent::Scale { request, tenant: None, target });
        testing::run(state, Intent::PlaceWaiting);
        assert_eq!(invariants::check(state), []);
        answer
    }

    fn job(state: &State) -> &Job {
        state.job(JobNo(1)).unwrap()
    }

    /// The agent says of every replica that should stop that it has, and of the others that they are ready.
    fn agent(state: &mut State) {
        let report = |(no, r): (usize, &Replica)| {
            let kind = match &r.phase {
                Phase::Held { .. } => ReportKind::Stage(Stage::Ready),
                Phase::Stopping { .. } => ReportKind::Ended { ok: true, why: Reason::ScaledDown },
                _ => return None,
            };
            Some(Report { job: JobNo(1), replica: no as u16, generation: r.generation, kind })
        };
        let reports = job(state).replicas.iter().enumerate().filter_map(report).collect();
        let node = NodeName::new("n1").unwrap();
        testing::run(state, Intent::Reports { node, incarnation: Incarnation(1), reports });
        assert_eq!(invariants::check(state), []);
    }

    #[test]
    fn a_service_goes_up_down_to_sleep_and_wakes() {
        let mut state = world(0, 4);
        agent(&mut state);
        assert_eq!((job(&state).desired(), job(&state).state()), (1, JobState::Running));
        scale(&mut state, 4);
        agent(&mut state);
        assert_eq!((job(&state).desired(), state.ledger().tenant(job(&state).tenant).gpu_milli), (4, 400));
        scale(&mut state, 0);
        assert_eq!((job(&state).desired(), job(&state).is_asleep()), (0, false), "they are still stopping");
        // Wanted again before the old ones are gone: under numbers of their own.
        scale(&mut state, 1);
        assert_eq!((job(&state).desired(), job(&state).replicas.len()), (1, 5));
        scale(&mut state, 0);
        agent(&mut state);
        assert!(job(&state).is_asleep() && !job(&state).is_over());
        assert_eq!(job(&state).state(), JobState::Admitted);
        assert_eq!(state.ledger().tenant(job(&state).tenant).gpu_milli, 0);
        scale(&mut state, 2);
        agent(&mut state);
        let generations: Vec<u32> = job(&state).replicas.iter().map(|r| r.generation.0).collect();
        assert_eq!((job(&state).state(), generations), (JobState::Running, vec![2, 2, 1, 1, 1]));
    }

    #[test]
    fn what_waits_and_what_is_not_ready_goes_first() {
        let mut state = world(1, 8);
        scale(&mut state, 2);
        agent(&mut state);
        scale(&mut state, 3);
        scale(&mut state, 2);
        let phases: Vec<bool> =
            job(&state).replicas.iter().map(|r| matches!(r.phase, Phase::Held { stage: Stage::Ready, .. })).collect();
        assert_eq!(phases, [true, true, false]);
    }

    #[test]
    fn the_same_number_is_no_change_and_bounds_hold() {
        let mut state = world(1, 3);
        assert_eq!(scale(&mut state, 1), []);
        for to in [0, 4] {
            let target = Target { replicas: to, why: Why::Idle, inputs: None, seen: None, learned: None };
            let request = RequestId::new("s1").unwrap();
            let refusal = testing::try_run(&mut state, Intent::Scale { request, tenant: None, target }).unwrap_err();
            assert_eq!(refusal.field.as_deref(), Some("replicas"), "{refusal}");
        }
    }

    #[test]
    fn a_sleeping_service_is_stopped_for_good() {
        let mut state = world(0, 2);
        scale(&mut state, 0);
        agent(&mut state);
        let stop = Intent::Stop { request: RequestId::new("s1").unwrap(), tenant: None, why: Reason::StoppedByUser };
        testing::run(&mut state, stop);
        assert!(state.job(JobNo(1)).is_none());
        assert_eq!(invariants::check(&state), []);
    }

    #[test]
    fn what_no_service_can_be_is_refused() {
        let good = Scaling { min: 0, max: 4, ..Scaling::default() };
        assert!(good.check(0, false).is_ok() && good.check(4, false).is_ok());
        let field = |scaling: Scaling, replicas, gang| scaling.check(replicas, gang).unwrap_err().field.unwrap();
        assert_eq!(field(Scaling { max: 0, ..good }, 1, false), "scaling.max");
        assert_eq!(field(Scaling { min: 5, ..good }, 1, false), "scaling.min");
        assert_eq!(field(good, 5, false), "replicas");
        assert_eq!(field(Scaling { concurrency: 0, ..good }, 1, false), "scaling.concurrency");
        assert_eq!(field(Scaling { wait_ms: u32::MAX, ..good }, 1, false), "scaling.max_wait");
        for within_ms in [0, MOST_MS + 1] {
            let steps = Steps { within_ms, ..Steps::default() };
            assert_eq!(field(Scaling { steps, ..good }, 1, false), "scaling.step_within");
        }
        assert_eq!(field(good, 1, true), "scaling.max");
    }
}
