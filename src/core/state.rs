//! The replicated state: stored tables, and what is derived from them (ledger,
//! capacity index, queues). All writes go through the setters here, which keep
//! both in step and remember the row as it was, so that the caller can later
//! ask which rows changed. It does not decide anything.

use crate::approval::Approval;
use crate::audit::{Chain, Entry, Receipt};
use crate::budget::{Meter, Rates};
use crate::capacity::CapacityIndex;
use crate::command::{Member, Mode};
use crate::consent::{self, Consent};
use crate::event::{Event, EventKind};
use crate::floor::Floor;
use crate::forecast::RunTimes;
use crate::id::{Digest16, JobNo, MemberId, NodeName, NodeNo, RequestId, TenantId, TenantNo};
use crate::job::{Job, JobSpec, Phase, Replica};
use crate::join::JoinToken;
use crate::ledger::{Ledger, TenantUse};
use crate::node::Node;
use crate::placement::locality::FilesAt;
use crate::placement::mix::Mix;
use crate::placement::standing::Standings;
use crate::placement::worth::Worth;
use crate::placement::{Chosen, Policy, Rules};
use crate::quarantine::Quarantine;
use crate::quota::claimed::Claimed;
use crate::quota::tree;
use crate::tenant::Tenant;
use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

mod nodes;
mod queues;
mod requests;
mod tenants;

pub use requests::{Request, RequestKey, name_key, only};

/// Counters and settings of the group; one row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    pub cluster: Arc<str>,
    pub mode: Mode,
    /// Quota of a tenant with none of its own, in thousandths of a GPU.
    pub default_gpu_milli: u64,
    /// Feature level; log entries of a newer level are not written.
    pub level: u32,
    /// Raised by every accepted entry.
    pub base: u64,
    /// Log time: the largest stamp seen, milliseconds since the epoch.
    pub now_ms: u64,
    pub next_job: u64,
    pub next_node: u32,
    pub next_tenant: u32,
    pub next_event: u64,
    /// Position of the next finished job in the history.
    pub next_history: u64,
    /// How places are compared, and who may be made to give way.
    pub placement: Chosen,
    /// Raised whenever `placement` is set.
    pub placement_version: u64,
}

impl Default for Meta {
    fn default() -> Self {
        Self {
            cluster: "".into(),
            mode: Mode::Simulation,
            default_gpu_milli: 2000,
            level: 1,
            base: 0,
            now_ms: 0,
            next_job: 1,
            next_node: 1,
            next_tenant: 1,
            next_event: 1,
            next_history: 1,
            placement: Chosen::default(),
            placement_version: 1,
        }
    }
}

/// A row as it was before the first change since the last [`State::take_changes`].
#[derive(Clone, Debug)]
pub(crate) enum Before {
    Job(Option<Arc<Job>>),
    Node(Option<Arc<Node>>),
    Tenant(Option<Arc<Tenant>>),
    Request(Option<Request>),
    Member(Option<Arc<Member>>),
    Revoked(Option<u64>),
    Audit(Option<Arc<Chain>>),
    Approval(Option<Arc<Approval>>),
    Consent(Option<Arc<Consent>>),
    Copy(Option<Arc<consent::Copy>>),
    Meter(Option<Arc<Meter>>),
    JoinToken(Option<Arc<JoinToken>>),
    Floor(Option<Arc<Floor>>),
    Quarantine(Option<Arc<Quarantine>>),
    TrailKey(Option<[u8; 32]>),
}

/// Names the row of a [`Before`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RowKey {
    Job(JobNo),
    Node(NodeNo),
    Tenant(TenantNo),
    Request(RequestKey),
    Member(MemberId),
    Revoked(Digest16),
    Audit,
    Approval(Digest16),
    Consent(Digest16),
    Copy(NodeNo, Digest16),
    Meter(TenantNo),
    JoinToken(Digest16),
    Floor(Digest16),
    Quarantine(Digest16),
    TrailKey,
}

/// What changed since the rows were last taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    pub rows: BTreeMap<RowKey, Before>,
    pub finished: Vec<(u64, Arc<Job>)>,
    pub events: Vec<Event>,
    pub audit: Vec<Entry>,
    pub meta: Option<Meta>,
}

