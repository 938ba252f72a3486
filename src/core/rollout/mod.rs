//! Rollouts: a job goes from one version of its model to the next without ever being
//! gone. Every copy of a replica says which revision of the job it runs; while a rollout is
//! open there are two, and at its end there is one. Here are its terms and how far it has
//! come; `pass` says the next moves, `judge` whether the new version keeps the service's
//! promise. It changes nothing; `apply` does. See ADR 38.

mod fault;
mod judge;
mod outlook;
mod pass;

pub(crate) use fault::{barred, may_be_kept};
pub use judge::{Count2, verdicts};
pub use outlook::{Outlook, outlook};
pub use pass::{blocked, pass, share_milli};

use crate::audit::Person;
use crate::id::{Label, Revision, VersionId};
use crate::job::{Allocation, Evidence, Job, JobSpec, Movable, Move, Phase, Replica, Runtime, Share, Stage};
use crate::model_budget::ModelBudget;
use crate::node::{Node, NodeState};
use crate::placement::filter;
use crate::reason::{Reason, Refusal};
use crate::resources::Gpus;
use crate::scaling::is_wanted;
use crate::sharing::Ask;
use crate::state::State;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Ends of copies of the new version, by themselves, after which it is taken back.
pub const MOST_FAILURES: u16 = 3;
/// Longest of any of a rollout's times: a day.
const MOST_MS: u32 = 86_400_000;
/// Most replicas that come or go at a time.
const MOST_AT_ONCE: u16 = 64;

/// A small first part, which is looked at before the rest follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// Share of replicas and of requests, 1 to 99; None: one replica, and its share of the requests.
    pub percent: Option<u8>,
    /// The rest follows by itself after the window; else somebody promotes it.
    pub auto_promote: bool,
}

/// How a version takes the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strategy {
    /// Copies beyond the wanted number, at a time.
    pub surge: u16,
    /// Replicas that may be missing at a time, where there is no room for a surge.
    pub unavailable: u16,
    pub canary: Option<Canary>,
    /// How long the new version is watched, as canary and once it is everywhere, in milliseconds.
    pub window_ms: u32,
    /// How long each copy of the new version may take from its start until it first serves, in milliseconds.
    pub ready_ms: u32,
}

impl Default for Strategy {
    fn default() -> Self {
        Self { surge: 1, unavailable: 1, canary: None, window_ms: 300_000, ready_ms: 600_000 }
    }
}

impl Strategy {
    /// Refuses what no rollout can be.
    ///
    /// # Errors
    /// The first field at fault.
    pub fn check(&self) -> Result<(), Refusal> {
        let bad = |field: &str, detail: String| Err(Refusal::invalid(field, detail));
        for (field, n) in [("surge", self.surge), ("unavailable", self.unavailable)] {
            if n > MOST_AT_ONCE {
                return bad(field, format!("at most {MOST_AT_ONCE}, not {n}"));
            }
        }
        if self.surge == 0 && self.unavailable == 0 {
            return bad(
                "unavailable",
                "surge or unavailable, or both, are more than 0: else nothing could move".into(),
            );
        }
        if self.canary.and_then(|canary| canary.percent).is_some_and(|percent| !(1..=99).contains(&percent)) {
            return bad("canary", "1 to 99 percent".into());
        }
        for (field, ms) in [("window", self.window_ms), ("ready_within", self.ready_ms)] {
            if ms == 0 || ms > MOST_MS {
                return bad(field, "more than nothing, at most a day".into());
            }
        }
        Ok(())
    }
}

/// What differs between a job's version and the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    pub version: VersionId,
    pub runtime: Runtime,
    /// As in [`JobSpec`], read and verified by the member that took the call.
    pub manifest: Option<[u8; 32]>,
    pub evidence: Option<Evidence>,
    pub data_classes: Vec<Label>,
    pub self_limiting: bool,
    pub budget: ModelBudget,
    pub approved_by: Option<Arc<str>>,
    pub asked_by: Option<Person>,
}

impl Next {
    /// The version that a spec names.
    pub fn of(spec: &JobSpec) -> Self {
        Self {
            version: spec.version.clone(),
            runtime: spec.runtime,
            manifest: spec.manifest,
            evidence: spec.evidence.clone(),
            data_classes: spec.data_classes.clone(),
            self_limiting: spec.self_limiting,
            budget: spec.budget,
            approved_by: spec.approved_by.clone(),
            asked_by: spec.asked_by.clone(),
        }
    }

    /// The spec with this version in it.
    pub fn spec(&self, of: &JobSpec) -> JobSpec {
        let Self { version, runtime, manifest, evidence, data_classes, self_limiting, budget, approved_by, asked_by } =
            self.clone();
        JobSpec {
            version,
            runtime,
            manifest,
            evidence,
            data_classes,
            self_limiting,
            budget,
            approved_by,
            asked_by,
            below: None,
            ..of.clone()
        }
    }

