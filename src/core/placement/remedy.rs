//! What would let a waiting job run: the smallest set of changes that an operator can
//! make, each tried on a copy of the state with the placer's own search. It changes
//! nothing, and does not guess when something ends.

use super::pass::{self, Turn};
use super::{Limits, filter, place};
use crate::budget::{Limit, Over, judge};
use crate::claim;
use crate::command::Placement;
use crate::id::{JobNo, NodeNo, TenantNo};
use crate::job::{Job, JobSpec, Runtime};
use crate::node::{Node, NodeState, has_engine};
use crate::quota::{self, tree};
use crate::reason::Refusal;
use crate::resources::{Gpus, Resources};
use crate::sharing::Ask;
use crate::state::State;
use crate::tenant::{Quota, Tenant};
use crate::trust;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use change::Change;
use change::make;

/// Nodes of each kind that are tried; equal ones are tried once.
const NODES: usize = 12;
/// Pairs of changes that are tried; of more changes than that all together are, and then fewer and fewer.
const PAIRS: usize = 128;
/// Waiters of its own tenant ahead of it for whose quota there would have to be enough, too.
const AHEAD: usize = 1024;
/// Budgets that may be in the way one behind the other.
const BUDGETS: usize = 8;
/// Most nodes that are proposed to be added for one job.
const ADDED: u16 = 16;
/// The same for it and those ahead of it, who have theirs first.
const ADDED_FOR_ALL: u16 = 1024;

/// Who waits.
struct Waiter<'a> {
    spec: &'a JobSpec,
    wanted: &'a [u16],
    /// None for one that is not there yet.
    job: Option<&'a Job>,
}

/// The smallest set of changes with which all of `wanted` have a place at once; None when
/// none of those that are tried will do. Empty when nothing is in the way.
pub fn remedy(state: &State, spec: &JobSpec, wanted: &[u16]) -> Option<Vec<Change>> {
    Waiter { spec, wanted, job: None }.remedy(state)
}

/// The same for a job that is there: what was started of it, and who let it in, counts.
pub fn for_job(state: &State, job: &Job, wanted: &[u16]) -> Option<Vec<Change>> {
    let spec = wanted.first().map_or(&job.spec, |no| job.spec_for(*no));
    Waiter { spec, wanted, job: Some(job) }.remedy(state)
}

