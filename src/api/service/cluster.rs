//! Use cases about the group itself: who is in it, who leads, is this member
//! well, and moving leadership. It does not elect anyone.

use super::links::LinksBody;
use super::{Call, Service};
use crate::api::convert::node::{NewMember, Promote, Target, member_matches};
use crate::api::error::Failure;
use crate::raft::{MemberStatus, Role, Status};
use crate::telemetry::alarms::OF_AGENTS;
use nf_core::audit::Action;
use nf_core::command::Mode;
use nf_core::id::MemberId;
use nf_core::node::NodeKind;
use nf_core::reason::{Reason, Refusal, printable};
use nf_core::state::State;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A member that is this many entries behind is not ready.
const READY_LAG: u64 = 10_000;
/// Nor is one that has not heard from the leader for this long.
const READY_CONTACT_MS: u64 = 5_000;

/// How one part of a member does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Component {
    /// `ok`, `simulated`, `missing` or `degraded`.
    pub status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// How this member does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HealthBody {
    /// `ok` while the process is alive.
    pub status: String,
    /// Seconds since the process started.
    pub uptime: f64,
    pub simulation: bool,
    /// `production` or `simulation`.
    pub mode: String,
    /// `on`: callers say who they are, with a token; `off`: anybody may call (simulation alone).
    pub auth: String,
    /// Settings that production needs and this process has not.
    pub missing: Vec<String>,
    pub node_id: String,
    /// `leader`, `follower` or `learner`; `worker` where there is no vote and no log.
    pub role: String,
    /// Name of the member that leads.
    pub leader: Option<String>,
    pub term: u64,
    /// Applied log index.
    pub index: u64,
    pub version: String,
    pub commit: String,
    pub components: BTreeMap<String, Component>,
    pub links: LinksBody,
}

/// One member of the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberBody {
    pub id: u64,
    pub name: String,
    /// `leader`, `voter` or `learner`.
    pub role: String,
    /// Public address.
    pub api: Option<String>,
    /// Member-to-member address.
    pub peer: String,
    pub version: Option<String>,
    /// Last log index known to be on it; only the leader knows.
    pub matched: Option<u64>,
    /// Key exchange of the connection between it and the member that answers, as in `X25519MLKEM768`; `none`
    /// for plain text. Absent where there is no connection, and of the member that answers.
    pub kx_group: Option<String>,
}

/// The group as this member sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MembersBody {
    pub cluster: String,
    pub items: Vec<MemberBody>,
    /// For the next member: a number that nobody has or had.
    pub next_id: u64,
    pub leader: Option<String>,
    pub term: u64,
    pub commit_index: u64,
    pub applied_index: u64,
    pub feature_level: u32,
    pub simulation: bool,
    /// Equal on members that applied the same log.
    pub state_hash: String,
    /// Entries of the audit trail, and the hash of the last one, on this member.
    pub audit_seq: u64,
    pub audit_head: String,
}

/// Where leadership went, or would go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PromoteBody {
    /// Always `promote`.
    pub action: String,
    pub region: Option<String>,
    pub tenant: Option<String>,
    pub dry_run: bool,
    pub ok: bool,
    /// The member that led.
    pub from: Option<String>,
    /// The member that leads now, or would.
    pub to: String,
    pub simulation: bool,
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        // A candidate follows nobody and leads nobody yet; to its callers it is a follower.
        Role::Follower | Role::Candidate => "follower",
        Role::Learner => "learner",
    }
}

fn name_of(status: &Status, id: MemberId) -> String {
    let member = status.members.iter().find(|member| member.id == id);
    member.map_or_else(|| id.to_string(), |member| member.name.clone())
}

/// Whether certificates and token keys on disk are of use; old ones go on meanwhile, and the log says what is wrong.
pub fn keys(metrics: &crate::telemetry::Metrics) -> Component {
    let on: Vec<&str> = metrics.alarms.on().into_iter().filter(|kind| !OF_AGENTS.contains(kind)).collect();
    match on.join(", ") {
        none if none.is_empty() => Component { status: "ok".into(), detail: None },
        on => Component { status: "degraded".into(), detail: Some(format!("of no use, old ones are kept: {on}")) },
    }
}

