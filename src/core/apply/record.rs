//! Which commands leave an entry in the audit trail, and what it says. An entry is
//! made of the command and of the state before it, so the log carries nothing for it but
//! the actor. Speculative copies make none: nobody stores them. It does not change
//! what a command does.

use crate::approval::{Approval, Version};
use crate::audit::{Action, Actor, Check, Hash, Receipt, Record, Refs, Verdict};
use crate::command::{Answer, Command, Note};
use crate::consent::Consent;
use crate::floor;
use crate::id::{NodeName, NodeNo, RequestId, Revision, TenantId};
use crate::job::{Job, JobSpec};
use crate::node::Node;
use crate::policy;
use crate::reason::{Reason, Refusal};
use crate::rollout::Turn;
use crate::state::State;
use crate::trust;
use std::sync::Arc;

/// The subject where nobody was asked: simulation without keys, and what the group does by itself.
pub const NOBODY: &str = "-";

/// What the entry will say, as far as it is known before the command is applied.
pub(super) struct About {
    action: Action,
    object: String,
    checks: [Check; 7],
    refs: Refs,
    note: Option<(Option<Reason>, u32)>,
    /// For a registration, the node as it was: saying the same again is no entry.
    node: Option<Arc<Node>>,
    /// An entry only where somebody wanted it.
    of_people: bool,
}

impl About {
    fn new(action: Action, object: String) -> Self {
        let checks = [Check::default(); 7];
        Self { action, object, checks, refs: Refs::default(), note: None, node: None, of_people: false }
    }
}

/// None for what leaves no entry: the group's own bookkeeping, and what changes nothing.
pub(super) fn about(state: &State, command: &Command) -> Option<About> {
    // Only a state that is stored has a trail.
    state.changes.as_ref()?;
    let tenant = |action, id: &crate::id::TenantId| About::new(action, format!("tenant/{id}"));
    Some(match command {
        Command::Submit { submission, .. } => {
            of_spec(state, Action::JobSchedule, named(&submission.spec.tenant, &submission.request), &submission.spec)
        }
        Command::Stop { job, .. } => About::new(Action::JobStop, of_job(state.job(*job)?)),
        Command::Scale { job, .. } => {
            let job = state.job(*job)?;
            // More replicas are more of what was let in: it is told what lets it run now.
            of_spec(state, Action::ServiceScale, of_job(job), &job.spec)
        }
        Command::Register { name, .. } => {
            let node = state.node_named(name).cloned();
            About { node, ..About::new(Action::NodeRegister, format!("node/{name}")) }
        }
        Command::SetCordon { node, cordon } => {
            let action = match cordon {
                Some(cordon) if cordon.drain.is_some() => Action::NodeDrain,
                Some(_) => Action::NodeCordon,
                None => Action::NodeUncordon,
            };
            About::new(action, format!("node/{}", state.node(*node)?.name))
        }
        Command::CreateTenant { tenant: id } if state.tenant_named(id).is_some() => return None,
        Command::CreateTenant { tenant: id } => tenant(Action::TenantCreate, id),
        Command::DeleteTenant { tenant: id } => tenant(Action::TenantDelete, id),
        Command::SetQuota { tenant: id, .. } => tenant(Action::QuotaSet, id),
        Command::Member(member) if state.members().get(&member.id).is_some_and(|m| **m == *member) => return None,
        Command::Member(member) => About::new(Action::MemberJoin, format!("member/{}", member.name)),
        Command::RaiseLevel { to, .. } if *to == state.meta().level => return None,
        Command::RaiseLevel { to, .. } => About::new(Action::LevelFinalize, format!("level/{to}")),
        Command::Init { cluster, .. } => About::new(Action::ClusterInit, format!("cluster/{cluster}")),
        Command::RevokeToken { token } => About::new(Action::TokenRevoke, format!("token/{token}")),
        Command::AddJoinToken(token) => About::new(Action::JoinTokenCreate, format!("join-token/{}", token.id)),
        Command::SpendJoinToken(shown) => About::new(Action::CertificateIssue, format!("node/{}", shown.node)),
        Command::DropJoinToken { id } => About::new(Action::JoinTokenRevoke, format!("join-token/{id}")),
        Command::Approve(approval) => of_version(Action::ModelApprove, &approval.of, Some(approval)),
        Command::Disapprove(of) => {
            let known = state.approval(&of.tenant, &of.model, &of.version);
            of_version(Action::ModelRevoke, of, known.map(|known| &**known))
        }
        Command::Release(asked) => {
            let refs = Refs { manifest: Some(Hash(asked.manifest)), ..Refs::default() };
            About { refs, ..About::new(Action::ModelRelease, asked.of.object()) }
        }
        Command::Consent(consent) => {
            let object = Consent::object(&consent.scope.tenant, &consent.statement);
            let refs = Refs { key_id: Some(consent.key_id.clone()), ..Refs::default() };
            About { refs, ..About::new(Action::ConsentGrant, object) }
        }
        Command::Dissent { tenant, statement } => About::new(Action::ConsentRevoke, Consent::object(tenant, statement)),
        // A node's own doing, but what the law asks about: which copies went, by whose node.
        Command::Purged { node, .. } => About::new(Action::CopyPurge, format!("node/{}", state.node(*node)?.name)),
        Command::Note(Note { action, object, refused, count, checks, refs }) => {
            let note = Some((*refused, *count));
            About { note, checks: *checks, refs: refs.clone(), ..About::new(*action, object.to_string()) }
        }
        Command::StartRollout { job, next, rollback, .. } => {
            let job = state.job(*job)?;
            let action = if *rollback { Action::ModelRollback } else { Action::RolloutStart };
            let mut spec = next.spec(&job.spec);
            if *rollback {
                floor::go_below(state, &mut spec);
            }
            of_spec(state, action, of_job(job), &spec)
        }
        Command::TurnRollout { job, turn, .. } => {
            let job = state.job(*job)?;
            let action = match turn {
                // It goes on, and its event says what is held against it.
                Turn::Back { failed: true, .. } if trust::judge_way_back(state, job).is_err() => return None,
                Turn::Pause => Action::RolloutPause,
                Turn::Resume => Action::RolloutResume,
                Turn::Promote => Action::RolloutPromote,
                Turn::Back { .. } => Action::RolloutRevert,
                Turn::Watch | Turn::Done | Turn::Undone => return None,
            };
            let mut about = of_spec(state, action, of_job(job), job.spec_of(job.target_revision()));
            if let Turn::Back { failed: true, why, .. } = turn {
                let (policy, verdict) = match why {
                    Reason::PromiseBroken => (5, Verdict::Block),
                    Reason::ArtifactMismatch => (6, Verdict::Block),
                    // No policy's business: the version did not come up, or did not stay.
                    _ => (5, Verdict::Na),
                };
                about.checks[policy] = Check { verdict, code: Some(*why) };
            }
            about
        }
        // The group's own verdicts are its bookkeeping; those of a person are theirs.
        Command::SetNodeState { node, .. } => {
            let about = About::new(Action::NodeGiveUp, format!("node/{}", state.node(*node)?.name));
            About { of_people: true, ..about }
        }
        Command::SetPlacement(_) => About::new(Action::PolicySet, "policy/placement".to_owned()),
        // The group's own doing; the job's event names who gave way to whom.
        Command::Preempt { job, .. } => About::new(Action::JobPreempt, of_job(state.job(*job)?)),
        Command::Move { job, .. } => {
            let about = About::new(Action::JobMove, of_job(state.job(*job)?));
            About { of_people: true, ..about }
        }
        Command::Faults { node, .. } => device(state, Action::DeviceQuarantine, *node)?,
        Command::Heal { node, .. } => device(state, Action::DeviceHeal, *node)?,
        Command::Place { .. }
        | Command::Tick
        | Command::KeyTrail(_)
        | Command::Reports { .. }
        | Command::Evict { .. }
        | Command::Renew { .. }
        | Command::SetDrain { .. }
        | Command::CountUsage { .. } => return None,
    })
}

