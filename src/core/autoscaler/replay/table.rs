//! One load, several rules, the same terms: the comparison that a replay is for. It
//! does not print.

use super::super::Autoscaler;
use super::super::service::{Service, Unusable};
use super::load::Load;
use super::rules::{Fixed, Hpa, Kpa, Oracle, Policy, Product, Rule};
use super::world::{Outcome, run};

/// Targets that hindsight may choose from, thousandths.
pub const TARGETS_M: [u64; 15] = [200, 300, 400, 450, 500, 550, 600, 650, 700, 750, 800, 850, 900, 950, 1000];

/// The terms of a replay.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub service: Service,
    /// Replicas at the beginning; None: a little more than the first minutes need.
    pub start: Option<u32>,
    /// Who waits longer than the bound leaves; else everybody is served in the end.
    pub impatient: bool,
}

/// What one rule made of a load.
#[derive(Clone, Debug)]
pub struct Line {
    /// As it was played, with the target that was chosen.
    pub rule: Rule,
    /// As it was asked for.
    pub asked: Rule,
    pub outcome: Outcome,
    /// Replica-hours over the oracle's, thousandths.
    pub times_oracle_m: u64,
}

impl Terms {
    /// Plays one rule that has no choice left.
    pub fn play(&self, load: &Load, rule: Rule) -> Result<Outcome, Unusable> {
        let service = &self.service.check()?;
        let mut policy: Box<dyn Policy> = match rule {
            Rule::Nf | Rule::HpaTuned | Rule::KpaTuned => Box::new(Product(Autoscaler::new(*service)?)),
            Rule::Fixed(n) => Box::new(Fixed(n)),
            Rule::Peak => Box::new(Fixed(peak(service, load, u64::MAX))),
            Rule::Mean => Box::new(Fixed(mean(service, load))),
            Rule::Hpa(target) => Box::new(Hpa::new(service, target)),
            Rule::Kpa(target) => Box::new(Kpa::new(service, target)),
            Rule::Oracle => Box::new(Oracle::new(service, load)),
        };
        let fixed = matches!(rule, Rule::Fixed(_) | Rule::Peak | Rule::Mean);
        let start = match self.start {
            _ if fixed => policy.desired(&Default::default()),
            Some(n) => n,
            None => peak(service, load, 300_000) + 1,
        };
        Ok(run(service, load, policy.as_mut(), start, self.impatient))
    }

    /// Plays all, and chooses targets in hindsight where that was asked for: the one that served most at no
    /// more than the product's cost, or the cheapest of all when none is as cheap.
    pub fn compare(&self, load: &Load, rules: &[Rule]) -> Result<Vec<Line>, Unusable> {
        let oracle = self.play(load, Rule::Oracle)?.replica_ms.max(1);
        let product = self.play(load, Rule::Nf)?;
        let mut lines = Vec::new();
        for &asked in rules {
            let (rule, outcome) = match asked {
                Rule::HpaTuned => self.tuned(load, &product, Rule::Hpa)?,
                Rule::KpaTuned => self.tuned(load, &product, Rule::Kpa)?,
                Rule::Nf => (asked, product.clone()),
                rule => (rule, self.play(load, rule)?),
            };
            let times_oracle_m = outcome.replica_ms.saturating_mul(1000) / oracle;
            lines.push(Line { rule, asked, outcome, times_oracle_m });
        }
        Ok(lines)
    }

    fn tuned(&self, load: &Load, product: &Outcome, rule: fn(u64) -> Rule) -> Result<(Rule, Outcome), Unusable> {
        let mut best: Option<(Rule, Outcome)> = None;
        for target in TARGETS_M {
            let next = (rule(target), self.play(load, rule(target))?);
            let affordable = |o: &Outcome| o.replica_ms <= product.replica_ms;
            let better = best.as_ref().is_none_or(|(_, held)| match (affordable(held), affordable(&next.1)) {
                (true, true) => next.1.in_time > held.in_time,
                (false, false) => next.1.replica_ms < held.replica_ms,
                (held, _) => !held,
            });
            if better {
                best = Some(next);
            }
        }
        Ok(best.expect("there are targets to choose from"))
    }
}

/// Whether `other` is better in both: it served more in time, and cost less.
pub fn dominates(other: &Outcome, ours: &Outcome) -> bool {
    other.in_time > ours.in_time && other.replica_ms < ours.replica_ms
}

/// Replicas that carry the mean.
pub fn mean(service: &Service, load: &Load) -> u32 {
    let work: u64 = load.requests.iter().map(|r| r.takes_ms).sum();
    u32::try_from(work.div_ceil((load.length_ms * u64::from(service.slots)).max(1))).unwrap_or(u32::MAX)
}

/// Replicas that carry the busiest minute of the first `until_ms`.
pub fn peak(service: &Service, load: &Load, until_ms: u64) -> u32 {
    let mut work = std::collections::BTreeMap::<u64, u64>::new();
    for request in load.requests.iter().take_while(|r| r.at_ms < until_ms) {
        *work.entry(request.at_ms / 60_000).or_default() += request.takes_ms;
    }
    let most = work.values().max().copied().unwrap_or(0);
    u32::try_from(most.div_ceil(60_000 * u64::from(service.slots))).unwrap_or(u32::MAX)
}