impl Waiter<'_> {
    fn remedy(&self, state: &State) -> Option<Vec<Change>> {
        if self.runs_with(state, &[]) {
            return Some(Vec::new());
        }
        let soft = self.soft(state);
        if let Some(few) = self.few(state, &soft).or_else(|| self.as_few(state, soft.iter().collect())) {
            return Some(few.into_iter().map(|change| self.or_whole(state, change)).collect());
        }
        // Hardware is the last resort: as few nodes as will do, with what else is needed then.
        for count in 1..=ADDED.min(self.wanted.len() as u16) {
            let nodes = self.added(state, count);
            if self.runs_with(state, &[&nodes]) {
                return Some(vec![nodes]);
            }
            let with: Vec<&Change> = soft.iter().chain([&nodes]).collect();
            if let Some(few) = self.as_few(state, with) {
                return Some(few);
            }
        }
        self.added_for_all(state, &soft)
    }

    /// Where its other replicas are.
    fn siblings(&self) -> BTreeMap<NodeNo, u32> {
        let there = self.job.map_or(&[][..], |job| &job.replicas);
        super::siblings(there, &self.spec.constraints)
    }

    /// So many nodes that those ahead may have theirs, with what else is needed then.
    fn added_for_all(&self, state: &State, soft: &[Change]) -> Option<Vec<Change>> {
        let most = pass::turn(state, self.spec, self.job).missing + self.wanted.len();
        let most = u16::try_from(most).unwrap_or(u16::MAX).min(ADDED_FOR_ALL);
        let mut scratch = state.speculative();
        soft.iter().chain([&self.added(state, most)]).for_each(|change| make(&mut scratch, change));
        let turn = pass::turn(&scratch, self.spec, self.job);
        // Of so many, those count that are in use when it has its place.
        let places = self.places(&turn.state, &turn.kept)?;
        let is_added = |node: NodeNo| node.0 > u32::MAX - u32::from(most);
        let mut used: BTreeSet<NodeNo> = places.iter().map(|place| place.alloc.node).collect();
        used.extend(turn.kept.iter().copied());
        let held = |node: &NodeNo| turn.state.ledger().node(*node).is_some_and(|used| !used.replicas.is_empty());
        used.extend((0..most).map(|i| NodeNo(u32::MAX - u32::from(i))).filter(held));
        let count = used.into_iter().filter(|node| is_added(*node)).count() as u16;
        let fewer = (count.saturating_sub(1)..=count).chain([most]).map(|count| self.added(state, count));
        for nodes in fewer {
            if self.runs_with(state, &[&nodes]) {
                return Some(vec![nodes]);
            }
            let with: Vec<&Change> = soft.iter().chain([&nodes]).collect();
            if let Some(few) = self.as_few(state, with) {
                return Some(few);
            }
        }
        None
    }

    /// One change that will do, or two.
    fn few(&self, state: &State, soft: &[Change]) -> Option<Vec<Change>> {
        if let Some(one) = soft.iter().find(|change| self.runs_with(state, &[change])) {
            return Some(vec![one.clone()]);
        }
        let pairs = soft.iter().enumerate().flat_map(|(i, a)| soft[i + 1..].iter().map(move |b| [a, b]));
        let mut pairs = pairs.take(PAIRS);
        pairs.find(|pair| self.runs_with(state, pair)).map(|[a, b]| vec![a.clone(), b.clone()])
    }

    /// All of them, if that will do, without those that are not needed: the last first.
    fn as_few(&self, state: &State, mut changes: Vec<&Change>) -> Option<Vec<Change>> {
        if !self.runs_with(state, &changes) {
            return None;
        }
        for i in (0..changes.len()).rev() {
            let change = changes.remove(i);
            if !self.runs_with(state, &changes) {
                changes.insert(i, change);
            }
        }
        Some(changes.into_iter().cloned().collect())
    }

    /// Whether asking for a whole GPU would do as well as letting go of the walls.
    fn or_whole(&self, state: &State, change: Change) -> Change {
        match change {
            Change::SoftSharing { tenant, .. } => {
                let resources = Resources { gpu: Gpus::Whole(1), ..self.spec.resources.clone() };
                let whole = JobSpec { resources, ..self.spec.clone() };
                let or_whole = Waiter { spec: &whole, ..*self }.runs_with(state, &[]);
                Change::SoftSharing { tenant, or_whole }
            }
            other => other,
        }
    }

    fn runs_with(&self, state: &State, changes: &[&Change]) -> bool {
        let mut scratch = state.speculative();
        changes.iter().for_each(|change| make(&mut scratch, change));
        let let_in = changes.iter().any(|change| matches!(change, Change::LetIn(_)));
        let may = let_in || self.withheld(&scratch).is_none();
        // Mostly there is no room or quota even if nobody were ahead, which is soon seen.
        may && self.runs(&scratch, &claim::nodes(&scratch)) && self.runs_in_turn(&scratch)
    }

    /// Whether it would run when those ahead of it have had their turn.
    fn runs_in_turn(&self, state: &State) -> bool {
        let Turn { state, kept, .. } = pass::turn(state, self.spec, self.job);
        self.runs(&state, &kept)
    }

    fn withheld(&self, state: &State) -> Option<Refusal> {
        self.job.and_then(|job| trust::withheld(state, job))
    }

    /// The places that all of it would have, but for nodes that others hold.
    fn places(&self, state: &State, held: &[NodeNo]) -> Option<Vec<Placement>> {
        let limits = Limits { held: held.to_vec(), siblings: self.siblings(), ..Limits::default() };
        let picks = place(state, self.spec, self.wanted, limits);
        let all = picks.len() == self.wanted.len();
        all.then(|| picks.into_iter().map(|(replica, pick)| pick.for_replica(replica)).collect())
    }

    /// Whether it would run, by the rules that apply goes by.
    fn runs(&self, state: &State, held: &[NodeNo]) -> bool {
        let tenant = self.tenant(state);
        let allowed = quota::allows(state, tenant, &self.spec.resources, self.wanted.len() as u64);
        let places = if allowed { self.places(state, held) } else { None };
        places.is_some_and(|places| quota::types::allows(state, tenant, &places) && self.paid(state, &places).is_ok())
    }

    fn paid(&self, state: &State, places: &[Placement]) -> Result<(), Over> {
        let tenant = self.tenant(state);
        match self.job {
            Some(job) => judge::check(state, tenant, self.spec, (&job.replicas, job.ran), places),
            None => judge::check_new(state, tenant, self.spec, places),
        }
    }

    fn tenant(&self, state: &State) -> Option<TenantNo> {
        state.tenant_named(&self.spec.tenant).map(|tenant| tenant.no)
    }

    /// Changes that need no hardware.
    fn soft(&self, state: &State) -> Vec<Change> {
        let (spec, tenant, times) = (self.spec, self.tenant(state), self.wanted.len() as u64);
        let mut out = Vec::new();
        if !quota::allows(state, tenant, &spec.resources, times) || !quota::types::some_open(state, tenant, spec, times)
        {
            out.extend(wider(state, tenant, spec, times));
            for all in [false, true] {
                let wider = wider(&self.ahead_of_tenant(state, all), tenant, spec, times);
                out.extend(wider.filter(|wider| !out.contains(wider)));
            }
        }
        out.extend(self.withheld(state).map(|refusal| Change::LetIn(refusal.detail)));
        let ask = Ask::of(state, spec);
        let away = |node: &Node| node.state != NodeState::Ready;
        let (mut out_of_use, mut faulty): (Vec<&Arc<Node>>, Vec<Change>) = (Vec::new(), Vec::new());
        for (class, nodes) in state.capacity().classes.iter() {
            if !filter::may_ever_run(&class.flavor, &ask.accepted()) {
                continue;
            }
            // Equal nodes would do alike; as many as a gang may need.
            let some = nodes.iter().take(self.wanted.len().clamp(2, NODES)).filter_map(|no| state.node(*no));
            for node in some {
                if faulty.len() < NODES {
                    faulty.extend(heals(node));
                }
                if !class.takes_work() {
                    out_of_use.push(node);
                }
            }
        }
        out.extend(self.engines(state));
        let cordoned = out_of_use.iter().filter(|node| node.cordon.is_some()).take(NODES);
        out.extend(cordoned.map(|node| Change::Uncordon(node.name.clone())));
        let away = out_of_use.iter().filter(|node| away(node)).take(NODES);
        out.extend(away.map(|node| Change::Return(node.name.clone())));
        out.extend(faulty);
        // After what costs nobody a wall.
        if matches!(spec.resources.gpu, Gpus::Milli(_)) && !ask.takes_any() {
            out.push(Change::SoftSharing { tenant: spec.tenant.clone(), or_whole: false });
        }
        let budgets = self.budgets(state, &out);
        out.splice(0..0, budgets);
        out
    }

    /// The budgets that are in the way once the other changes are made, each as large as it has to be.
    fn budgets(&self, state: &State, others: &[Change]) -> Vec<Change> {
        let mut scratch = state.speculative();
        others.iter().for_each(|change| make(&mut scratch, change));
        let mut out = Vec::new();
        for _ in 0..BUDGETS {
            let over = match self.places(&scratch, &claim::nodes(&scratch)) {
                Some(places) => self.paid(&scratch, &places).err(),
                None => self.job.and_then(|job| judge::blocks(&scratch, job, &[])),
            };
            let Some(over) = over else { break };
            let used = if over.whole { 0 } else { over.used };
            let needed = used.saturating_add(over.reserved).saturating_add(over.ask);
            let Limit { kind, window, .. } = over.limit;
            let change = Change::Budget { tenant: over.tenant, kind, window, most: kind.told(needed) };
            make(&mut scratch, &change);
            out.push(change);
        }
        out
    }
}

