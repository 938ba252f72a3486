//! apply: the only code that changes the state, reading nothing but its
//! arguments. Each handler checks everything first and changes then; after the
//! first change there is no early return. It does not plan.

mod claim;
mod cluster;
mod job;
mod moving;
mod node;
mod record;
mod rollout;
mod scale;
mod tenant;
mod token;
mod trust;

pub use cluster::level_of_all;
pub use job::MINTED_MS;
pub(crate) use job::backoff_ms;
pub use record::NOBODY;

use crate::command::{Answer, Batch, Command};
use crate::reason::Refusal;
use crate::state::State;

/// The feature levels that this build can run.
pub const LEVELS: std::ops::RangeInclusive<u32> = 1..=1;

/// What an entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchOutcome {
    /// Planned on another state: nothing changed, plan again.
    Superseded { base: u64 },
    /// One answer per command.
    Applied(Vec<Result<Answer, Refusal>>),
}

/// The end of log time. A clock that says more is broken; sums with it must not overflow.
pub const END_OF_TIME_MS: u64 = 1 << 53;

/// Forgotten requests per entry, so that one entry after a long pause stays short.
const FORGET: usize = 256;

/// Applies one log entry.
pub fn apply_batch(state: &mut State, batch: &Batch) -> BatchOutcome {
    if batch.base != state.meta().base {
        return BatchOutcome::Superseded { base: state.meta().base };
    }
    state.change_meta(|meta| {
        meta.base += 1;
        // Log time never goes back, whatever a new leader's clock says.
        meta.now_ms = meta.now_ms.max(batch.at_ms.min(END_OF_TIME_MS));
    });
    state.ledger.version = state.meta.base;
    forget(state);
    state.sum_claims();
    let mut receipts = Vec::with_capacity(batch.commands.len());
    let one = |(place, command): (usize, &Command)| {
        let about = record::about(state, command);
        let answer = apply(state, command);
        receipts.push(about.and_then(|about| record::keep(state, about, batch.actor(place), &answer)));
        answer
    };
    let answers = batch.commands.iter().enumerate().map(one).collect();
    state.receipts = receipts.into();
    BatchOutcome::Applied(answers)
}

/// Applies one command.
pub(crate) fn apply(state: &mut State, command: &Command) -> Result<Answer, Refusal> {
    let answer = apply_alone(state, command)?;
    state.sum_claims();
    if !state.claims.is_empty() {
        claim::settle(state);
    }
    Ok(answer)
}

fn apply_alone(state: &mut State, command: &Command) -> Result<Answer, Refusal> {
    match command {
        Command::Init { cluster, mode, default_gpu_milli } => cluster::init(state, cluster, *mode, *default_gpu_milli),
        Command::Member(member) => cluster::member(state, member),
        Command::RaiseLevel { to, members } => cluster::raise_level(state, *to, members),
        Command::Register { name, kind, incarnation, spec } => node::register(state, name, *kind, *incarnation, spec),
        Command::SetNodeState { node, incarnation, to } => node::set_state(state, *node, *incarnation, *to),
        Command::SetCordon { node, cordon } => node::set_cordon(state, *node, cordon.as_ref()),
        Command::CreateTenant { tenant } => tenant::create(state, tenant),
        Command::DeleteTenant { tenant } => tenant::delete(state, tenant),
        Command::SetQuota { tenant, quota } => tenant::set_quota(state, tenant, quota),
        Command::Submit { submission, placements, claim } => {
            job::submit(state, submission, placements, claim.as_deref())
        }
        Command::Preempt { job, claim } => claim::preempt(state, *job, claim),
        Command::Place { job, placements } => job::place(state, *job, placements),
        Command::Stop { job, why } => job::stop(state, *job, *why),
        Command::Scale { job, target } => scale::scale(state, *job, target),
        Command::Move { job, from, to, why } => moving::replace(state, *job, *from, to, *why),
        Command::Evict { job, replica, from, why } => moving::evict(state, *job, *replica, *from, *why),
        Command::Faults { node, faults } => node::faults(state, *node, faults),
        Command::Heal { node, uuid, by } => node::heal(state, *node, uuid, by.as_ref()),
        Command::SetDrain { node, to } => node::set_drain(state, *node, *to),
        Command::SetPlacement(chosen) => cluster::set_placement(state, *chosen),
        Command::Reports { node, incarnation, reports } => job::reports(state, *node, *incarnation, reports),
        Command::RevokeToken { token } => token::revoke(state, *token),
        Command::Note(_) => Ok(Answer::Done),
        Command::Approve(approval) => crate::approval::put(state, approval),
        Command::Disapprove(of) => trust::disapprove(state, of),
        Command::Consent(consent) => crate::consent::put(state, consent),
        Command::Dissent { tenant, statement } => trust::dissent(state, tenant, statement),
        Command::Purged { node, incarnation, copies } => trust::purged(state, *node, *incarnation, copies),
        Command::Tick => Ok(Answer::Done),
        Command::StartRollout { job, next, strategy, rollback, by } => {
            rollout::start(state, *job, next, strategy, *rollback, by.clone())
        }
        Command::TurnRollout { job, revision, turn } => rollout::turn(state, *job, *revision, turn),
        Command::Renew { job, replica, from, revision, to } => {
            rollout::renew(state, *job, *replica, *from, *revision, to.as_ref())
        }
        Command::CountUsage { tenants } => tenant::count_usage(state, tenants),
        Command::AddJoinToken(token) => crate::join::add(state, token),
        Command::SpendJoinToken(shown) => crate::join::spend(state, shown),
        Command::DropJoinToken { id } => crate::join::drop(state, *id),
        Command::KeyTrail(key) => Ok(token::key_trail(state, *key)),
        Command::Release(asked) => crate::quarantine::release(state, asked),
    }
}

/// Forgets requests whose time is over.
fn forget(state: &mut State) {
    let now = state.meta().now_ms;
    let due: Vec<_> =
        state.expiries.iter().take(FORGET).take_while(|(at, _)| *at <= now).map(|(_, key)| *key).collect();
    for key in due {
        state.remove_request(key);
    }
    token::forget(state, FORGET);
    crate::approval::forget(state, FORGET);
    crate::join::forget(state, FORGET);
    trust::lapse(state, FORGET);
}