/// How what runs on this process' nodes does: `well`, or what of it needs a person.
pub fn agent(metrics: &crate::telemetry::Metrics, well: Component) -> Component {
    let on: Vec<&str> = metrics.alarms.on().into_iter().filter(|kind| OF_AGENTS.contains(kind)).collect();
    match on.join(", ") {
        none if none.is_empty() => well,
        on => Component { status: "degraded".into(), detail: Some(format!("its log says which and why: {on}")) },
    }
}

impl Service {
    /// How this member does. Never waits for the group.
    pub fn health(&self) -> HealthBody {
        let status = self.replica.status();
        let applied = self.replica.applied();
        let simulation = applied.state.meta().mode == Mode::Simulation;
        HealthBody {
            status: "ok".into(),
            uptime: self.info.started.elapsed().as_secs_f64(),
            simulation,
            mode: if simulation { "simulation".into() } else { "production".into() },
            auth: if self.gate.asks() { "on".into() } else { "off".into() },
            missing: self.info.missing.clone(),
            node_id: self.info.node_name.clone(),
            role: role_name(status.role).into(),
            leader: status.leader.map(|id| name_of(&status, id)),
            term: status.term,
            index: applied.index,
            version: self.info.version.clone(),
            commit: self.info.commit.clone(),
            components: self.components(&status, &applied.state, simulation),
            links: LinksBody::of(self.info.key_exchange, &self.info.links),
        }
    }

    fn components(&self, status: &Status, state: &State, simulation: bool) -> BTreeMap<String, Component> {
        let ok = |detail: Option<String>| Component { status: "ok".into(), detail };
        let scheduler = match status.leader {
            Some(_) => ok(None),
            None => Component { status: "degraded".into(), detail: Some("no leader is known".into()) },
        };
        let store = match (self.models.known_store(), simulation) {
            // How many and no more: anybody may read this.
            (true, _) => match state.quarantines().count() {
                0 => ok(None),
                n => Component { status: "degraded".into(), detail: Some(format!("{n} versions in quarantine")) },
            },
            (false, true) => Component { status: "simulated".into(), detail: Some("no model store".into()) },
            (false, false) => Component { status: "missing".into(), detail: Some("MODEL_STORE_URL".into()) },
        };
        let own = |node: &nf_core::node::Node| match node.kind {
            NodeKind::Member(id) | NodeKind::Played(id) => id == status.id,
            NodeKind::Worker => false,
        };
        let nodes = state.nodes().values().filter(|node| own(node)).count();
        let here = match simulation {
            true => Component { status: "simulated".into(), detail: Some(format!("{nodes} nodes here")) },
            false => ok(Some(format!("{nodes} nodes here"))),
        };
        let defragmentation = match self.info.defrag_every {
            Some(every) => format!("defragmentation every {} s", every.as_secs()),
            None => "no scheduled defragmentation".to_owned(),
        };
        let autoscaler = ok(Some(format!("{} services that scale", state.services().count())));
        [
            ("scheduler", scheduler),
            ("resource_manager", self.resource_manager(state)),
            ("model_store", store),
            ("agent", agent(&self.metrics, here)),
            ("placement", ok(Some(defragmentation))),
            ("autoscaler", autoscaler),
            ("keys", keys(&self.metrics)),
        ]
        .into_iter()
        .map(|(name, component)| (name.to_owned(), component))
        .collect()
    }

    fn resource_manager(&self, state: &State) -> Component {
        let nodes = format!("{} nodes", state.nodes().len());
        match self.network_fault(state) {
            None => Component { status: "ok".into(), detail: Some(nodes) },
            Some(fault) => Component { status: "degraded".into(), detail: Some(format!("{nodes}; {fault}")) },
        }
    }