impl Waiter<'_> {
    /// Nodes that lack nothing but a container engine.
    fn engines(&self, state: &State) -> Vec<Change> {
        let without = JobSpec { runtime: Runtime::Process, ..self.spec.clone() };
        let ask = Ask::of(state, &without);
        let classes = state.capacity().classes.iter().filter(|_| self.spec.needs_engine());
        let lacking = classes.filter(|(class, _)| {
            class.takes_work() && !has_engine(&class.flavor.labels) && filter::may_ever_run(&class.flavor, &ask)
        });
        let some = lacking.flat_map(|(_, nodes)| nodes.iter().take(self.wanted.len().clamp(2, NODES)));
        let names = some.filter_map(|no| state.node(*no)).map(|node| Change::Engine(node.name.clone()));
        names.take(NODES).collect()
    }

    /// The state as if what its own tenant's waiters ahead of it ask for were held already: they have theirs first.
    /// `all`: also those that can never be within the present quota, and may be within the one that is proposed.
    fn ahead_of_tenant(&self, state: &State, all: bool) -> State {
        let mut scratch = state.speculative();
        let Some(tenant) = self.tenant(state) else { return scratch };
        let last = match self.job {
            Some(job) => (-i32::from(job.spec.priority), JobNo(job.no.0.saturating_sub(1))),
            None => (-i32::from(self.spec.priority), JobNo(u64::MAX)),
        };
        let ahead = state.waiting.range((tenant, i32::MIN, JobNo(0))..=(tenant, last.0, last.1));
        for job in ahead.take(AHEAD).filter_map(|(.., no)| state.job(*no)) {
            let (ask, times) = (&job.spec.resources, job.placeable(state.meta().now_ms).count() as u64);
            let at_once = if job.spec.gang { times } else { 1 };
            let waits = all
                || quota::allows(state, Some(tenant), ask, at_once)
                || quota::waits_for(state, Some(tenant), &job.spec, at_once).is_some();
            if waits {
                scratch.ledger.count(tenant, ask, times, u64::saturating_add);
            }
        }
        scratch
    }
}