/// The replicated state. Cloning copies pointers.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(crate) meta: Meta,
    pub(crate) jobs: OrdMap<JobNo, Arc<Job>>,
    pub(crate) nodes: OrdMap<NodeNo, Arc<Node>>,
    pub(crate) tenants: OrdMap<TenantNo, Arc<Tenant>>,
    pub(crate) requests: OrdMap<RequestKey, Request>,
    pub(crate) members: OrdMap<MemberId, Arc<Member>>,
    /// Digests of the ids of tokens that count no more, and until when that is kept.
    pub(crate) revoked: OrdMap<Digest16, u64>,
    /// Where the audit trail ends.
    pub(crate) audit: Arc<Chain>,
    pub(crate) approvals: OrdMap<Digest16, Arc<Approval>>,
    pub(crate) consents: OrdMap<Digest16, Arc<Consent>>,
    /// Copies of personal data that nodes may have.
    pub(crate) copies: OrdMap<(NodeNo, Digest16), Arc<consent::Copy>>,
    /// What tenants have used, with those below them.
    pub(crate) meters: OrdMap<TenantNo, Arc<Meter>>,
    pub(crate) join_tokens: OrdMap<Digest16, Arc<JoinToken>>,
    /// The oldest versions that may still run, by tenant and model.
    pub(crate) floors: OrdMap<Digest16, Arc<Floor>>,
    /// Versions of which the store gave a node other bytes than their manifests say.
    pub(crate) quarantines: OrdMap<Digest16, Arc<Quarantine>>,
    /// By which ids of tokens are in the trail; see [`State::trail_key`].
    pub(crate) trail_key: Option<[u8; 32]>,
    // Derived.
    pub(crate) ledger: Ledger,
    pub(crate) capacity: CapacityIndex,
    pub(crate) node_names: OrdMap<NodeName, NodeNo>,
    pub(crate) tenant_names: OrdMap<TenantId, TenantNo>,
    /// Tenants with limits of single device types.
    pub(crate) typed: OrdSet<TenantNo>,
    /// Tenants by the one above them.
    pub(crate) children: OrdSet<(TenantId, TenantNo)>,
    /// Jobs that hold something, by tenant.
    pub(crate) holding: OrdSet<(TenantNo, JobNo)>,
    /// Nodes with devices that get no work.
    pub(crate) faulty: OrdSet<NodeNo>,
    /// What replicas that stay hold of each node: how many they are, and thousandths of its GPUs.
    pub(crate) staying: OrdMap<NodeNo, (u32, u64)>,
    /// Nodes that have a version's files, by its manifest, and for how many replicas; see `placement::locality`.
    pub(crate) files_at: FilesAt,
    /// (tenant, priority inverted, age): each tenant's waiters, first first.
    pub(crate) waiting: OrdSet<(TenantNo, i32, JobNo)>,
    /// When a waiter's back-off ends.
    pub(crate) wakes: OrdSet<(u64, JobNo)>,
    /// Since when each waiter has waited: from then on, the policy's delay later, it may make others give way.
    pub(crate) waits: OrdSet<(u64, JobNo)>,
    /// Gangs of which some hold a place and others wait for one.
    pub(crate) torn: OrdSet<JobNo>,
    /// Jobs with an open claim.
    pub(crate) claims: OrdSet<JobNo>,
    /// What those change of what tenants hold.
    pub(crate) claimed: OrdMap<TenantNo, Arc<Claimed>>,
    /// Since that was summed up, what it is made of may have changed.
    pub(crate) claims_changed: bool,
    /// (priority, age) of jobs that hold something and said that they give way.
    pub(crate) yielding: OrdSet<(i32, JobNo)>,
    /// Live jobs with a maximum run time.
    pub(crate) limited: OrdSet<JobNo>,
    /// Live jobs whose number of replicas follows their load.
    pub(crate) services: OrdSet<JobNo>,
    /// Live jobs with an open rollout.
    pub(crate) rolling: OrdSet<JobNo>,
    /// When a request is forgotten.
    pub(crate) expiries: OrdSet<(u64, RequestKey)>,
    /// When a revocation is.
    pub(crate) revoked_until: OrdSet<(u64, Digest16)>,
    pub(crate) approved_until: OrdSet<(u64, Digest16)>,
    /// When a join token is forgotten.
    pub(crate) join_due: OrdSet<(u64, Digest16)>,
    /// How many approvals a tenant has on record.
    pub(crate) approvals_of: OrdMap<TenantId, u32>,
    pub(crate) floors_by: OrdSet<(TenantId, Digest16)>,
    pub(crate) quarantines_by: OrdSet<(TenantId, Digest16)>,
    pub(crate) consents_by: OrdSet<(TenantId, Digest16)>,
    /// When a consent ends, or is forgotten.
    pub(crate) consents_due: OrdSet<(u64, Digest16)>,
    /// When the leader has to look at a tenant's budgets.
    pub(crate) budgets_due: OrdSet<(u64, TenantNo)>,
    /// How places are compared. Made from what lives, now and then; not stored.
    pub(crate) rules: Arc<Rules>,
    /// Each tenant's newest spec: jobs that come one after another are often alike, and share it then.
    pub(crate) newest: OrdMap<TenantNo, Arc<JobSpec>>,
    /// What the live jobs ask for, which stands for what will be asked.
    pub(crate) mix: Mix,
    /// New jobs until the rules are made again.
    pub(crate) until_rules: u64,
    /// How long jobs ran that ended since the state was loaded; not stored.
    pub(crate) run_times: RunTimes,
    /// Rankings of nodes for the asks that come most; carried by the proposer alone, see `placement::standing`.
    pub(crate) standings: Standings,
    /// Rises whenever room appears or rules change, so that waiters are worth another look.
    pub(crate) room: u64,
    /// Wrapping sum of the row hashes; see `rows`.
    pub(crate) hash: u128,
    /// Of the last entry's commands, in order; not stored.
    pub(crate) receipts: Arc<[Option<Receipt>]>,
    /// None on speculative copies, which nobody stores.
    pub(crate) changes: Option<Changes>,
}