    /// What is said while so many nodes are silent that the network is blamed.
    pub(super) fn network_fault(&self, state: &State) -> Option<String> {
        let fault = self.info.network_fault;
        let (silent, all) = nf_core::liveness::silent_nodes(state);
        fault.is_likely(silent, all).then(|| {
            format!(
                "{silent} of {all} nodes are silent at once: taken for a network fault, so none of them is given up \
                 before {} s of silence; nf node down NODE gives up one that is dead",
                fault.down_ms / 1000
            )
        })
    }

    /// Whether calls are better sent here than not: a leader is known and the lag is bounded.
    pub fn ready(&self) -> Result<HealthBody, Failure> {
        readiness(&self.replica.status())?;
        Ok(self.health())
    }

    /// Who is in the group.
    pub fn members(&self) -> MembersBody {
        let status = self.replica.status();
        let applied = self.replica.applied();
        let state = &applied.state;
        let body = |member: &MemberStatus| {
            let known = state.members().get(&member.id);
            let role = match (status.leader == Some(member.id), member.voter) {
                (true, _) => "leader",
                (false, true) => "voter",
                (false, false) => "learner",
            };
            MemberBody {
                id: member.id.0,
                name: member.name.clone(),
                role: role.into(),
                api: known.map(|m| m.api.to_string()),
                peer: member.peer.clone(),
                version: known.map(|m| m.version.to_string()),
                matched: member.matched,
                kx_group: self.info.links.iter().find_map(|links| links.with_peer(&member.name)),
            }
        };
        MembersBody {
            cluster: state.meta().cluster.to_string(),
            items: status.members.iter().map(body).collect(),
            next_id: next_id(&status, state).0,
            leader: status.leader.map(|id| name_of(&status, id)),
            term: status.term,
            commit_index: status.commit_index,
            applied_index: applied.index,
            feature_level: state.meta().level,
            simulation: state.meta().mode == Mode::Simulation,
            state_hash: format!("{:032x}", state.hash()),
            audit_seq: state.audit().seq(),
            audit_head: state.audit().head().to_string(),
        }
    }

    /// Takes a new member in, without a vote.
    pub async fn add_member(&self, call: &Call, wanted: NewMember) -> Result<MembersBody, Failure> {
        let status = self.replica.status();
        let id = wanted.id.map_or_else(|| next_id(&status, &self.replica.applied().state), MemberId);
        let taken = |m: &&MemberStatus| (m.id == id) != (m.name == wanted.name.as_str());
        if let Some(other) = status.members.iter().find(taken) {
            let detail = format!("member {} is called {}; give another id and name", other.id, other.name);
            return Err(Refusal::field(Reason::Conflict, "id", detail).into());
        }
        self.note(call, Action::MemberJoin, format!("member/{}", wanted.name)).await?;
        let added = self.replica.add_learner(id, wanted.name.to_string(), wanted.peer, call.deadline).await;
        added.map_err(|error| self.fail(error))?;
        Ok(self.members())
    }

    /// Gives a learner a vote.
    pub async fn give_vote(&self, call: &Call, member: &str) -> Result<MembersBody, Failure> {
        let id = self.member_named(member)?;
        self.note(call, Action::MemberPromote, format!("member/{id}")).await?;
        self.replica.promote(id, call.deadline).await.map_err(|error| self.fail(error))?;
        Ok(self.members())
    }

    /// Takes a member out of the group.
    pub async fn remove_member(&self, call: &Call, member: &str) -> Result<MembersBody, Failure> {
        let id = self.member_named(member)?;
        self.note(call, Action::MemberRemove, format!("member/{id}")).await?;
        self.replica.remove(id, call.deadline).await.map_err(|error| self.fail(error))?;
        Ok(self.members())
    }

    /// Takes a snapshot on this member; returns the log index that it covers.
    pub async fn snapshot(&self) -> Result<u64, Failure> {
        self.replica.snapshot().await.map_err(|error| self.fail(error))
    }

