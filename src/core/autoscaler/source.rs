//! Two sources see the load of one service. Gateways see what waits for a replica, and
//! only requests that come through them; replicas' own metrics see every request that
//! has reached one. Here both become one. It does not say how they were come by.

use super::past::{Beyond, Past};
use super::signal::Gap;
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
    /// Part of a language model's KV cache that is in use, in thousandths.
    pub kv_m: Option<u64>,
    /// 95th percentile of the time to the first token of the last answers, milliseconds.
    pub first_token_ms: Option<u64>,
}

/// The load of one service since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests that wait, wherever they do.
    pub waiting_m: u64,
    /// Requests that are being worked on.
    pub running_m: u64,
    /// Requests that came, as far as anybody counted; None: others came that nobody knows anything of.
    pub arrived: Option<u64>,
    /// Some of those that run came where nobody counts.
    pub uncounted: bool,
    /// 0 when none was answered.
    pub p95_ms: u64,
}

impl Load {
    /// What gateways saw, and what replicas say of themselves. Requests that came through a
    /// gateway are in both, so of what is inside the replicas the larger number counts. Of what came,
    /// it has the gateways' word alone.
    fn with(self, replicas: Load) -> Load {
        let inside = self.running_m.max(replicas.running_m.saturating_add(replicas.waiting_m));
        Load {
            waiting_m: self.waiting_m.saturating_add(replicas.waiting_m),
            running_m: inside - replicas.waiting_m.min(inside),
            p95_ms: self.p95_ms.max(replicas.p95_ms),
            ..self
        }
    }
}

/// What came from one node lately.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// Since it came, in milliseconds.
    pub age_ms: u64,
    pub told: Vec<Told>,
}

/// What a monitoring system says of one service: sums over those of its replicas that it has numbers of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Series {
    pub waiting_m: Option<u64>,
    pub running_m: Option<u64>,
    pub p95_ms: Option<u64>,
    /// Replicas in the smaller of both sums.
    pub replicas: u32,
    /// Of the oldest number, in milliseconds.
    pub age_ms: Option<u64>,
}

/// What the monitoring system said at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Monitor {
    /// There is none.
    Nobody,
    /// It did not answer, or not with numbers.
    Silent,
    /// None: it knows nothing of the service.
    Said(Option<Series>),
}

/// Which numbers somebody gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Fields {
    running: bool,
    waiting: bool,
    answered: bool,
}

impl Fields {
    fn of(told: &Told) -> Self {
        let Told { running_m, waiting_m, answered, .. } = told;
        Self { running: running_m.is_some(), waiting: waiting_m.is_some(), answered: answered.is_some() }
    }

    fn and(self, other: Self) -> Self {
        Self {
            running: self.running || other.running,
            waiting: self.waiting || other.waiting,
            answered: self.answered || other.answered,
        }
    }

    /// Whether `self` gives all that is expected.
    fn covers(self, expected: Self) -> bool {
        self.and(expected) == self
    }
}

/// What one replica has told in its life.
#[derive(Clone, Copy, Debug, Default)]
struct Voice {
    fields: Fields,
    /// How many it had answered at the last look.
    answered: Option<u64>,
}

/// What the replicas of one service have told, from one look to the next.
#[derive(Clone, Debug, Default)]
pub struct Ears {
    past: Past,
    beyond: Beyond,
    voices: BTreeMap<(ReplicaId, Generation), Voice>,
    /// What the monitoring system has told of the service.
    monitor: Fields,
}

/// What all ready replicas of a service say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// None: none of them ever told anything, so there is nothing to miss.
    pub load: Option<Load>,
    /// Somebody who should have said something did not: what is known is less than what is.
    pub gap: Option<Gap>,
    /// Of the oldest number, in milliseconds.
    pub age_ms: Option<u64>,
    /// Part of the KV caches that is in use, in thousandths: the mean of those that tell.
    pub kv_m: Option<u64>,
    /// Of the replica that takes longest to its first token, milliseconds.
    pub first_token_ms: Option<u64>,
}

