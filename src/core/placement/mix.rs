//! The target workload: how often each shape of request is wanted. The score of the
//! `fragmentation` policy asks what a node is still good for, and good for whom is
//! answered here. It counts; it does not know nodes, scores or where counts come from.

use crate::id::DeviceType;
use crate::resources::{Gpus, Resources};
use imbl::OrdMap;
use std::sync::Arc;

/// What decides on which devices a request can run, and how much CPU goes with them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    pub gpu: Gpus,
    pub cpu_milli: u64,
    pub gpu_memory: u64,
    pub device_types: Vec<DeviceType>,
    pub mig_profile: Option<DeviceType>,
}

impl From<&Resources> for Shape {
    fn from(ask: &Resources) -> Self {
        Self {
            gpu: ask.gpu,
            cpu_milli: ask.cpu_milli,
            gpu_memory: ask.gpu_memory,
            device_types: ask.device_types.clone(),
            mig_profile: ask.mig_profile.clone(),
        }
    }
}

/// Most shapes that a score looks at.
const SCORED: usize = 256;
/// The frequent shapes that together make up this many percent of the requests are scored.
const COVERED: u64 = 95;
/// The sum of all weights. A power of two, so that products stay far from overflow.
pub const UNIT: i64 = 1 << 16;

/// How often each shape is wanted. All are counted: they are no more than the requests that there are, and of those that
/// were left out for a bound nobody could say which ones to take off again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mix {
    counts: OrdMap<Arc<Shape>, u64>,
    total: u64,
}

impl Mix {
    /// Counts `times` more requests of the shape.
    pub fn add(&mut self, ask: &Resources, times: u64) {
        let shape = Shape::from(ask);
        if let Some(count) = self.counts.get_mut(&shape) {
            *count = count.saturating_add(times);
        } else {
            self.counts.insert(Arc::new(shape), times);
        }
        self.total = self.total.saturating_add(times);
    }

    /// Counts `times` fewer.
    pub fn remove(&mut self, ask: &Resources, times: u64) {
        let shape = Shape::from(ask);
        let Some(count) = self.counts.get_mut(&shape) else { return };
        let taken = times.min(*count);
        *count -= taken;
        self.total -= taken;
        if *count == 0 {
            self.counts.remove(&shape);
        }
    }

    /// All that was counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The most frequent shapes that cover [`COVERED`] percent, each with its part of
    /// [`UNIT`]; most frequent first, equal ones in the order of shapes.
    pub fn top(&self) -> Vec<(Arc<Shape>, i64)> {
        let mut all: Vec<(&Arc<Shape>, u64)> = self.counts.iter().map(|(shape, count)| (shape, *count)).collect();
        let order = |a: &(&Arc<Shape>, u64), b: &(&Arc<Shape>, u64)| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0));
        if all.len() > SCORED {
            all.select_nth_unstable_by(SCORED, order);
            all.truncate(SCORED);
        }
        all.sort_unstable_by(order);
        let enough = u128::from(self.total) * u128::from(COVERED);
        let mut covered = 0u64;
        let mut taken = 0;
        while taken < all.len() && u128::from(covered) * 100 < enough {
            covered = covered.saturating_add(all[taken].1);
            taken += 1;
        }
        let part = |count: u64| (u128::from(count) * UNIT as u128 / u128::from(covered.max(1))) as i64;
        all[..taken].iter().map(|(shape, count)| (Arc::clone(shape), part(*count))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frequent_shapes_cover_and_the_rare_ones_are_left_out() {
        let mut mix = Mix::default();
        let ask = |cpu_milli| Resources { gpu: Gpus::Whole(1), cpu_milli, ..Resources::default() };
        mix.add(&ask(1), 90);
        mix.add(&ask(2), 6);
        mix.add(&ask(3), 4);
        let top = mix.top();
        assert_eq!(top.iter().map(|(s, _)| s.cpu_milli).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(top[0].1, 90 * UNIT / 96);
        mix.remove(&ask(1), 90);
        assert_eq!(mix.top().iter().map(|(s, _)| s.cpu_milli).collect::<Vec<_>>(), [2, 3]);
        assert!(Mix::default().top().is_empty());
    }

    #[test]
    fn of_however_many_shapes_what_is_taken_off_leaves_what_was_never_there() {
        let ask = |cpu_milli| Resources { gpu: Gpus::Whole(1), cpu_milli, ..Resources::default() };
        let (mut all, mut some) = (Mix::default(), Mix::default());
        (0..10_000).for_each(|no| all.add(&ask(no), 1 + no % 7));
        (0..9_900).for_each(|no| all.remove(&ask(no), 1 + no % 7));
        (9_900..10_000).for_each(|no| some.add(&ask(no), 1 + no % 7));
        assert_eq!(all, some);
        (10_000..20_000).for_each(|no| all.add(&ask(no), 20));
        assert_eq!(all.top().len(), SCORED);
        assert!(
            all.top().iter().zip(10_000..).all(|((shape, _), no)| shape.cpu_milli == no),
            "equal ones in their order"
        );
    }
}
