//! Plays lists of requests against placement policies: how much GPU is allocated when
//! so much has arrived, and how long a decision takes. It decides nothing and prints nothing.

use super::workload;
use nf_core::placement::Policy;
use nf_core::placement::trial::{Trial, TrialNode};
use nf_core::resources::Resources;
use serde_json::{Value, json};
use std::time::Instant;

/// What to play.
pub struct Plan {
    pub nodes: Vec<TrialNode>,
    pub requests: Vec<Resources>,
    pub seeds: Vec<u64>,
    /// GPUs asked for in all, as a multiple of the capacity.
    pub ratio: f64,
    /// The mix is not told but learnt from arrivals.
    pub learn: bool,
}

/// A figure is the mean over events within this part of the capacity around its point.
const AROUND: f64 = 0.005;

/// Sum and count of what was seen at one percent of arrivals.
type Sample = (f64, u32);

/// What one policy did, over all seeds.
pub struct Outcome {
    pub policy: Policy,
    /// Percent of capacity allocated, by percent of capacity arrived.
    pub curve: Vec<(f64, f64)>,
    pub full: Option<f64>,
    pub end: Option<f64>,
    refused: u64,
    decisions: u64,
    /// Nanoseconds, ascending.
    times: Vec<u64>,
}

impl Plan {
    pub fn capacity(&self) -> u64 {
        self.nodes.iter().map(|node| u64::from(node.gpus) * 1000).sum()
    }

    /// Plays one policy; `done` is called after each seed.
    pub fn run(&self, policy: Policy, mut done: impl FnMut()) -> Outcome {
        let capacity = self.capacity() as f64;
        let mut curve: Vec<Sample> = vec![(0.0, 0); (self.ratio * 100.0).ceil() as usize + 2];
        let (mut full, mut end): (Sample, Sample) = ((0.0, 0), (0.0, 0));
        let mut out =
            Outcome { policy, curve: Vec::new(), full: None, end: None, refused: 0, decisions: 0, times: Vec::new() };
        for seed in &self.seeds {
            let mut trial = Trial::new(&self.nodes, policy);
            if !self.learn {
                self.requests.iter().for_each(|ask| trial.expect(ask, 1));
            }
            trial.refresh();
            let (mut arrived, mut allocated) = (0u64, 0u64);
            for i in workload::arrivals(&self.requests, (capacity * self.ratio) as u64, *seed) {
                let ask = &self.requests[i as usize];
                let started = Instant::now();
                let placed = trial.place(ask).is_some();
                out.times.push(started.elapsed().as_nanos() as u64);
                out.refused += u64::from(!placed);
                arrived += ask.gpu.milli();
                allocated += if placed { ask.gpu.milli() } else { 0 };
                let (x, y) = (arrived as f64 / capacity, allocated as f64 * 100.0 / capacity);
                let add = |sample: &mut Sample| *sample = (sample.0 + y, sample.1 + 1);
                if let Some(at) = curve.get_mut((x * 100.0) as usize) {
                    add(at);
                }
                if (x - 1.0).abs() <= AROUND {
                    add(&mut full);
                }
                if (x - self.ratio).abs() <= AROUND {
                    add(&mut end);
                }
            }
            done();
        }
        let mean = |(sum, count): Sample| (count > 0).then(|| sum / f64::from(count));
        out.curve = curve.iter().enumerate().filter_map(|(at, sample)| Some((at as f64, mean(*sample)?))).collect();
        (out.full, out.end) = (mean(full), mean(end));
        out.decisions = out.times.len() as u64;
        out.times.sort_unstable();
        out
    }
}

impl Outcome {
    /// For tables and programs.
    pub fn value(&self) -> Value {
        let part = |percent: usize| self.times.get(self.times.len() * percent / 100).copied().unwrap_or(0) as f64 / 1e3;
        let spent = self.times.iter().sum::<u64>() as f64 / 1e9;
        let round = |value: f64| (value * 100.0).round() / 100.0;
        json!({
            "policy": self.policy.name(),
            "allocated_at_100": self.full.map(round),
            "allocated_at_end": self.end.map(round),
            "decisions": self.decisions,
            "refused": self.refused,
            "decisions_per_second": if spent > 0.0 { (self.decisions as f64 / spent).round() } else { 0.0 },
            "p50_us": round(part(50)),
            "p99_us": round(part(99)),
        })
    }
}