impl Ears {
    /// `ready`: the replicas that are Ready, and where; `told`: what came from that node lately. What one of them
    /// has told, each of them should.
    pub fn listen(&mut self, ready: &[(NodeNo, ReplicaId, Generation)], told: &BTreeMap<NodeNo, Word>) -> Heard {
        self.voices.retain(|key, _| ready.iter().any(|(_, id, generation)| *key == (*id, *generation)));
        let mut heard = Heard::default();
        let (mut said, mut caches) = (Vec::new(), Vec::new());
        for (node, id, generation) in ready {
            let key = (*id, *generation);
            let of = |told: &&Told| (told.id, told.generation) == key;
            let word = told.get(node).and_then(|word| Some((word.age_ms, word.told.iter().find(of)?)));
            said.push(word.map_or_else(Fields::default, |(_, told)| Fields::of(told)));
            if let Some((age_ms, told)) = word {
                heard.age_ms = heard.age_ms.max(Some(age_ms));
                heard.first_token_ms = heard.first_token_ms.max(told.first_token_ms);
                caches.extend(told.kv_m);
                self.add(heard.load.get_or_insert_default(), key, told);
            }
        }
        heard.kv_m = caches.iter().sum::<u64>().checked_div(caches.len() as u64);
        let expected = self.expected();
        let whole = said.iter().filter(|fields| fields.covers(expected)).count();
        if whole < ready.len() {
            heard.gap = Some(Gap::Replicas { told: count(whole), of: count(ready.len()) });
        }
        heard
    }

    /// What gateways saw and what was heard, as one; `whole`: all gateways spoke.
    ///
    /// Where no replica counts what it answers, what comes past the gateways is in no sum. What runs tells of it
    /// then; where replicas don't say that either, nothing does, and a wait inside them is all that is seen of it.
    pub fn join(&mut self, gateways: Load, heard: &Heard, whole: bool) -> Load {
        let Some(replicas) = heard.load else { return gateways };
        let whole = whole && heard.gap.is_none();
        let (load, known) = (gateways.with(replicas), self.expected().and(self.monitor));
        if known.answered {
            if !whole {
                self.past.gap();
            }
            let past = self.past.came(gateways, replicas.arrived.unwrap_or(0));
            return Load { arrived: gateways.arrived.map(|came| came.saturating_add(past)), ..load };
        }
        if whole {
            self.beyond.look(gateways, replicas);
        }
        match self.beyond.some() {
            false => load,
            true if known.running => Load { uncounted: true, ..load },
            true => Load { arrived: None, ..load },
        }
    }

    /// What each of the replicas should tell, since one of them has.
    fn expected(&self) -> Fields {
        self.voices.values().fold(Fields::default(), |all, voice| all.and(voice.fields))
    }

    fn add(&mut self, load: &mut Load, key: (ReplicaId, Generation), told: &Told) {
        let voice = self.voices.entry(key).or_default();
        voice.fields = voice.fields.and(Fields::of(told));
        // A counter that is seen for the first time, or again, says nothing of what came since the last look.
        let before = std::mem::replace(&mut voice.answered, told.answered);
        let came = told.answered.map(|now| now.saturating_sub(before.unwrap_or(now)));
        load.arrived = came.map_or(load.arrived, |came| Some(load.arrived.unwrap_or(0).saturating_add(came)));
        load.waiting_m = load.waiting_m.saturating_add(told.waiting_m.unwrap_or(0));
        load.running_m = load.running_m.saturating_add(told.running_m.unwrap_or(0));
        load.p95_ms = load.p95_ms.max(told.p95_ms.unwrap_or(0));
    }

