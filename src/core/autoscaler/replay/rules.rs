//! Who may drive a replay: the product's own autoscaler, and the rules that it is
//! held against. Each is what its project documents, in its default settings but for
//! the target, which can be chosen. None knows what comes; the oracle alone does.

use super::super::Autoscaler;
use super::super::service::Service;
use super::super::signal::Signals;
use super::load::Load;
use super::world::STEP_MS;
use std::collections::VecDeque;

/// Decides how many replicas a played service shall have.
pub trait Policy {
    /// Time between decisions.
    fn period_ms(&self, service: &Service) -> u64 {
        service.tick_ms
    }

    /// Once a second: requests inside and ready replicas, for rules that average.
    fn sample(&mut self, _now_ms: u64, _inside: u64, _ready: u32) {}

    fn desired(&mut self, signals: &Signals) -> u32;
}

/// A rule by name, with its target in thousandths of a replica's slots where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Nf,
    /// As many as the busiest minute needs, always.
    Peak,
    /// As many as the mean needs, always.
    Mean,
    Fixed(u32),
    Hpa(u64),
    Kpa(u64),
    /// With the target that hindsight chooses.
    HpaTuned,
    KpaTuned,
    Oracle,
}

impl Rule {
    /// All that a comparison shows unless somebody asks for less.
    pub const USUAL: [Rule; 8] = [
        Rule::Nf,
        Rule::Hpa(USUAL_TARGET_M),
        Rule::Kpa(USUAL_TARGET_M),
        Rule::HpaTuned,
        Rule::KpaTuned,
        Rule::Peak,
        Rule::Mean,
        Rule::Oracle,
    ];

    /// `nf`, `peak`, `mean`, `oracle`, `hpa-tuned`, `kpa-tuned`, `fixed:N`, `hpa[:TARGET]` and `kpa[:TARGET]`
    /// with a target of 0.01 to 1.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, number) = text.split_once(':').map_or((text, None), |(name, number)| (name, Some(number)));
        let milli = number.map(|n| super::super::signal::Reading::parse(n).known());
        let target = match milli {
            None => Some(USUAL_TARGET_M),
            Some(milli) => milli.filter(|m| (10..=1000).contains(m)),
        };
        match (name, number) {
            ("nf", None) => Some(Rule::Nf),
            ("peak", None) => Some(Rule::Peak),
            ("mean", None) => Some(Rule::Mean),
            ("oracle", None) => Some(Rule::Oracle),
            ("hpa-tuned", None) => Some(Rule::HpaTuned),
            ("kpa-tuned", None) => Some(Rule::KpaTuned),
            ("fixed", Some(n)) => n.parse().ok().map(Rule::Fixed),
            ("hpa", _) => target.map(Rule::Hpa),
            ("kpa", _) => target.map(Rule::Kpa),
            _ => None,
        }
    }

    pub fn name(self) -> String {
        let with = |name: &str, m: u64| {
            if m == USUAL_TARGET_M { name.to_owned() } else { format!("{name}:{}.{:03}", m / 1000, m % 1000) }
        };
        match self {
            Rule::Nf => "nf".to_owned(),
            Rule::Peak => "peak".to_owned(),
            Rule::Mean => "mean".to_owned(),
            Rule::Fixed(n) => format!("fixed:{n}"),
            Rule::Hpa(m) => with("hpa", m),
            Rule::Kpa(m) => with("kpa", m),
            Rule::HpaTuned => "hpa-tuned".to_owned(),
            Rule::KpaTuned => "kpa-tuned".to_owned(),
            Rule::Oracle => "oracle".to_owned(),
        }
    }
}

/// What both rules take for their target when nobody tunes them.
pub const USUAL_TARGET_M: u64 = 700;

/// The product.
pub struct Product(pub Autoscaler);

impl Policy for Product {
    fn desired(&mut self, signals: &Signals) -> u32 {
        self.0.step(signals).desired
    }
}

/// The same number for ever.
pub struct Fixed(pub u32);

impl Policy for Fixed {
    fn desired(&mut self, _signals: &Signals) -> u32 {
        self.0
    }
}

/// Kubernetes' horizontal pod autoscaler: a ratio every 15 seconds, 10 % tolerance, at most double or four
/// more in 15 seconds, down only to the highest recommendation of the last five minutes.
pub struct Hpa {
    target_m: u64,
    slots: u64,
    inside: u64,
    ready: u32,
    recent: VecDeque<(u64, u32)>,
}

impl Hpa {
    pub fn new(service: &Service, target_m: u64) -> Self {
        Self { target_m, slots: service.slots.into(), inside: 0, ready: 0, recent: VecDeque::new() }
    }
}

impl Policy for Hpa {
    fn period_ms(&self, _service: &Service) -> u64 {
        15_000
    }

    fn sample(&mut self, _now_ms: u64, inside: u64, ready: u32) {
        (self.inside, self.ready) = (inside, ready);
    }