    fn member_named(&self, text: &str) -> Result<MemberId, Failure> {
        let status = self.replica.status();
        let found = status.members.iter().find(|member| member_matches(text, member.id, &member.name));
        let shown = printable(text, 64);
        let missing =
            || Refusal::field(Reason::NotFound, "member", format!("no member {shown}; nf cluster members lists them"));
        Ok(found.ok_or_else(missing)?.id)
    }

    /// Moves leadership to the member or region asked for, and returns when it is so.
    pub async fn promote(&self, call: &Call, wanted: Promote) -> Result<PromoteBody, Failure> {
        let status = self.replica.status();
        let state = self.replica.applied().state;
        let to = choose(&status, &state, &wanted.target)?;
        let simulation = state.meta().mode == Mode::Simulation;
        drop(state);
        if !wanted.dry_run && status.leader != Some(to) {
            self.note(call, Action::LeaderTransfer, format!("member/{to}")).await?;
            self.replica.transfer(to, call.deadline).await.map_err(|error| self.fail(error))?;
        }
        let region = match &wanted.target {
            Target::Region(region) => Some(region.to_string()),
            Target::Member(_) => None,
        };
        Ok(PromoteBody {
            action: "promote".into(),
            region,
            tenant: wanted.tenant.map(|tenant| tenant.to_string()),
            dry_run: wanted.dry_run,
            ok: true,
            from: status.leader.map(|id| name_of(&status, id)),
            to: name_of(&status, to),
            simulation,
        })
    }
}

/// A number that no member has, nor had: who was removed keeps its row in the state.
fn next_id(status: &Status, state: &State) -> MemberId {
    let present = status.members.iter().map(|member| member.id);
    let most = present.chain(state.members().keys().copied()).max().unwrap_or(MemberId(0));
    MemberId(most.0.saturating_add(1))
}

/// What keeps a member from being ready, if anything does.
fn readiness(status: &Status) -> Result<(), Failure> {
    let refuse = |reason: Reason, detail: String| Err(Failure::new(reason, detail));
    if status.leader.is_none() {
        return refuse(Reason::NoLeader, "not ready: no leader is known; nf cluster members shows the group".into());
    }
    if status.last_contact_ms > READY_CONTACT_MS {
        let detail = format!("not ready: no word from the leader for {} ms", status.last_contact_ms);
        return refuse(Reason::NoLeader, detail);
    }
    // A leader that is cut off leads nobody, and learns of its successor last of all.
    if status.quorum_ms.is_some_and(|ms| ms > READY_CONTACT_MS) {
        let detail = format!("not ready: this member leads, and no quorum has answered it for {READY_CONTACT_MS} ms");
        return refuse(Reason::NoLeader, detail);
    }
    let lag = status.commit_index.saturating_sub(status.applied_index);
    if lag > READY_LAG {
        return refuse(Reason::NotCaughtUp, format!("not ready: {lag} entries behind, more than {READY_LAG}"));
    }
    Ok(())
}

/// Entries that a voter may lack and still be caught up: a transfer sends them on the way.
const CAUGHT_UP: u64 = 1_000;