    /// Whether the spec runs it already, whoever let it in.
    pub fn is_of(&self, spec: &JobSpec) -> bool {
        self.version == spec.version && self.manifest == spec.manifest
    }
}

/// How far a rollout has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    Canary,
    Rest,
    /// It is everywhere, and still watched, since log time `since_ms`.
    Watch {
        since_ms: u64,
    },
}

/// Where a rollout is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Course {
    Forward {
        part: Part,
        paused: bool,
    },
    /// The former version comes back. `failed`: the new one was at fault; else somebody said so.
    Back {
        failed: bool,
        why: Reason,
    },
    Done,
    /// The former version is back.
    Undone {
        failed: bool,
        why: Reason,
    },
}

/// What somebody, or the group itself, says to a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Turn {
    Pause,
    Resume,
    /// The rest follows the canary; what is watched is good.
    Promote,
    /// It is everywhere: the last window begins.
    Watch,
    Done,
    /// The former version comes back; `counts` is what the promise was judged from.
    Back {
        failed: bool,
        why: Reason,
        counts: Option<Box<Count2>>,
    },
    Undone,
}

/// A change of a job's version: the open one, or the last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Of the new version's copies; the former's have [`Job::revision`] until the end.
    pub revision: Revision,
    pub from: Arc<JobSpec>,
    pub to: Arc<JobSpec>,
    pub strategy: Strategy,
    pub course: Course,
    /// It goes back to the version before the present one.
    pub rollback: bool,
    pub by: Option<Arc<str>>,
    pub began_ms: u64,
    /// Log time at which the course last changed.
    pub turned_ms: u64,
    /// Log time at which a copy last became ready, or the course changed.
    pub progress_ms: u64,
    /// Copies of the new version that ended by themselves, and why the last one did. Of one that breaks the promise and
    /// can't go back: [`MOST_FAILURES`] at least, and that.
    pub failures: u16,
    pub last_failure: Option<Reason>,
    /// What the promise was judged from, where it was broken.
    pub counts: Option<Box<Count2>>,
}

impl Rollout {
    /// Whether it has yet to come to rest.
    pub fn is_open(&self) -> bool {
        matches!(self.course, Course::Forward { .. } | Course::Back { .. })
    }
}

impl Course {
    /// The word of CONVENTIONS.md; whether it is blocked depends on more than the rollout.
    pub fn word(self) -> &'static str {
        match self {
            Course::Forward { paused: true, .. } => "paused",
            Course::Forward { .. } => "running",
            Course::Done => "successful",
            Course::Back { failed: true, .. } | Course::Undone { failed: true, .. } => "failed",
            Course::Back { .. } | Course::Undone { .. } => "cancelled",
        }
    }

    /// What it does now, where it is under way.
    pub fn phase(self) -> Option<&'static str> {
        match self {
            Course::Forward { part: Part::Canary, .. } => Some("canary"),
            Course::Forward { part: Part::Rest, .. } => Some("rolling"),
            Course::Forward { part: Part::Watch { .. }, .. } => Some("watching"),
            Course::Back { .. } => Some("reverting"),
            Course::Done | Course::Undone { .. } => None,
        }
    }

    /// Why it is where it is.
    pub fn why(self) -> Option<Reason> {
        match self {
            Course::Back { why, .. } | Course::Undone { why, .. } => Some(why),
            _ => None,
        }
    }
}

impl Job {
    /// What a copy of that revision runs.
    pub fn spec_of(&self, revision: Revision) -> &Arc<JobSpec> {
        match &self.rollout {
            Some(rollout) if rollout.revision == revision => &rollout.to,
            _ => &self.spec,
        }
    }

    /// What the replica runs, or will when it has a place.
    pub fn spec_for(&self, replica: u16) -> &Arc<JobSpec> {
        let revision = self.replicas.get(usize::from(replica)).map_or(self.revision, |replica| replica.revision);
        self.spec_of(revision)
    }

    /// These of its replicas, those of each version by themselves, with what they ask for: in a rollout some of
    /// those that wait may be of the former version, and others of the next.
    pub fn by_version(&self, replicas: impl IntoIterator<Item = u16>) -> Vec<(&Arc<JobSpec>, Vec<u16>)> {
        let mut out: Vec<(&Arc<JobSpec>, Vec<u16>)> = Vec::new();
        for replica in replicas {
            let spec = self.spec_for(replica);
            match out.iter_mut().find(|(known, _)| Arc::ptr_eq(known, spec)) {
                Some((_, list)) => list.push(replica),
                None => out.push((spec, vec![replica])),
            }
        }
        out
    }

