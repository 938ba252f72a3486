//! Two sources see the load of one service. Gateways see what waits for a replica, and
//! only requests that come through them; replicas' own metrics see every request that
//! has reached one. Here both become one. It does not say how they were come by.

use crate::id::{Generation, NodeNo};
use crate::reconcile::ReplicaId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What one replica's own metrics said at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pub id: ReplicaId,
    pub generation: Generation,
    /// Requests being worked on, in thousandths.
    pub running_m: Option<u64>,
    /// Requests that wait inside the replica, in thousandths.
    pub waiting_m: Option<u64>,
    /// Requests answered, ever.
    pub answered: Option<u64>,
    /// 95th percentile of the last requests, milliseconds.
    pub p95_ms: Option<u64>,
}

/// The load of one service since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests that wait, wherever they do.
    pub waiting_m: u64,
    /// Requests that are being worked on.
    pub running_m: u64,
    /// Requests that came.
    pub arrived: u64,
    /// 0 when none was answered.
    pub p95_ms: u64,
}

impl Load {
    /// What gateways saw, and what replicas say of themselves. Requests that came through a
    /// gateway are in both, so of what is inside the replicas the larger number counts.
    pub fn with(self, replicas: Option<Load>) -> Load {
        let Some(replicas) = replicas else { return self };
        let inside = self.running_m.max(replicas.running_m.saturating_add(replicas.waiting_m));
        Load {
            waiting_m: self.waiting_m.saturating_add(replicas.waiting_m),
            running_m: inside - replicas.waiting_m.min(inside),
            arrived: self.arrived.max(replicas.arrived),
            p95_ms: self.p95_ms.max(replicas.p95_ms),
        }
    }
}

/// What the replicas of one service have told, from one look to the next.
#[derive(Clone, Debug, Default)]
pub struct Ears {
    /// How many each had answered at the last look.
    answered: BTreeMap<(ReplicaId, Generation), u64>,
}

/// What all ready replicas of a service say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// None: none of them ever told anything, so there is nothing to miss.
    pub load: Option<Load>,
    /// One that told before is silent now: what is known may be less than what is.
    pub gap: bool,
}

impl Ears {
    /// `ready`: the replicas that are Ready, and where; `told`: what came from that node lately.
    pub fn listen(&mut self, ready: &[(NodeNo, ReplicaId, Generation)], told: &BTreeMap<NodeNo, Vec<Told>>) -> Heard {
        self.answered.retain(|key, _| ready.iter().any(|(_, id, generation)| *key == (*id, *generation)));
        let mut heard = Heard::default();
        for (node, id, generation) in ready {
            let key = (*id, *generation);
            let of = |told: &&Told| (told.id, told.generation) == key;
            match told.get(node).and_then(|told| told.iter().find(of)) {
                Some(told) => self.add(heard.load.get_or_insert_default(), key, told),
                None => heard.gap |= self.answered.contains_key(&key),
            }
        }
        heard
    }

    fn add(&mut self, load: &mut Load, key: (ReplicaId, Generation), told: &Told) {
        // A counter that is seen for the first time says nothing of what came since the last look.
        let now = told.answered.unwrap_or(0);
        let before = self.answered.insert(key, now).unwrap_or(now);
        load.arrived = load.arrived.saturating_add(now.saturating_sub(before));
        load.waiting_m = load.waiting_m.saturating_add(told.waiting_m.unwrap_or(0));
        load.running_m = load.running_m.saturating_add(told.running_m.unwrap_or(0));
        load.p95_ms = load.p95_ms.max(told.p95_ms.unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::JobNo;

    const NODE: NodeNo = NodeNo(1);

    fn id(replica: u16) -> ReplicaId {
        ReplicaId { job: JobNo(1), replica }
    }

    fn told(replica: u16, running: u64, waiting: u64, answered: u64) -> Told {
        let (running_m, waiting_m) = (Some(running * 1000), Some(waiting * 1000));
        let generation = Generation(1);
        Told { id: id(replica), generation, running_m, waiting_m, answered: Some(answered), p95_ms: Some(40) }
    }

    #[test]
    fn requests_that_both_see_count_once() {
        let gateways = Load { waiting_m: 5_000, running_m: 8_000, arrived: 20, p95_ms: 300 };
        assert_eq!(gateways.with(None), gateways);
        // All of the eight came through a gateway; two of them wait inside.
        let replicas = Load { waiting_m: 2_000, running_m: 6_000, arrived: 18, p95_ms: 200 };
        let both = Load { waiting_m: 7_000, running_m: 6_000, arrived: 20, p95_ms: 300 };
        assert_eq!(gateways.with(Some(replicas)), both);
        // Ten more came past them.
        let more = Load { running_m: 16_000, arrived: 40, ..replicas };
        assert_eq!(gateways.with(Some(more)), Load { running_m: 16_000, arrived: 40, ..both });
    }

    #[test]
    fn counters_count_from_the_first_look_and_silence_is_a_gap() {
        let ready = [(NODE, id(0), Generation(1)), (NODE, id(1), Generation(1))];
        let mut ears = Ears::default();
        // Servers without metrics are no gap.
        assert_eq!(ears.listen(&ready, &BTreeMap::new()), Heard::default());
        let say = |list: Vec<Told>| BTreeMap::from([(NODE, list)]);
        let first = ears.listen(&ready, &say(vec![told(0, 1, 0, 100)]));
        assert_eq!((first.load.unwrap().arrived, first.gap), (0, false));
        let next = ears.listen(&ready, &say(vec![told(0, 1, 2, 130), told(1, 3, 0, 7)]));
        let load = Load { waiting_m: 2_000, running_m: 4_000, arrived: 30, p95_ms: 40 };
        assert_eq!(next, Heard { load: Some(load), gap: false });
        let silent = ears.listen(&ready, &say(vec![told(0, 1, 0, 131)]));
        assert_eq!((silent.load.unwrap().arrived, silent.gap), (1, true));
        // Whoever is not ready any more is not missed; another node's word is no word.
        assert!(!ears.listen(&ready[..1], &say(vec![told(0, 0, 0, 131)])).gap);
        let elsewhere = BTreeMap::from([(NodeNo(2), vec![told(0, 9, 9, 999)])]);
        assert_eq!(ears.listen(&ready[..1], &elsewhere), Heard { load: None, gap: true });
        // A server that began anew has a lower count: nothing came, rather than very much.
        assert_eq!(ears.listen(&ready[..1], &say(vec![told(0, 0, 0, 3)])).load.unwrap().arrived, 0);
    }
}
