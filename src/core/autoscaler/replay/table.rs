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
    pub impatient: bool,
}

impl Terms {
    pub fn play(&self, load: &Load, rule: Rule) -> Result<Outcome, Unusable> {
        let service = &self.service;
        let mut policy: Box<dyn Policy> = match rule {
            Rule::Nf => Box::new(Product(Autoscaler::new(*service)?)),
            Rule::Fixed(n) => Box::new(Fixed(n)),
            Rule::Hpa(target) => Box::new(Hpa::new(service, target)),
            Rule::Kpa(target) => Box::new(Kpa::new(service, target)),
            Rule::Oracle => Box::new(Oracle::new(service, load)),
        };
        let start = self.start.unwrap_or_else(|| peak(service, load, 300_000) + 1);
        Ok(run(service, load, policy.as_mut(), start, self.impatient))
    }
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
