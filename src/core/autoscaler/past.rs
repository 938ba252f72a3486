//! Requests that reach replicas past the gateways: how many came, where replicas count
//! what they answer; whether there are any, where they don't. Both are told by sums and
//! means over many looks, since no two sources are ever of the same moment. It does not
//! know who told what.

use super::source::Load;

/// A look forgets so much of what replicas fell behind by: requests that left a gateway without an answer, or whose
/// replica went before it told of them. At a look every five seconds, half is forgotten in a quarter of an hour.
const FORGETS: i64 = 256;

/// Requests that reach replicas past the gateways: those that were answered beyond what left the gateways. Replicas
/// tell late and in lumps, so single looks can't be compared, but sums can: what went through a gateway is answered
/// there no later than a replica tells of it, and lifts no sum above its highest yet. All in thousandths.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// Requests inside the gateways at the last look; None: what left since is not known.
    inside: Option<i64>,
    /// Answered by replicas, less those that left the gateways.
    ahead: i64,
    highest: i64,
    /// Seen, and not counted yet.
    due: i64,
}

impl Past {
    /// How many came so since the last look.
    pub fn came(&mut self, gateways: Load, answered: u64) -> u64 {
        let milli = |n: u64| i64::try_from(n.saturating_mul(1000)).unwrap_or(i64::MAX);
        let inside = i64::try_from(gateways.waiting_m.saturating_add(gateways.running_m)).unwrap_or(i64::MAX);
        if let Some(before) = self.inside.replace(inside) {
            let left = before.saturating_add(milli(gateways.arrived.unwrap_or(0))).saturating_sub(inside);
            self.ahead = self.ahead.saturating_add(milli(answered)).saturating_sub(left);
        }
        let above = self.ahead.saturating_sub(self.highest);
        self.highest = if above > 0 { self.ahead } else { self.highest.saturating_add(above / FORGETS) };
        self.due = self.due.saturating_add(above.max(0));
        // A lump is of more than one look: half of it now.
        let now = (self.due / 2).max(1000).min(self.due) / 1000;
        self.due -= now * 1000;
        now.unsigned_abs()
    }

    /// Somebody said nothing: the sums go on from the next look.
    pub fn gap(&mut self) {
        self.inside = None;
    }
}

/// A look forgets so much of what was beyond the gateways' knowledge.
const FADES: i64 = 32;
/// Less than this is nobody, in thousandths of a request.
const NOBODY: i64 = 50;

/// Whether requests are inside replicas that the gateways don't know of, where replicas count none. Gateways and
/// replicas are never looked at in the same moment, so only means are compared; in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beyond {
    /// Inside replicas, as they say themselves.
    inside: i64,
    /// Beyond those that came through gateways.
    beyond: i64,
}

impl Beyond {
    pub fn look(&mut self, gateways: Load, replicas: Load) {
        let milli = |n: u64| i64::try_from(n).unwrap_or(i64::MAX / 4).min(i64::MAX / 4);
        let inside = milli(replicas.running_m.saturating_add(replicas.waiting_m));
        self.inside += (inside - self.inside) / FADES;
        self.beyond += (inside - milli(gateways.running_m) - self.beyond) / FADES;
    }

    /// A quarter of what is inside is more than chance.
    pub fn some(self) -> bool {
        self.beyond > NOBODY + self.inside / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_left_a_gateway_without_an_answer_hides_others_for_a_while_only() {
        let mut past = Past::default();
        let by = |arrived| Load { arrived: Some(arrived), ..Load::default() };
        // An hour in which all ten of a look are turned away by the replicas, uncounted.
        (0..720).for_each(|_| assert_eq!(past.came(by(10), 0), 0));
        let seen: u64 = (0..720).map(|_| past.came(by(0), 20)).sum();
        assert!((10_000..=14_400).contains(&seen), "{seen} of 14,400 in the next");
        // While somebody is silent nobody can say who left.
        past.gap();
        assert_eq!((past.came(by(0), 5_000), past.came(by(0), 0)), (10, 5), "what was due, and nothing else");
    }
}