/// Told to those who go on too fast, or repeat themselves; metrics count it.
fn is_about_pace(reason: Reason) -> bool {
    use Reason::{IdempotencyConflict, PlanChanged, QueueFull, TenantLimit, TooManyRequests};
    matches!(reason, QueueFull | TooManyRequests | TenantLimit | IdempotencyConflict | PlanChanged)
}

/// What agents see is bookkeeping, too; what an operator says of a device is not.
fn device(state: &State, action: Action, node: NodeNo) -> Option<About> {
    let about = About::new(action, format!("node/{}", state.node(node)?.name));
    Some(About { of_people: true, ..about })
}

/// A job, as the trail names it: two tenants' jobs may have one id.
fn of_job(job: &Job) -> String {
    named(&job.spec.tenant, &job.request)
}

fn named(tenant: &TenantId, request: &RequestId) -> String {
    format!("job/{tenant}/{request}")
}

/// What lets a version run, with the evidence.
fn of_spec(state: &State, action: Action, object: String, spec: &JobSpec) -> About {
    let checks = policy::admission(spec, state.meta().mode, policy::Faults::of(state, spec));
    About { checks, refs: policy::refs(state, spec), ..About::new(action, object) }
}

/// What is said of a version, and by which approval: entries about its jobs name the same digest.
fn of_version(action: Action, of: &Version, approval: Option<&Approval>) -> About {
    let manifest = approval.map(|approval| crate::audit::Hash(approval.manifest));
    let refs = Refs { manifest, approval: approval.map(Approval::digest), ..Refs::default() };
    About { refs, ..About::new(action, of.object()) }
}