    /// A monitoring system's word goes before that of the replicas' agents, but for arrivals, which only these
    /// count. Of a service that it never told of it may know nothing: then the agents' word is all there is.
    /// `ready`: replicas of all jobs of the service, `share` so many jobs.
    pub fn with(&mut self, heard: Heard, monitor: Monitor, ready: u32, share: u64) -> Heard {
        let series = match monitor {
            Monitor::Nobody => return heard,
            Monitor::Silent => return Heard { gap: Some(Gap::Monitor), ..heard },
            Monitor::Said(series) => series.unwrap_or_default(),
        };
        let now = Fields { running: series.running_m.is_some(), waiting: series.waiting_m.is_some(), answered: false };
        self.monitor = self.monitor.and(now);
        if self.monitor == Fields::default() && series.p95_ms.is_none() {
            return heard;
        }
        let told = if now.covers(self.monitor) { series.replicas.min(ready) } else { 0 };
        let counts = self.monitor != Fields::default();
        let gap = (counts && told < ready).then_some(Gap::Replicas { told, of: ready });
        let agents = heard.load.unwrap_or_default();
        let part = |n: Option<u64>| n.map(|n| n.div_ceil(share.max(1)));
        Heard {
            load: Some(Load {
                waiting_m: part(series.waiting_m).unwrap_or(agents.waiting_m),
                running_m: part(series.running_m).unwrap_or(agents.running_m),
                arrived: agents.arrived,
                uncounted: false,
                p95_ms: series.p95_ms.unwrap_or(0),
            }),
            gap: gap.or(heard.gap),
            age_ms: heard.age_ms.max(series.age_ms),
            ..heard
        }
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
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
        let (answered, p95_ms) = (Some(answered), Some(40));
        Told { id: id(replica), generation, running_m, waiting_m, answered, p95_ms, kv_m: None, first_token_ms: None }
    }

    #[test]
    fn requests_that_both_see_count_once() {
        let gateways = Load { waiting_m: 5_000, running_m: 8_000, arrived: Some(20), uncounted: false, p95_ms: 300 };
        // All of the eight came through a gateway; two of them wait inside.
        let replicas = Load { waiting_m: 2_000, running_m: 6_000, arrived: Some(18), p95_ms: 200, ..gateways };
        let both = Load { waiting_m: 7_000, running_m: 6_000, ..gateways };
        assert_eq!(gateways.with(replicas), both);
        // Ten more came past them.
        let more = Load { running_m: 16_000, ..replicas };
        assert_eq!(gateways.with(more), Load { running_m: 16_000, ..both });
    }

    /// Of replicas that count what they answer.
    fn counting() -> Ears {
        let mut ears = Ears::default();
        ears.listen(&[(NODE, id(0), Generation(1))], &say(vec![told(0, 0, 0, 0)]));
        ears
    }

    /// Looks at a service of which `through` requests arrive at gateways and `past` elsewhere between two looks,
    /// `inside` of the former are in the gateways, and replicas tell what they answered at every third look.
    fn arrivals(looks: u64, through: u64, past: u64, inside: impl Fn(u64) -> u64) -> u64 {
        let mut ears = counting();
        let (mut sum, mut kept) = (0, 0);
        for look in 0..looks {
            let running_m = inside(look) * 1000;
            let gateways = Load { running_m, arrived: Some(through), ..Load::default() };
            let left = if look == 0 { 0 } else { inside(look - 1) + through - inside(look) };
            kept += if look == 0 { 0 } else { left + past };
            let told = if look % 3 == 2 { std::mem::take(&mut kept) } else { 0 };
            let replicas = Load { arrived: Some(told), ..Load::default() };
            let heard = Heard { load: Some(replicas), ..Heard::default() };
            sum += ears.join(gateways, &heard, true).arrived.unwrap();
        }
        sum
    }

    #[test]
    fn what_came_through_a_gateway_counts_once_however_late_replicas_tell_of_it() {
        let right = 3_000 * 15;
        for inside in [|_: u64| 0, |look: u64| look % 7 * 2, |look: u64| if look < 1_500 { look.min(10) } else { 0 }] {
            let seen = arrivals(3_000, 15, 0, inside);
            assert!((right..=right + right / 50).contains(&seen), "{seen} of {right}");
        }
        for through in [0, 15] {
            let (right, seen) = (3_000 * (through + 30), arrivals(3_000, through, 30, |_| through));
            assert!(seen.abs_diff(right) <= right / 50, "{seen} of {right} with {through} a look by gateways");
        }
    }