    fn desired(&mut self, signals: &Signals) -> u32 {
        let current = self.ready + signals.starting.whole().unwrap_or(0);
        // The metric per ready replica times the replicas is the whole; a ratio near one changes nothing.
        let usage_m = self.inside * 1000 / (u64::from(self.ready.max(1)) * self.slots);
        let steady = usage_m.abs_diff(self.target_m) * 10 <= self.target_m;
        let whole = (self.inside * 1000).div_ceil(self.target_m * self.slots);
        let mut wanted = if steady { current } else { u32::try_from(whole).unwrap_or(u32::MAX) };
        if self.ready < current && wanted < current {
            // Replicas that are not ready count as idle when going up, so nothing is taken back meanwhile.
            wanted = current;
        }
        wanted = wanted.min((2 * current).max(current + 4));
        self.recent.push_back((signals.at_ms, wanted));
        while self.recent.front().is_some_and(|(at, _)| at + 300_000 < signals.at_ms) {
            self.recent.pop_front();
        }
        if wanted >= current {
            return wanted;
        }
        self.recent.iter().map(|(_, n)| *n).max().unwrap_or(wanted).min(current)
    }
}

/// Knative's pod autoscaler: concurrency over a minute, or over six seconds when these ask for twice of
/// what is ready; then nothing goes down for a minute.
pub struct Kpa {
    target_m: u64,
    slots: u64,
    /// Requests inside, a second each.
    recent: VecDeque<u64>,
    ready: u32,
    panic_until_ms: u64,
    panic_most: u32,
}

const STABLE: usize = 60;
const PANIC: usize = 6;

impl Kpa {
    pub fn new(service: &Service, target_m: u64) -> Self {
        let slots = service.slots.into();
        Self { target_m, slots, recent: VecDeque::new(), ready: 0, panic_until_ms: 0, panic_most: 0 }
    }

    fn over(&self, samples: usize) -> u32 {
        let taken = self.recent.iter().rev().take(samples);
        let (sum, n) = taken.fold((0, 0), |(sum, n), inside| (sum + inside, n + 1));
        u32::try_from((sum * 1000).div_ceil(n.max(1) * self.target_m * self.slots)).unwrap_or(u32::MAX)
    }
}

impl Policy for Kpa {
    fn period_ms(&self, _service: &Service) -> u64 {
        2_000
    }

    fn sample(&mut self, _now_ms: u64, inside: u64, ready: u32) {
        self.ready = ready;
        self.recent.push_back(inside);
        while self.recent.len() > STABLE {
            self.recent.pop_front();
        }
    }

    fn desired(&mut self, signals: &Signals) -> u32 {
        let ready = self.ready.max(1);
        let bound = |n: u32| n.clamp(ready / 2, ready.saturating_mul(1000));
        let (stable, panic) = (bound(self.over(STABLE)), bound(self.over(PANIC)));
        if panic >= 2 * ready {
            self.panic_until_ms = signals.at_ms + STABLE as u64 * STEP_MS;
        }
        if signals.at_ms < self.panic_until_ms {
            self.panic_most = self.panic_most.max(panic);
            return self.panic_most;
        }
        self.panic_most = 0;
        stable
    }
}

/// Knows what comes until a start decided now would be ready, and has just enough for it.
pub struct Oracle {
    /// Replicas for each bin.
    needs: Vec<u32>,
    ahead_bins: usize,
}

/// The oracle averages over so long: shorter peaks are what the bound on the wait is for.
const BIN_MS: u64 = 10_000;

impl Oracle {
    pub fn new(service: &Service, load: &Load) -> Self {
        let bins = (load.length_ms / BIN_MS + 1) as usize;
        let mut work = vec![0_u64; bins];
        for request in &load.requests {
            // The work of a request lies in the time in which it is served.
            let (mut at, end) = (request.at_ms, request.at_ms + request.takes_ms);
            while at < end {
                let bin = (at / BIN_MS) as usize;
                let until = end.min((bin as u64 + 1) * BIN_MS);
                if let Some(sum) = work.get_mut(bin) {
                    *sum += until - at;
                }
                at = until;
            }
        }
        let per_replica = BIN_MS * u64::from(service.slots);
        let needs = work.iter().map(|sum| sum.div_ceil(per_replica) as u32).collect();
        Self { needs, ahead_bins: (service.cold_start_ms.div_ceil(BIN_MS) + 1) as usize }
    }
}

impl Policy for Oracle {
    fn period_ms(&self, _service: &Service) -> u64 {
        STEP_MS
    }

    fn desired(&mut self, signals: &Signals) -> u32 {
        let bin = (signals.at_ms / BIN_MS) as usize;
        let seen = self.needs.iter().skip(bin).take(self.ahead_bins + 1);
        seen.max().copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_called_by_their_names() {
        for rule in Rule::USUAL.into_iter().chain([Rule::Fixed(7), Rule::Hpa(350), Rule::Kpa(1000)]) {
            assert_eq!(Rule::parse(&rule.name()), Some(rule), "{}", rule.name());
        }
        for wrong in ["", "nf:1", "hpa:", "hpa:0", "kpa:7", "fixed", "fixed:-1", "slurm"] {
            assert_eq!(Rule::parse(wrong), None, "{wrong}");
        }
    }
}
