//! The judge: sees every applied entry on every member and every answer that a
//! client got, and says what must never happen. It shares no code with apply.

use super::disk::Entry;
use crate::apply::BatchOutcome;
use crate::budget::Limit;
use crate::command::{Answer, Batch, Command};
use crate::consent::Consent;
use crate::disruption;
use crate::id::{JobNo, RequestId, TenantId, TenantNo};
use crate::invariants;
use crate::job::{Job, JobSpec, Phase, Replica, Stage};
use crate::plan::{Intent, Reply};
use crate::quota;
use crate::reason::Reason;
use crate::rows::{RowChange, Table};
use crate::state::State;
use std::collections::BTreeMap;

/// What the first member that applied an entry saw; the others must see the same.
#[derive(Debug)]
struct Seen {
    term: u64,
    bytes: Option<Vec<u8>>,
    hash: u128,
}

/// A request: ids are their tenant's.
type Named = (TenantId, RequestId);

fn named(job: &Job) -> Named {
    (job.spec.tenant.clone(), job.request.clone())
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Oracle {
    log: Vec<Seen>,
    /// Requests that were answered with a job, and with which.
    acked: BTreeMap<Named, JobNo>,
    /// The job that each request made, for ever.
    made: BTreeMap<Named, JobNo>,
    /// The newest generation of each replica, and the newest entry that changed the job.
    generations: BTreeMap<JobNo, Vec<u32>>,
    live: BTreeMap<Named, JobNo>,
    ended: BTreeMap<Named, JobNo>,
    pub violations: Vec<String>,
    pub superseded: u64,
    /// Replacements begun, and those that took over.
    pub moves: u64,
    pub taken_over: u64,
    /// Rollouts that came to rest.
    pub rolled: u64,
    /// Replicas that were stopped when a consent ended.
    pub withdrawn: u64,
    /// Replicas that gave way to others, and those that were told to stop by others' will of services with a budget.
    pub gave_way: u64,
    pub told: u64,
}

impl Oracle {
    pub fn bad(&mut self, text: String) {
        self.violations.push(text);
    }

    pub fn acked(&self) -> usize {
        self.acked.len()
    }

    pub fn entries(&self) -> usize {
        self.log.len()
    }

    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// A member applied entry `index`; `before` is its state without the entry.
    #[allow(clippy::too_many_arguments, reason = "one call site, and each is what it is")]
    pub fn on_applied(
        &mut self,
        member: usize,
        index: usize,
        entry: &Entry,
        batch: Option<(&Batch, &BatchOutcome)>,
        before: &State,
        after: &State,
        changes: &[RowChange],
    ) {
        for violation in invariants::check(after) {
            self.bad(format!("member {member} at {index}: {}", violation.0));
        }
        if let Some(seen) = self.log.get(index - 1) {
            if seen.term != entry.term || seen.bytes != entry.bytes {
                self.bad(format!("member {member} applied another entry at {index} than the first did"));
            } else if seen.hash != after.hash() {
                self.bad(format!("member {member} has another state at {index} than the first had"));
            }
            return;
        }
        if index != self.log.len() + 1 {
            self.bad(format!("member {member} applied {index} before {}", self.log.len() + 1));
        }
        self.log.push(Seen { term: entry.term, bytes: entry.bytes.clone(), hash: after.hash() });
        if let Some((batch, outcome)) = batch {
            self.superseded += u64::from(matches!(outcome, BatchOutcome::Superseded { .. }));
            self.quotas(index, batch, before, after);
            self.budgets(index, batch, before, after);
            self.consents(index, before, after);
            self.drains(index, batch, before);
            self.disruptions(index, before, after);
            self.rollouts(index, batch, before, after);
            self.count_moves(batch, before, after);
        }
        self.jobs(index, after, changes);
    }

    /// A restarted member found its rows; they must be those of the entry they claim.
    pub fn on_loaded(&mut self, member: usize, index: usize, state: &State) {
        let known = index.checked_sub(1).and_then(|i| self.log.get(i));
        if known.is_some_and(|seen| seen.hash != state.hash()) {
            self.bad(format!("member {member} found other rows than it had at {index}"));
        }
        for violation in invariants::check(state) {
            self.bad(format!("member {member} restarted at {index}: {}", violation.0));
        }
    }

    /// Who holds more than before is inside its quota, as it was before or after the entry.
    fn quotas(&mut self, index: usize, batch: &Batch, before: &State, after: &State) {
        let held = |state: &State| {
            let mut sums: BTreeMap<TenantNo, [u64; 4]> = BTreeMap::new();
            for job in state.jobs().values() {
                let n = job.replicas.iter().flat_map(Replica::allocations).count() as u64;
                let (ask, sum) = (&job.spec.resources, sums.entry(job.tenant).or_default());
                let each = [ask.gpu.milli(), u64::from(ask.tpu), ask.cpu_milli, ask.memory];
                sum.iter_mut().zip(each).for_each(|(sum, each)| *sum += n * each);
            }
            sums
        };
        let limits = |state: &State, tenant: TenantNo| {
            let q = quota::quota(state, tenant).cloned().unwrap_or_default();
            let gpu = q.gpu_milli.unwrap_or(state.meta().default_gpu_milli);
            [Some(gpu), q.tpu, q.cpu_milli, q.memory].map(|limit| limit.unwrap_or(u64::MAX))
        };
        // An entry may change a quota between two placements; it is judged by the wider of the two.
        let had = held(before);
        for (tenant, has) in held(after) {
            let had = had.get(&tenant).copied().unwrap_or_default();
            let (old, new) = (limits(before, tenant), limits(after, tenant));
            let in_entry = batch.commands.iter().any(|c| matches!(c, Command::SetQuota { .. }));
            for i in 0..4 {
                if has[i] > had[i] && has[i] > old[i].max(new[i]) && !in_entry {
                    self.bad(format!("entry {index}: {tenant} holds {} of kind {i}, its quota is {}", has[i], new[i]));
                }
            }
        }
    }

    /// Nothing is begun that its budget can't pay as far as nobody stops it. (By the meter's own rates, which the
    /// invariants hold against the jobs.)
    fn budgets(&mut self, index: usize, batch: &Batch, before: &State, after: &State) {
        if batch.commands.iter().any(|c| matches!(c, Command::SetQuota { .. })) {
            return;
        }
        let now = after.meta().now_ms;
        for tenant in after.tenants().values() {
            let Some(budgets) = &tenant.quota.budgets else { continue };
            let (then, meter) = (before.meter(tenant.no), after.meter(tenant.no));
            for Limit { kind, window, most } in budgets.limits() {
                let left = window.end_ms(now) - now;
                let keeps = meter.rates.kept(kind, now, left);
                let more = keeps > then.rates.kept(kind, now, left);
                if more && meter.used(kind, window) + keeps > most {
                    self.bad(format!("entry {index}: {} begins more than its budget pays: {meter:?}", tenant.id));
                }
            }
        }
    }

    /// What runs about people, runs by a consent that counts.
    fn consents(&mut self, index: usize, before: &State, after: &State) {
        for job in after.jobs().values() {
            for (i, replica) in job.replicas.iter().enumerate() {
                let runs = matches!(replica.phase, Phase::Held { .. });
                let may = consented(after, job.spec_of(replica.revision));
                if runs && !may {
                    self.bad(format!("entry {index}: {} replica {i} runs without a consent", job.request));
                }
                let was = before.job(job.no).and_then(|job| job.replicas.get(i));
                let ran = was.is_some_and(|r| matches!(r.phase, Phase::Held { .. }) && r.revision == replica.revision);
                self.withdrawn += u64::from(ran && !runs && !may);
            }
        }
    }

    /// Of a service no more replicas that served are told to stop by others' will than it lets be missing, beside those
    /// that are missing anyway.
    fn disruptions(&mut self, index: usize, before: &State, after: &State) {
        let serves = |r: &Replica| matches!(r.phase, Phase::Held { stage: Stage::Ready, .. });
        for job in after.jobs().values() {
            let Some(was) = before.job(job.no) else { continue };
            let gives_way = |r: &Replica| {
                matches!(r.phase, Phase::Stopping { why: Reason::Preempted | Reason::QuotaReclaimed, .. })
            };
            let both = was.replicas.iter().zip(&job.replicas);
            self.gave_way += both.filter(|(was, is)| !gives_way(was) && gives_way(is)).count() as u64;
            let Some(most) = disruption::budget(&job.spec) else { continue };
            let (mut told, mut fell) = (0, 0);
            for (_, is) in was.replicas.iter().zip(&job.replicas).filter(|(was, is)| serves(was) && !serves(is)) {
                match &is.phase {
                    Phase::Stopping { why, .. } if disruption::is_voluntary(*why) || *why == Reason::Rollout => {
                        told += 1
                    }
                    _ => fell += 1,
                }
            }
            self.told += told;
            let missing = u64::from(disruption::missing(job));
            if told > 0 && missing.saturating_sub(fell) > most.into() {
                self.bad(format!("entry {index}: {} lacks {missing} replicas and lets {most} be missing", job.request));
            }
        }
    }

    /// A drain stops nothing that serves: only a deadline, or force, lets it, and what must not run
    /// twice stops only once its place elsewhere is held for it.
    fn drains(&mut self, index: usize, batch: &Batch, before: &State) {
        for command in &batch.commands {
            let Command::Evict { job, replica, from, why: Reason::NodeDrain } = command else { continue };
            let Some(job) = before.job(*job) else { continue };
            let Some(r) = job.replicas.get(usize::from(*replica)).filter(|r| r.generation == *from) else { continue };
            let node = r.allocation().and_then(|alloc| before.node(alloc.node));
            let cordon = node.and_then(|node| node.cordon.as_ref());
            let in_entry = batch.commands.iter().any(|c| matches!(c, Command::SetCordon { .. }));
            // It is told so much earlier that it has saved its state by then.
            let grace_ms = disruption::grace_ms(&job.spec, &before.meta().placement.preemption);
            let now = batch.at_ms.max(before.meta().now_ms) + u64::from(grace_ms);
            let over = cordon.is_some_and(|c| c.deadline_ms().is_some_and(|at| at <= now));
            let force = cordon.is_some_and(|c| c.drain.is_some_and(|drain| drain.force));
            if !over && !force && !in_entry {
                self.bad(format!(
                    "entry {index}: {} replica {replica} is stopped for a drain that may not",
                    job.request
                ));
            }
        }
    }

    /// A rollout stops nothing that serves beyond what its owner allowed to be missing.
    fn rollouts(&mut self, index: usize, batch: &Batch, before: &State, after: &State) {
        let alone = batch.commands.iter().all(|c| matches!(c, Command::Renew { .. } | Command::TurnRollout { .. }));
        for job in before.rollouts().filter(|_| alone) {
            let (Some(rollout), Some(now)) = (job.rollout.as_deref(), after.job(job.no)) else { continue };
            if !consented(after, &rollout.from) || !consented(after, &rollout.to) {
                continue; // With the entry's time a consent has ended: that stops whatever serves.
            }
            let least = job.desired().saturating_sub(rollout.strategy.unavailable).min(job.ready());
            if now.ready() < least {
                self.bad(format!("entry {index}: of {} serve {}, and {least} should", job.request, now.ready()));
            }
        }
        let at_rest = |job: &&std::sync::Arc<Job>| after.job(job.no).is_some_and(|now| now.open_rollout().is_none());
        self.rolled += before.rollouts().filter(at_rest).count() as u64;
    }

    fn count_moves(&mut self, batch: &Batch, before: &State, after: &State) {
        self.moves += batch.commands.iter().filter(|c| matches!(c, Command::Move { .. })).count() as u64;
        for command in &batch.commands {
            let Command::Reports { reports, .. } = command else { continue };
            for report in reports {
                let of = |state: &State| {
                    Some(state.job(report.job)?.replicas.get(usize::from(report.replica))?.is_leaving())
                };
                self.taken_over += u64::from(of(before) == Some(false) && of(after) == Some(true));
            }
        }
    }

    fn jobs(&mut self, index: usize, after: &State, changes: &[RowChange]) {
        let mut removed = Vec::new();
        for change in changes {
            match (change.table, &change.value) {
                (Table::Job, value) => {
                    let Ok(key) = change.key.as_slice().try_into() else { continue };
                    let no = JobNo(u64::from_be_bytes(key));
                    match value {
                        Some(_) => after.job(no).cloned().iter().for_each(|job| self.changed(index, job)),
                        None => removed.push(no),
                    }
                }
                (Table::History, Some(value)) => match crate::rows::read_history(value) {
                    Ok(job) => {
                        removed.retain(|no| *no != job.no);
                        self.live.remove(&named(&job));
                        self.made_by(index, &job);
                        self.ended.insert(named(&job), job.no);
                    }
                    Err(error) => self.bad(format!("entry {index}: {error}")),
                },
                _ => {}
            }
        }
        if !removed.is_empty() {
            self.bad(format!("entry {index}: {removed:?} went, and not to the history"));
        }
    }

    fn made_by(&mut self, index: usize, job: &Job) {
        let first = *self.made.entry(named(job)).or_insert(job.no);
        if first != job.no {
            self.bad(format!("entry {index}: request {} made {first} and {}", job.request, job.no));
        }
    }

    fn changed(&mut self, index: usize, job: &Job) {
        self.made_by(index, job);
        self.live.insert(named(job), job.no);
        let now: Vec<u32> = job.replicas.iter().map(|r| r.generation.0).collect();
        if let Some(old) = self.generations.insert(job.no, now.clone()) {
            let back = old.len() > now.len() || old.iter().zip(&now).any(|(old, now)| now < old);
            if back {
                self.bad(format!("entry {index}: generations of {} went from {old:?} to {now:?}", job.no));
            }
        }
    }

    /// A client got its answer.
    pub fn on_reply(&mut self, intent: &Intent, reply: &Reply) {
        match (intent, &reply.result) {
            (Intent::Schedule { submission, .. }, Ok(Answer::Job { no, .. })) => {
                let of = (submission.spec.tenant.clone(), submission.request.clone());
                let first = *self.acked.entry(of.clone()).or_insert(*no);
                if first != *no {
                    self.bad(format!("{} was answered with {first} and with {no}", submission.request));
                }
                if reply.index as usize > self.log.len() {
                    self.bad(format!("{} was answered at {}, which nobody applied", submission.request, reply.index));
                }
                if self.made.get(&of) != Some(no) {
                    self.bad(format!("{} was answered with {no}, which it did not make", submission.request));
                }
            }
            (Intent::Schedule { submission, .. }, Ok(other)) => {
                self.bad(format!("{} was answered {other:?}", submission.request))
            }
            (Intent::Stop { request, tenant: Some(tenant), .. }, Err(refusal)) => {
                let of = (tenant.clone(), request.clone());
                // Jobs don't come back: one that lives now lived at the time of the call.
                let lives = self.acked.contains_key(&of) && self.live.contains_key(&of);
                if refusal.reason == Reason::NotFound && lives {
                    self.bad(format!("a stop of {request} was answered NotFound, and it lives"));
                }
            }
            _ => {}
        }
    }

    /// At the end: every acknowledged job is live or in the history, once.
    pub fn settle(&mut self, state: &State) {
        let missing: Vec<String> = self
            .acked
            .iter()
            .filter(|(of, no)| {
                let live = state.job(**no).is_some_and(|job| named(job) == **of);
                let ended = self.ended.get(*of) == Some(no);
                live == ended
            })
            .map(|((_, request), no)| format!("{request} was acknowledged as {no} and is not there exactly once"))
            .collect();
        self.violations.extend(missing);
    }
}

/// Whether what the version holds about people is let be there by a consent that counts.
fn consented(state: &State, spec: &JobSpec) -> bool {
    let now = state.meta().now_ms;
    let counts = |c: &Consent| c.ended_ms.is_none() && c.until_ms > now && c.scope.tenant == spec.tenant;
    let given = |class| state.consents().any(|c| counts(c) && c.scope.classes.contains(class));
    spec.data_classes.iter().all(given)
}