    #[test]
    fn what_nobody_counted_is_not_taken_for_nothing() {
        let ready = [(NODE, id(0), Generation(1))];
        // Of replicas that don't count, and say what runs, or only what waits.
        let listen = |ears: &mut Ears, running: Option<u64>, waiting: u64, through: u64| {
            let milli = |n: u64| n * 1000;
            let word = Told { answered: None, running_m: running.map(milli), ..told(0, 0, waiting, 0) };
            let heard = ears.listen(&ready, &say(vec![word]));
            let gateways = Load { running_m: through * 1000, arrived: Some(through), ..Load::default() };
            let load = ears.join(gateways, &heard, true);
            (load.arrived, load.uncounted)
        };
        let mut ears = Ears::default();
        assert_eq!(listen(&mut ears, Some(8), 0, 0), (Some(0), true), "eight run that no gateway knows of");
        assert_eq!(listen(&mut Ears::default(), None, 3, 0), (None, false), "three wait, and who knows how many run");
        // All of them came through gateways, whatever a single look says.
        let mut ears = Ears::default();
        for look in 0..2_000_u64 {
            let (then, now) = (look * 7 % 11, (look + 1) * 7 % 11);
            assert_eq!(listen(&mut ears, Some(then), 0, now), (Some(now), false), "look {look}");
        }
        // Who is gone is forgotten.
        let mut ears = Ears::default();
        (0..200).for_each(|_| assert!(listen(&mut ears, Some(8), 2, 0).1));
        (0..200).for_each(|_| assert_eq!(listen(&mut ears, Some(0), 0, 0).0, Some(0)));
        assert_eq!(listen(&mut ears, Some(0), 0, 0), (Some(0), false));
    }

    fn say(told: Vec<Told>) -> BTreeMap<NodeNo, Word> {
        BTreeMap::from([(NODE, Word { age_ms: 300, told })])
    }

    #[test]
    fn counters_count_from_the_first_look_and_silence_is_a_gap() {
        let ready = [(NODE, id(0), Generation(1)), (NODE, id(1), Generation(1))];
        let mut ears = Ears::default();
        // Servers without metrics are no gap.
        assert_eq!(ears.listen(&ready, &BTreeMap::new()), Heard::default());
        let first = ears.listen(&ready, &say(vec![told(0, 1, 0, 100)]));
        let one = Some(Gap::Replicas { told: 1, of: 2 });
        assert_eq!((first.load.unwrap().arrived, first.gap), (Some(0), one), "what one has told, the other should");
        let next = ears.listen(&ready, &say(vec![told(0, 1, 2, 130), told(1, 3, 0, 7)]));
        let load = Load { waiting_m: 2_000, running_m: 4_000, arrived: Some(30), uncounted: false, p95_ms: 40 };
        assert_eq!(next, Heard { load: Some(load), age_ms: Some(300), ..Heard::default() });
        let silent = ears.listen(&ready, &say(vec![told(0, 1, 0, 131)]));
        assert_eq!((silent.load.unwrap().arrived, silent.gap), (Some(1), one));
        // Whoever is not ready any more is not missed; another node's word is no word.
        assert_eq!(ears.listen(&ready[..1], &say(vec![told(0, 0, 0, 131)])).gap, None);
        let elsewhere = BTreeMap::from([(NodeNo(2), Word { age_ms: 0, told: vec![told(0, 9, 9, 999)] })]);
        let none = Heard { gap: Some(Gap::Replicas { told: 0, of: 1 }), ..Heard::default() };
        assert_eq!(ears.listen(&ready[..1], &elsewhere), none);
        // A server that began anew has a lower count: nothing came, rather than very much.
        assert_eq!(ears.listen(&ready[..1], &say(vec![told(0, 0, 0, 3)])).load.unwrap().arrived, Some(0));
    }