/// Fewer live replicas than this say little of what will be asked: then the tightest fit counts.
pub(crate) const WORKLOAD: u64 = 32;
/// New jobs after which the rules are made again, at the latest; of a large workload when a part of it is new.
const RULES_EVERY: u64 = 512;
const RULES_PART: u64 = 16;

/// The key under which a token's id is revoked.
pub fn token_key(id: &str) -> Digest16 {
    Digest16::of(&[b"token", id.as_bytes()])
}

impl State {
    /// An empty state that records its changes.
    pub fn new() -> Self {
        Self { changes: Some(Changes::default()), ..Self::default() }
    }

    /// A copy to speculate on; it records no changes.
    pub fn speculative(&self) -> Self {
        Self { changes: None, ..self.clone() }
    }

    pub fn meta(&self) -> &Meta {
        &self.meta
    }
    pub fn jobs(&self) -> &OrdMap<JobNo, Arc<Job>> {
        &self.jobs
    }
    pub fn nodes(&self) -> &OrdMap<NodeNo, Arc<Node>> {
        &self.nodes
    }
    pub fn tenants(&self) -> &OrdMap<TenantNo, Arc<Tenant>> {
        &self.tenants
    }
    pub fn members(&self) -> &OrdMap<MemberId, Arc<Member>> {
        &self.members
    }
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }
    pub fn capacity(&self) -> &CapacityIndex {
        &self.capacity
    }
    /// Equal on members that applied the same log. Covers all live rows.
    pub fn hash(&self) -> u128 {
        self.hash
    }

    pub fn job(&self, no: JobNo) -> Option<&Arc<Job>> {
        self.jobs.get(&no)
    }
    pub fn node(&self, no: NodeNo) -> Option<&Arc<Node>> {
        self.nodes.get(&no)
    }
    pub fn tenant(&self, no: TenantNo) -> Option<&Arc<Tenant>> {
        self.tenants.get(&no)
    }
    pub fn node_named(&self, name: &NodeName) -> Option<&Arc<Node>> {
        self.node_names.get(name).and_then(|no| self.nodes.get(no))
    }
    pub fn tenant_named(&self, id: &TenantId) -> Option<&Arc<Tenant>> {
        self.tenant_names.get(id).and_then(|no| self.tenants.get(no))
    }
    /// Replicas that hold something on the node, by job and replica number.
    pub fn replicas_on(&self, node: NodeNo) -> impl Iterator<Item = (&Arc<Job>, u16, &Replica)> {
        let held = self.ledger.node(node).into_iter().flat_map(|used| used.replicas.iter());
        held.filter_map(|(job, replica)| {
            let job = self.jobs.get(job)?;
            Some((job, *replica, job.replicas.get(usize::from(*replica))?))
        })
    }
    /// Rises whenever the desired slice of the node may have changed.
    pub fn revision(&self, node: NodeNo) -> u64 {
        self.ledger.node(node).map_or(0, |used| used.revision)
    }
    /// Jobs whose number of replicas follows their load.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Job>> {
        self.services.iter().filter_map(|no| self.jobs.get(no))
    }
    /// Jobs whose version changes now.
    pub fn rollouts(&self) -> impl Iterator<Item = &Arc<Job>> {
        self.rolling.iter().filter_map(|no| self.jobs.get(no))
    }
    // ---- setters: the only way to change a table ----

    /// Inserts or replaces a job, and books what its replicas hold.
    pub(crate) fn put_job(&mut self, mut job: Job) {
        let old = self.jobs.get(&job.no).cloned();
        self.remember(RowKey::Job(job.no), |_| Before::Job(old.clone()));
        self.note_claims(&job);
        if let Some(old) = &old {
            self.note_claims(old);
            self.unindex_job(old);
            // One waiter less may let the next one look, or give up a node kept for it.
            self.room += u64::from(old.wants_place() && !job.wants_place());
        }
        if old.is_none() {
            self.share_spec(&mut job);
            self.learn(&job);
        }
        let gone = old.as_deref().map(|old| Rates::of(self, &old.spec, &old.replicas, old.ran)).unwrap_or_default();
        let come = Rates::of(self, &job.spec, &job.replicas, job.ran);
        self.meter_job(job.tenant, &gone, &come);
        self.note_copies(&job, old.as_deref());
        let job = Arc::new(job);
        self.index_job(&job, old.as_deref());
        self.jobs.insert(job.no, job);
    }

    /// Takes the tenant's newest spec for its own where they are equal.
    pub(crate) fn share_spec(&mut self, job: &mut Job) {
        match self.newest.get(&job.tenant) {
            Some(newest) if *newest == job.spec => job.spec = newest.clone(),
            _ => _ = self.newest.insert(job.tenant, job.spec.clone()),
        }
    }

    /// Counts a new job's asks. The rules follow from time to time: who plans on an older
    /// target plans well enough, and apply judges facts alone.
    fn learn(&mut self, job: &Job) {
        self.mix.add(&job.spec.resources, job.spec.asks());
        self.until_rules = self.until_rules.saturating_sub(1);
        if self.until_rules == 0 {
            self.make_rules(WORKLOAD);
        }
    }

    /// Tables for the present workload, if it is at least so many requests, and the present room.
    pub(crate) fn make_rules(&mut self, least: u64) {
        let chosen = self.meta.placement;
        let worth = match chosen.policy {
            Policy::Fragmentation if self.mix.total() >= least => Arc::new(Worth::new(&self.mix, &self.capacity)),
            _ => Arc::default(),
        };
        let dearest = self.capacity.dearest();
        self.rules = Arc::new(Rules { chosen, dearest, worth });
        // Soon while little is known, then every now and then.
        let latest = RULES_EVERY.max(self.mix.total() / RULES_PART);
        self.until_rules = (self.mix.total() / 4).clamp(1, latest);
    }

    /// Like [`State::put_job`] for a job that is not there yet, without the index of
    /// capacity, which [`State::reclass_all`] makes afterwards, once for each node.
    pub(crate) fn load_job(&mut self, mut job: Job) {
        self.share_spec(&mut job);
        for (i, replica) in job.replicas.iter().enumerate() {
            for alloc in replica.allocations() {
                if let Some(node) = self.nodes.get(&alloc.node) {
                    self.ledger.hold(job.tenant, (job.no, i as u16), &job.spec.resources, alloc, &node.spec);
                    self.note_staying(&job, alloc.node, |now, more| now + more);
                }
            }
        }
        self.enqueue_job(&job);
        self.note_claims(&job);
        self.load_rates(&job);
        self.mix.add(&job.spec.resources, job.spec.asks());
        self.jobs.insert(job.no, Arc::new(job));
    }

    /// Moves a job whose replicas have all ended to the history.
    pub(crate) fn finish_job(&mut self, job: Job) {
        let old = self.jobs.remove(&job.no);
        self.remember(RowKey::Job(job.no), |_| Before::Job(old.clone()));
        if let Some(old) = &old {
            let gone = Rates::of(self, &old.spec, &old.replicas, old.ran);
            self.meter_job(old.tenant, &gone, &Rates::default());
            self.note_claims(old);
            self.unindex_job(old);
            self.rebook(old, &[], &old.replicas);
            self.mix.remove(&old.spec.resources, old.spec.asks());
            self.room += u64::from(old.wants_place());
        }
        self.run_times.learn(&job);
        self.change_meta(|meta| meta.next_history += 1);
        let position = self.meta.next_history - 1;
        if let Some(changes) = &mut self.changes {
            changes.finished.push((position, Arc::new(job)));
        }
    }

    fn index_job(&mut self, job: &Arc<Job>, old: Option<&Job>) {
        self.rebook(job, &job.replicas, old.map_or(&[], |old| &old.replicas));
        self.enqueue_job(job);
    }

    fn enqueue_job(&mut self, job: &Job) {
        self.files_at.note(job);
        if job.replicas.iter().any(|r| r.allocations().next().is_some()) {
            self.holding.insert((job.tenant, job.no));
            if job.spec.gang && job.wants_place() {
                self.torn.insert(job.no);
            }
        }
        if job.claim.is_some() {
            self.claims.insert(job.no);
        }
        if job.spec.constraints.preemptible && job.replicas.iter().any(|r| matches!(r.phase, Phase::Held { .. })) {
            self.yielding.insert((job.spec.priority.into(), job.no));
        }
        if job.spec.constraints.max_run_ms.is_some() {
            self.limited.insert(job.no);
        }
        if job.spec.scaling.is_some() {
            self.services.insert(job.no);
        }
        if job.open_rollout().is_some() {
            self.rolling.insert(job.no);
        }
        let totals = self.ledger.tenant_mut(job.tenant);
        totals.jobs += 1;
        if job.wants_place() {
            totals.waiting += 1;
            self.waiting.insert((job.tenant, -i32::from(job.spec.priority), job.no));
            if let Some(at) = job.wake_ms() {
                self.wakes.insert((at, job.no));
            }
            self.waits.extend(job.all_waits_since().map(|since| (since, job.no)));
        }
    }

    fn unindex_job(&mut self, job: &Job) {
        self.files_at.forget(job);
        self.holding.remove(&(job.tenant, job.no));
        self.torn.remove(&job.no);
        self.claims.remove(&job.no);
        self.yielding.remove(&(job.spec.priority.into(), job.no));
        self.limited.remove(&job.no);
        self.rolling.remove(&job.no);
        if job.spec.scaling.is_some() {
            self.services.remove(&job.no);
        }
        let totals = self.ledger.tenant_mut(job.tenant);
        totals.jobs -= 1;
        if job.wants_place() {
            totals.waiting -= 1;
            self.waiting.remove(&(job.tenant, -i32::from(job.spec.priority), job.no));
            if let Some(at) = job.wake_ms() {
                self.wakes.remove(&(at, job.no));
            }
            for since in job.all_waits_since() {
                self.waits.remove(&(since, job.no));
            }
        }
    }

    /// Brings ledger and index from the allocations of `old` to those of `new`.
    fn rebook(&mut self, job: &Job, new: &[Replica], old: &[Replica]) {
        let ask = &job.spec.resources;
        let mut touched: Vec<NodeNo> = Vec::new();
        for i in 0..new.len().max(old.len()) {
            let (was, is) = (old.get(i), new.get(i));
            if was == is {
                continue;
            }
            let held = [was.and_then(Replica::allocation), was.and_then(Replica::other_allocation)];
            let holds = [is.and_then(Replica::allocation), is.and_then(Replica::other_allocation)];
            let who = (job.no, i as u16);
            for alloc in held.iter().flatten() {
                if holds.contains(&Some(*alloc)) {
                    // Same allocation, another phase: the agent has to look again.
                    self.ledger.touch(alloc.node);
                    continue;
                }
                let spec = self.nodes[&alloc.node].spec.clone();
                self.ledger.release(job.tenant, who, ask, alloc, &spec);
                self.note_staying(job, alloc.node, |now, more| now.saturating_sub(more));
                self.room += 1;
                touched.push(alloc.node);
            }
            for alloc in holds.iter().flatten().filter(|alloc| !held.contains(&Some(**alloc))) {
                let spec = self.nodes[&alloc.node].spec.clone();
                self.ledger.hold(job.tenant, who, ask, alloc, &spec);
                self.note_staying(job, alloc.node, |now, more| now + more);
                touched.push(alloc.node);
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for node in touched {
            self.reclass(node);
        }
    }

    fn note_staying(&mut self, job: &Job, node: NodeNo, sum: impl Fn(u64, u64) -> u64) {
        if job.spec.stays() {
            let (count, gpu_milli) = self.staying.get(&node).copied().unwrap_or_default();
            let count = sum(count.into(), 1) as u32;
            let now = (count, sum(gpu_milli, job.spec.resources.gpu.milli()));
            if count == 0 {
                self.staying.remove(&node)
            } else {
                self.staying.insert(node, now)
            };
        }
    }

    /// As if the replica held nothing, on a scratch copy.
    pub(crate) fn give_back(&mut self, job: &Job, replica: u16) {
        let Some(alloc) = job.replicas.get(usize::from(replica)).and_then(Replica::allocation) else { return };
        let Some(node) = self.nodes.get(&alloc.node).cloned() else { return };
        self.ledger.release(job.tenant, (job.no, replica), &job.spec.resources, alloc, &node.spec);
        self.reclass(node.no);
        // Who is to go already may be going to an open claim.
        if matches!(job.replicas[usize::from(replica)].phase, Phase::Stopping { .. }) {
            self.claims_changed = true;
            self.sum_claims();
        }
    }

    /// The tenants above, the nearest first.
    fn above(&self, no: TenantNo) -> Vec<TenantNo> {
        self.tenants.get(&no).map_or_else(Vec::new, |row| tree::path(self, row)[1..].iter().map(|t| t.no).collect())
    }

    /// From now on places are compared by this. Waiters are worth another look.
    pub(crate) fn set_placement(&mut self, chosen: Chosen) {
        self.change_meta(|meta| {
            meta.placement = chosen;
            meta.placement_version += 1;
        });
        self.make_rules(WORKLOAD);
        self.room += 1;
    }

    pub(crate) fn change_meta(&mut self, change: impl FnOnce(&mut Meta)) {
        if let Some(changes) = &mut self.changes {
            changes.meta.get_or_insert_with(|| self.meta.clone());
        }
        change(&mut self.meta);
    }

    /// Appends an event. Speculative copies count them but keep none.
    pub(crate) fn emit(&mut self, kind: EventKind) {
        let (seq, at_ms) = (self.meta.next_event, self.meta.now_ms);
        self.change_meta(|meta| meta.next_event += 1);
        if let Some(changes) = &mut self.changes {
            changes.events.push(Event { seq, at_ms, kind });
        }
    }

    pub(crate) fn remember(&mut self, key: RowKey, before: impl FnOnce(&State) -> Before) {
        if self.changes.as_ref().is_none_or(|c| c.rows.contains_key(&key)) {
            return;
        }
        let before = before(self);
        if let Some(changes) = &mut self.changes {
            changes.rows.insert(key, before);
        }
    }
}