/// The voter that should lead: the one named, or the most caught up of the region.
fn choose(status: &Status, state: &State, target: &Target) -> Result<MemberId, Failure> {
    let in_target = |member: &&MemberStatus| match target {
        Target::Member(text) => member_matches(text, member.id, &member.name),
        Target::Region(region) => state
            .nodes()
            .values()
            .any(|node| node.kind == NodeKind::Member(member.id) && node.spec.region.as_ref() == Some(region)),
    };
    let fits: Vec<&MemberStatus> = status.members.iter().filter(in_target).collect();
    let (field, shown) = match target {
        Target::Member(text) => ("member", format!("member {text}")),
        Target::Region(region) => ("region", format!("member in region {region}")),
    };
    if fits.is_empty() {
        let detail = format!("no {shown}; nf cluster members lists them");
        return Err(Refusal::field(Reason::NotFound, field, detail).into());
    }
    // Leadership that is there already stays.
    if let Some(leader) = fits.iter().find(|member| status.leader == Some(member.id)) {
        return Ok(leader.id);
    }
    let best =
        fits.iter().filter(|member| member.voter).max_by_key(|member| (member.matched, std::cmp::Reverse(member.id)));
    let Some(best) = best else {
        let detail = format!("{shown} has no vote; promote it first (nf cluster promote)");
        return Err(Refusal::field(Reason::NotVoter, field, detail).into());
    };
    if let Some(matched) = best.matched
        && matched + CAUGHT_UP < status.commit_index
    {
        let behind = status.commit_index - matched;
        let detail = format!("{shown} is {behind} entries behind; wait until it has caught up");
        return Err(Refusal::field(Reason::NotCaughtUp, field, detail).into());
    }
    Ok(best.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(matched: [Option<u64>; 3]) -> Status {
        let member = |(i, matched): (usize, Option<u64>)| MemberStatus {
            id: MemberId(i as u64 + 1),
            name: format!("node-{}", i + 1),
            peer: String::new(),
            voter: i < 2,
            matched,
            heard_ms: None,
        };
        Status {
            id: MemberId(1),
            role: Role::Leader,
            term: 1,
            leader: Some(MemberId(1)),
            commit_index: 5_000,
            applied_index: 5_000,
            last_log_index: 5_000,
            snapshot_index: 0,
            purged_index: 0,
            last_contact_ms: 0,
            quorum_ms: Some(40),
            silence_ms: 0,
            electorate: crate::raft::Electorate::default(),
            members: matched.into_iter().enumerate().map(member).collect(),
        }
    }

    #[test]
    fn a_member_is_ready_while_it_can_answer() {
        let reason = |change: &dyn Fn(&mut Status)| {
            let mut status = status([Some(5_000); 3]);
            change(&mut status);
            readiness(&status).err().map(|failure| (failure.refusal.reason, failure.codes().http))
        };
        assert_eq!(reason(&|_| {}), None);
        assert_eq!(reason(&|s| s.quorum_ms = None), None, "alone, it is its own quorum");
        assert_eq!(reason(&|s| s.quorum_ms = Some(5_001)), Some((Reason::NoLeader, 503)), "cut off");
        assert_eq!(reason(&|s| s.leader = None), Some((Reason::NoLeader, 503)));
        assert_eq!(reason(&|s| s.last_contact_ms = 6_000), Some((Reason::NoLeader, 503)));
        assert_eq!(reason(&|s| s.commit_index = 50_000), Some((Reason::NotCaughtUp, 503)));
    }

    #[test]
    fn the_number_of_a_removed_member_is_not_given_again() {
        let mut state = State::new();
        let member = nf_core::command::Member {
            id: MemberId(7),
            name: nf_core::id::NodeName::new("gone").unwrap(),
            api: "".into(),
            peer: "".into(),
            min_level: 1,
            max_level: 1,
            version: "".into(),
        };
        let status = status([None; 3]);
        assert_eq!(next_id(&status, &state), MemberId(4));
        nf_core::testing::run(&mut state, nf_core::plan::Intent::Member(member));
        assert_eq!(next_id(&status, &state), MemberId(8));
    }

    #[test]
    fn leadership_goes_to_a_caught_up_voter_or_nowhere() {
        let state = State::new();
        let to = |name: &str, matched| {
            choose(&status(matched), &state, &Target::Member(name.into())).map_err(|f| f.refusal.reason)
        };
        let all = [Some(5_000), Some(5_000), Some(5_000)];
        assert_eq!(to("node-1", all), Ok(MemberId(1)));
        assert_eq!(to("node-2", all), Ok(MemberId(2)));
        assert_eq!(to("2", [Some(5_000), None, None]), Ok(MemberId(2)));
        assert_eq!(to("node-2", [Some(5_000), Some(7), Some(5_000)]), Err(Reason::NotCaughtUp));
        assert_eq!(to("node-3", all), Err(Reason::NotVoter));
        assert_eq!(to("node-9", all), Err(Reason::NotFound));
    }
}