    #[test]
    fn a_number_that_is_gone_is_not_zero() {
        let ready = [(NODE, id(0), Generation(1)), (NODE, id(1), Generation(1))];
        let both = || vec![told(0, 3, 2, 100), told(1, 3, 2, 100)];
        let lacks = [
            |told: &mut Told| told.running_m = None,
            |told: &mut Told| told.waiting_m = None,
            |told: &mut Told| told.answered = None,
        ];
        for lack in lacks {
            let mut ears = Ears::default();
            assert_eq!(ears.listen(&ready, &say(both())).gap, None);
            let mut part = both();
            lack(&mut part[1]);
            assert_eq!(ears.listen(&ready, &say(part.clone())).gap, Some(Gap::Replicas { told: 1, of: 2 }));
            part.iter_mut().for_each(lack);
            assert_eq!(ears.listen(&ready, &say(part.clone())).gap, Some(Gap::Replicas { told: 0, of: 2 }));
            // Of servers that never give it, nobody misses it.
            assert_eq!(Ears::default().listen(&ready, &say(part)).gap, None);
        }
        // A counter that was away says nothing of what came meanwhile.
        let mut ears = Ears::default();
        for answered in [Some(100), None, Some(900)] {
            let heard = ears.listen(&ready[..1], &say(vec![Told { answered, ..told(0, 1, 0, 0) }]));
            assert_eq!(heard.load.unwrap().arrived, answered.map(|_| 0));
        }
    }

    #[test]
    fn caches_are_averaged_over_those_that_tell_and_the_slowest_first_token_counts() {
        let ready = [(NODE, id(0), Generation(1)), (NODE, id(1), Generation(1)), (NODE, id(2), Generation(1))];
        let of = |replica, kv_m, first_token_ms| Told { kv_m, first_token_ms, ..told(replica, 1, 0, 9) };
        let said = say(vec![of(0, Some(900), Some(80)), of(1, Some(500), None), of(2, None, Some(700))]);
        let mut ears = Ears::default();
        let heard = ears.listen(&ready, &said);
        assert_eq!((heard.kv_m, heard.first_token_ms, heard.gap), (Some(700), Some(700), None));
        // A monitoring system says nothing of them, and takes nothing away.
        let both = ears.with(
            heard,
            Monitor::Said(Some(Series { running_m: Some(1), replicas: 3, ..Series::default() })),
            3,
            1,
        );
        assert_eq!((both.kv_m, both.first_token_ms), (heard.kv_m, heard.first_token_ms));
        assert_eq!(ears.listen(&ready, &BTreeMap::new()).kv_m, None);
    }

    #[test]
    fn a_monitoring_system_that_knows_a_part_has_a_gap() {
        let whole =
            Series { waiting_m: Some(4_000), running_m: Some(6_000), replicas: 5, age_ms: Some(9), p95_ms: None };
        let of = |told| Some(Gap::Replicas { told, of: 5 });
        let hear = |ears: &mut Ears, monitor| ears.with(Heard::default(), monitor, 5, 2);
        let mut ears = Ears::default();
        assert_eq!(hear(&mut ears, Monitor::Nobody), Heard::default());
        assert_eq!(hear(&mut ears, Monitor::Said(None)), Heard::default(), "it never told of the service");
        assert_eq!(hear(&mut ears, Monitor::Silent).gap, Some(Gap::Monitor));
        let load = Load { waiting_m: 2_000, running_m: 3_000, ..Load::default() };
        let heard = hear(&mut ears, Monitor::Said(Some(whole)));
        assert_eq!(heard, Heard { load: Some(load), age_ms: Some(9), ..Heard::default() });
        let part = Series { replicas: 2, ..whole };
        assert_eq!(hear(&mut ears, Monitor::Said(Some(part))).gap, of(2));
        for gone in [Series { running_m: None, ..whole }, Series { waiting_m: None, ..whole }] {
            assert_eq!(hear(&mut ears, Monitor::Said(Some(gone))).gap, of(0));
        }
        assert_eq!(hear(&mut ears, Monitor::Said(None)).gap, of(0), "it has told of it before");
        // What one that has none of a number lacks, agents may know.
        let agents =
            Heard { load: Some(Load { waiting_m: 7_000, arrived: Some(3), ..Load::default() }), ..Heard::default() };
        let half = Series { waiting_m: None, ..whole };
        let heard = Ears::default().with(agents, Monitor::Said(Some(half)), 5, 1);
        let both = Load { waiting_m: 7_000, running_m: 6_000, arrived: Some(3), ..Load::default() };
        assert_eq!(heard.load, Some(both));
        assert_eq!(heard.gap, None);
    }
}