    /// The rollout that has yet to come to rest.
    pub fn open_rollout(&self) -> Option<&Rollout> {
        self.rollout.as_deref().filter(|rollout| rollout.is_open())
    }

    /// Its former version comes back. Nothing that the place lacks may stand in the way of that: where the former
    /// version can't run, it waits for another place.
    pub fn goes_back(&self) -> bool {
        self.open_rollout().is_some_and(|rollout| matches!(rollout.course, Course::Back { .. }))
    }

    /// The revision that its copies shall run in the end, as things stand.
    pub fn target_revision(&self) -> Revision {
        match self.rollout.as_deref() {
            Some(Rollout { revision, course: Course::Forward { .. } | Course::Done, .. }) => *revision,
            _ => self.revision,
        }
    }

    /// Wanted replicas of the revision.
    pub fn of_revision(&self, revision: Revision) -> impl Iterator<Item = &Replica> {
        self.replicas.iter().filter(move |r| is_wanted(&r.phase) && r.revision == revision)
    }

    /// Replicas that serve.
    pub fn ready(&self) -> u16 {
        self.replicas.iter().filter(|r| is_ready(r)).count() as u16
    }

    /// Whether everything that it wants is of that revision, and nothing holds a place for another.
    pub fn is_all(&self, revision: Revision) -> bool {
        let alike = |r: &Replica| {
            let other = match &r.moving {
                Some(Move::Coming { revision, .. } | Move::Going { revision, .. }) => Some(*revision),
                _ => None,
            };
            let own = is_wanted(&r.phase) || r.allocation().is_some();
            (!own || r.revision == revision) && other.is_none_or(|other| other == revision)
        };
        self.replicas.iter().all(alike)
    }

    /// Whether its version can be changed in place.
    ///
    /// # Errors
    /// Why not.
    pub fn can_roll(&self, next: &Next, strategy: &Strategy) -> Result<(), Refusal> {
        let bad = |detail: &str| Err(Refusal::field(Reason::Conflict, "request_id", detail));
        if self.spec.is_prefetch() {
            return bad(
                "it is a prefetch and runs nothing: prefetch the other version (nf model prefetch), then stop this job",
            );
        }
        let part = matches!(self.spec.resources.gpu, Gpus::Milli(_));
        if part && self.spec.self_limiting && !next.self_limiting {
            // Its replicas may hold parts that nothing but the present version keeps them to.
            let detail = "the present version keeps to its part of a GPU by itself, and this one does not: schedule it \
                          as another job, then stop this one";
            return Err(Refusal::field(Reason::FractionNotEnforced, "version", detail));
        }
        if self.spec.gang {
            return bad("the replicas of a gang are one program: schedule the new version, then stop this job");
        }
        match self.spec.movable() {
            Movable::Never => bad("its restart policy forbids a second start: schedule the new version as another job"),
            Movable::Swap if strategy.unavailable == 0 => {
                let detail = "an exclusive job never has two copies, so one must be allowed to be missing: 1 or more";
                Err(Refusal::invalid("unavailable", detail))
            }
            movable => match self.spec.constraints.max_unavailable {
                // Then only a copy beside it can replace one that serves.
                Some(0) if strategy.surge == 0 || movable == Movable::Swap => {
                    let detail = "the job lets no replica be missing (max_unavailable 0), so one comes up beside each: 1 or more";
                    Err(Refusal::invalid("surge", detail))
                }
                _ => Ok(()),
            },
        }
    }
}

/// What the version holds of the place if it starts there next; None where it can't. A cordon is no bar: nothing new
/// comes.
pub(crate) fn takes_over(state: &State, alloc: &Allocation, spec: &JobSpec) -> Option<Vec<Share>> {
    let class = state.capacity().class(alloc.node)?;
    let runs = filter::has_runtime(&class.flavor, spec) && stays(state, alloc);
    Ask::of(state, spec).takes_over(alloc, &state.node(alloc.node)?.spec).filter(|_| runs)
}

pub(crate) fn stays(state: &State, alloc: &Allocation) -> bool {
    let usable = |node: &&Arc<Node>| !node.is_draining() && matches!(node.state, NodeState::Ready | NodeState::Suspect);
    let node = state.node(alloc.node).filter(usable);
    node.is_some_and(|node| alloc.shares.iter().all(|share| node.quarantine_of(share.device).is_none()))
}

/// Whether the replica serves.
pub(crate) fn is_ready(replica: &Replica) -> bool {
    matches!(replica.phase, Phase::Held { stage: Stage::Ready, .. })
}

#[cfg(test)]
mod tests;
