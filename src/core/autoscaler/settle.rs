//! From what is wanted to what is said: limits, doubts, and the pace of change. In two
//! steps, so that whoever has too little for all services can hear every wish before
//! the first one is granted. It does not know where a wish comes from.

use super::Autoscaler;
use super::decision::{Decision, Inputs};
use super::service::Service;
use super::why::Why;
use serde::{Deserialize, Serialize};

/// What a service may have at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Replicas that the tenant's quota has room for; None is no limit.
    pub quota: Option<u32>,
    /// Replicas that the budget has room for.
    pub budget: Option<u32>,
}

impl Limits {
    fn most(self) -> u32 {
        self.quota.unwrap_or(u32::MAX).min(self.budget.unwrap_or(u32::MAX))
    }
}

/// What one look came to, before limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    at_ms: u64,
    before: u32,
    /// Within the service's own bounds, and not fewer where nothing may go down.
    wanted: u32,
    /// What the load wants, whatever the bounds are.
    unbound: u32,
    why: Why,
    inputs: Inputs,
    kind: Kind,
}

/// What a look was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It was no news: nothing changes, whatever the limits are.
    NoNews,
    /// Nothing may go down on it.
    Doubtful,
    Sure,
}

impl Wish {
    pub(super) fn no_news(before: u32, why: Why, inputs: Inputs) -> Self {
        Self { at_ms: inputs.at_ms, before, wanted: before, unbound: before, why, inputs, kind: Kind::NoNews }
    }

    /// Replicas that the service would have if there were enough for everybody.
    pub fn wanted(&self) -> u32 {
        self.wanted
    }

    /// Replicas that it should have until now.
    pub fn before(&self) -> u32 {
        self.before
    }

    /// Whether it could do with fewer, for all that is known.
    pub fn may_fall(&self) -> bool {
        self.kind == Kind::Sure
    }
}

impl Autoscaler {
    /// What a look wants, where nothing goes down on a doubt or too early.
    pub(super) fn wishes(&mut self, now: u64, doubt: Option<Why>, unbound: u32, why: Why, mut inputs: Inputs) -> Wish {
        let Service { min, max, steps, .. } = self.service;
        let before = self.desired.unwrap_or_else(|| self.fleet.total().clamp(min, max));
        let settling = self.settles(now);
        let bound = unbound.clamp(min, max);
        let (wanted, why) = if bound > before {
            let why = match why {
                _ if before == 0 => Why::WakeFromZero,
                Why::QueueDepth if bound >= before.saturating_mul(2) && before > 1 => Why::Panic,
                other => other,
            };
            (bound, why)
        } else if bound < before {
            // What its own bounds don't allow any more goes in any case.
            match doubt {
                _ if before > max && (doubt.is_some() || settling) => (max, Why::QuotaLimit),
                Some(doubt) => (before, doubt),
                None if settling => (before, Why::Stabilizing),
                None => (bound, Why::Idle),
            }
        } else {
            (before, doubt.unwrap_or(Why::Stabilizing))
        };
        // Its own bounds don't wait for a step.
        let allowed = self.strides.allow(steps, now, before, wanted).clamp(min, max);
        inputs.paced = allowed != wanted;
        let why = if inputs.paced && allowed == before { Why::Stabilizing } else { why };
        let wanted = allowed;
        let kind = if doubt.is_some() || settling { Kind::Doubtful } else { Kind::Sure };
        Wish { at_ms: now, before, wanted, unbound, why, inputs, kind }
    }

    /// What quota and budget leave, from now on.
    pub fn limit(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The wish, within the limits that were said last: its least is kept whatever they are.
    pub fn decide(&mut self, wish: Wish) -> Decision {
        let Wish { at_ms, before, wanted, unbound, mut why, inputs, kind } = wish;
        if kind == Kind::NoNews {
            return Decision { desired: before, before, why, inputs };
        }
        let Service { min, max, .. } = self.service;
        let most = self.limits.most().max(min);
        let desired = wanted.min(most);
        // What can't be held goes, and no more on a word that is doubted.
        if desired < wanted || (unbound > desired && desired >= max.min(most)) {
            let budget = self.limits.budget.is_some_and(|b| b <= self.limits.quota.unwrap_or(u32::MAX).min(max));
            why = if budget { Why::BudgetLimit } else { Why::QuotaLimit };
        }
        self.carry_out(at_ms, before, desired);
        Decision { desired, before, why, inputs }
    }

    /// What was decided is expected to happen.
    fn carry_out(&mut self, now: u64, before: u32, desired: u32) {
        if desired > before {
            self.cold.asked(now, desired - before);
        } else {
            let on_the_way = self.fleet.starting();
            self.cold.given_up((before - desired).min(on_the_way));
        }
        self.fleet.resize(desired, now + self.cold.ms());
        self.desired = Some(desired);
    }
}