/// The devices of a node that an operator may take back.
fn heals(node: &Arc<Node>) -> impl Iterator<Item = Change> + '_ {
    let left_alone = (0..node.spec.devices.len() as u16).filter(|device| node.quarantine_of(*device).is_some());
    left_alone.map(|device| Change::Heal { node: node.name.clone(), device })
}

/// The quota with which so many replicas more are allowed.
fn wider(state: &State, tenant: Option<TenantNo>, spec: &JobSpec, times: u64) -> Option<Change> {
    let used = tenant.map(|no| quota::used(state, no)).unwrap_or_default();
    let now = tenant.and_then(|no| quota::quota(state, no)).cloned().unwrap_or_default();
    let ask = &spec.resources;
    let more = ask.gpu.milli().checked_mul(times)?;
    let own = tenant.map_or(state.meta().default_gpu_milli, |no| quota::gpu_limit(state, no));
    let missing = match tenant.and_then(|no| state.tenant(no)) {
        Some(row) if !tree::is_flat(state, row) => missing(state, row, more),
        _ => used.gpu_milli.checked_add(more)?.saturating_sub(own),
    };
    let at_least = |limit: Option<u64>, used: u64, each: u64| -> Option<Option<u64>> {
        let sum = used.checked_add(each.checked_mul(times)?)?;
        Some(limit.map(|limit| if each > 0 { limit.max(sum) } else { limit }))
    };
    let mut types = now.types.clone();
    let closed = quota::types::closed(state, tenant, spec, times);
    let short = |over: &tree::Over| over.demand.saturating_add(more).saturating_sub(over.limit);
    // The type that lacks least.
    if let Some((kind, over)) = closed.iter().min_by_key(|(_, over)| short(over)) {
        let share = types.entry(kind.clone()).or_default();
        share.gpu_milli = share.gpu_milli.checked_add(short(over))?;
    }
    let quota = Quota {
        gpu_milli: if missing > 0 { Some(own.checked_add(missing)?) } else { now.gpu_milli },
        cpu_milli: at_least(now.cpu_milli, used.cpu_milli, ask.cpu_milli)?,
        memory: at_least(now.memory, used.memory, ask.memory)?,
        tpu: at_least(now.tpu, used.tpu, ask.tpu.into())?,
        types,
        ..now
    };
    Some(Change::Quota { tenant: spec.tenant.clone(), quota: Box::new(quota) })
}

/// By how much the nominal quota of a tenant in a tree is too small, at the narrowest place above it.
fn missing(state: &State, tenant: &Tenant, more: u64) -> u64 {
    let short = |each: &&Tenant| {
        let sum = tree::sum(state, each, tree::Of::Gpus, (tenant.no, more));
        sum.demand.saturating_sub(tree::limit(each, tree::Of::Gpus, sum.nominal))
    };
    tree::path(state, tenant).iter().map(short).max().unwrap_or(0)
}

mod change;
mod nodes;
#[cfg(test)]
mod tests;