/// A version first became Ready in a job or rollout (a deploy, SPEC section 7), or its bytes were others than its
/// manifest says: the node has read and hashed all of them. What no store knows has none.
pub(super) fn deployed(state: &mut State, job: &Job, revision: Revision, node: &NodeName, refused: Option<Reason>) {
    let spec = job.spec_of(revision);
    if spec.manifest.is_none() {
        return;
    }
    let About { mut checks, refs, object, action, .. } = of_spec(state, Action::ModelDeploy, of_job(job), spec);
    checks[6] = policy::hashed(refused);
    let actor = Actor { node: Some(node.clone()), ..nobody() };
    let at_ms = state.meta().now_ms;
    state.append_audit(Record { at_ms, actor, action, object: object.into(), checks, refs, refused, count: 1 });
}

fn nobody() -> Actor {
    Actor { subject: NOBODY.into(), tenant: None, token: None, node: None, issuer: None }
}

/// Gives the entry its place, if the command did something or refused somebody.
pub(super) fn keep(
    state: &mut State,
    about: About,
    actor: Option<&Actor>,
    answer: &Result<Answer, Refusal>,
) -> Option<Receipt> {
    if about.of_people && actor.is_none() {
        return None;
    }
    let again = |node: &Arc<Node>| state.node_named(&node.name).is_some_and(|now| Arc::ptr_eq(now, node));
    let (refused, count) = match (answer, about.note) {
        (Ok(Answer::Job { replayed: true, .. } | Answer::Count(0)), _) => return None,
        (Ok(Answer::Node { .. }), _) if about.node.as_ref().is_some_and(again) => return None,
        (_, Some(note)) => note,
        (Ok(_), None) => (None, 1),
        // What the group refuses itself is told by its own replies.
        (Err(_), None) if actor.is_none() => return None,
        // What a caller may try again and again fills no trail that is kept for ever.
        (Err(refusal), None) if is_about_pace(refusal.reason) => return None,
        (Err(refusal), None) => (Some(refusal.reason), 1),
    };
    let record = Record {
        at_ms: state.meta().now_ms,
        actor: actor.cloned().unwrap_or_else(nobody),
        action: about.action,
        object: about.object.into(),
        checks: about.checks,
        refs: about.refs,
        refused,
        count,
    };
    state.append_audit(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::apply_batch;
    use crate::command::{Batch, Report, ReportKind};
    use crate::job::Stage;
    use crate::plan::{Intent, plan};
    use crate::resources::Gpus;
    use crate::testing;

    fn ada() -> Actor {
        Actor {
            subject: "ada".into(),
            tenant: crate::id::TenantId::new("t1").ok(),
            token: None,
            node: None,
            issuer: None,
        }
    }

    fn by(state: &mut State, intent: Intent, actor: Option<&Actor>) -> Option<Receipt> {
        let mut batch = Batch { base: state.meta().base, at_ms: 7, ..Batch::default() };
        for command in plan(state, &intent).unwrap().commands {
            batch.push(command, actor);
        }
        apply_batch(state, &batch);
        state.receipts().last().copied().flatten()
    }

    #[test]
    fn what_changes_something_leaves_one_entry_and_a_receipt() {
        let mut state = State::new();
        let tenant = crate::id::TenantId::new("t1").unwrap();
        let job = || testing::schedule("r1", testing::job_spec("t1", Gpus::Whole(1)));
        let stop = || Intent::Stop {
            request: crate::id::RequestId::new("r1").unwrap(),
            tenant: None,
            why: crate::reason::Reason::StoppedByUser,
        };
        let steps = [
            (testing::register("n1", testing::node_spec(8)), true),
            (testing::register("n1", testing::node_spec(8)), false),
            (Intent::CreateTenant { tenant: tenant.clone() }, true),
            (Intent::CreateTenant { tenant: tenant.clone() }, false),
            (job(), true),
            (job(), false),
            (Intent::PlaceWaiting, false),
            (stop(), true),
            (Intent::RevokeToken { token: crate::state::token_key("x") }, true),
            (Intent::RevokeToken { token: crate::state::token_key("x") }, false),
        ];
        for (n, (intent, leaves)) in steps.into_iter().enumerate() {
            let before = (state.audit().seq(), state.hash());
            let receipt = by(&mut state, intent, Some(&ada()));
            assert_eq!(receipt.is_some(), leaves, "step {n}");
            assert_eq!(state.audit().seq(), before.0 + u64::from(leaves), "step {n}");
            assert!(receipt.is_none_or(|r| r.hash == state.audit().head() && r.seq == state.audit().seq()));
        }
    }

    #[test]
    fn the_trail_survives_a_restart_and_is_part_of_the_states_hash() {
        let run = |subject: &str| {
            let mut state = State::new();
            let actor = Actor { subject: subject.into(), ..ada() };
            by(&mut state, Intent::CreateTenant { tenant: crate::id::TenantId::new("t1").unwrap() }, Some(&actor));
            let rows = state.take_changes();
            (state, rows)
        };
        let ((one, rows), (other, _)) = (run("ada"), run("eve"));
        assert_ne!(one.hash(), other.hash(), "members that disagree about who did it differ");
        let again = State::from_rows(one.live_rows()).unwrap();
        assert_eq!((again.audit(), again.hash()), (one.audit(), one.hash()));
        let row = rows.iter().find(|row| row.table == crate::rows::Table::AuditEntry).unwrap();
        let entry = crate::rows::read_audit(row.value.as_ref().unwrap()).unwrap();
        assert_eq!(
            (entry.hash(), &*entry.record.actor.subject, &*entry.record.object),
            (one.audit().head(), "ada", "tenant/t1")
        );
        let bare = crate::codec::encode(&Batch::default()).len();
        println!("an entry is {} bytes of row, an empty batch {bare} bytes", row.value.as_ref().unwrap().len());
    }

    /// The last entry that was written since somebody looked.
    fn last(state: &mut State) -> Option<crate::audit::Entry> {
        let rows = state.take_changes();
        let last = rows.iter().rfind(|row| row.table == crate::rows::Table::AuditEntry)?;
        crate::rows::read_audit(last.value.as_ref().unwrap()).ok()
    }

    #[test]
    fn a_deploy_is_an_entry_once_and_says_what_the_node_found() {
        let mut state = State::new();
        by(&mut state, testing::register("n1", testing::node_spec(8)), None);
        for (request, manifest) in [("r1", Some([7; 32])), ("r2", Some([8; 32])), ("r3", None)] {
            let spec = JobSpec { manifest, ..testing::job_spec("t1", Gpus::Whole(1)) };
            by(&mut state, testing::schedule(request, spec), Some(&ada()));
        }
        let report = |state: &mut State, request: &str, kind: ReportKind| {
            state.take_changes();
            let job = state.job_of(&crate::id::RequestId::new(request).unwrap()).unwrap().clone();
            let report = Report { job: job.no, replica: 0, generation: job.replicas[0].generation, kind };
            let (node, incarnation) = (NodeName::new("n1").unwrap(), crate::id::Incarnation(1));
            by(state, Intent::Reports { node, incarnation, reports: vec![report] }, None);
            let checks = state.job_of(&job.request).map(|job| policy::standing(state, job));
            (last(state), checks.map_or(Verdict::Na, |checks| checks[6].verdict))
        };
        let ready = || ReportKind::Stage(Stage::Ready);
        let (entry, now) = report(&mut state, "r1", ready());
        let record = entry.unwrap().record;
        assert_eq!((record.action, &*record.object, record.refused), (Action::ModelDeploy, "job/t1/r1", None));
        assert_eq!((record.checks[6].verdict, now), (Verdict::Pass, Verdict::Pass));
        assert_eq!(record.refs.manifest, Some(crate::audit::Hash([7; 32])));
        assert_eq!(record.actor.node.as_ref().map(NodeName::as_str), Some("n1"));
        for again in [ReportKind::Stage(Stage::NotReady), ready()] {
            assert_eq!(report(&mut state, "r1", again).0, None, "it is deployed already");
        }
        let others = ReportKind::Ended { ok: false, why: Reason::ArtifactMismatch };
        let record = report(&mut state, "r2", others).0.unwrap().record;
        let (verdict, code) = (record.checks[6].verdict, record.checks[6].code);
        assert_eq!((verdict, code, record.refused), (Verdict::Block, record.refused, Some(Reason::ArtifactMismatch)));
        assert_eq!(report(&mut state, "r3", ready()).0, None, "what no store knows has no bytes to look at");
    }

    #[test]
    fn a_refusal_of_somebody_known_is_an_entry_and_changes_nothing_else() {
        let mut state = State::new();
        by(&mut state, testing::schedule("r1", testing::job_spec("t1", Gpus::Whole(1))), None);
        let delete = Intent::DeleteTenant { tenant: crate::id::TenantId::new("t1").unwrap() };
        let seq = state.audit().seq();
        assert!(by(&mut state, delete.clone(), None).is_none(), "nobody to name");
        let receipt = by(&mut state, delete, Some(&ada())).unwrap();
        assert_eq!((receipt.seq, state.tenants().len()), (seq + 1, 1));
        let entries = state.take_changes();
        let last = entries.iter().rfind(|row| row.table == crate::rows::Table::AuditEntry).unwrap();
        let entry = crate::rows::read_audit(last.value.as_ref().unwrap()).unwrap();
        assert_eq!(entry.record.refused, Some(crate::reason::Reason::Conflict));
    }
}
