//! What takes longer to learn than a leader's term may last: how long a start takes and a
//! request, and what came at each time of the day. It travels with the decisions that are commands anyway and is
//! kept with the job, so that the next leader begins with it. It does not know who leads.

use super::Autoscaler;
use super::day::{REMEMBERED, ROLL_UP_MS};
use super::fleet::ColdStart;
use super::learn::ServiceTime;
use serde::{Deserialize, Serialize};

/// Roll-ups that one decision takes along: eight hours, some 300 bytes. What is left goes with the next one.
const NEWS: usize = 96;

/// See the module. What is kept is of one service, and no more than some 900 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    /// From a decision to a ready replica, in milliseconds; 0: none was seen.
    cold_start_ms: u32,
    /// How long a request takes, where nobody said so, in milliseconds; 0: not known.
    service_ms: u32,
    /// Number of the first roll-up since the beginning of time.
    first: u64,
    rates: Vec<Rate>,
}

/// Thousandths of a request per second to eleven bits, with the places to shift them; the largest: unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Rate(u16);

const PLACES: u32 = 11;
const UNKNOWN: Rate = Rate(u16::MAX);

impl Rate {
    fn of(rate_m: u64) -> Self {
        let shift = (64 - rate_m.leading_zeros()).saturating_sub(PLACES);
        match u16::try_from(rate_m >> shift) {
            Ok(places) if shift < 31 => Rate((shift as u16) << PLACES | places),
            _ => Rate(UNKNOWN.0 - 1),
        }
    }

    fn rate_m(self) -> Option<u64> {
        let places = u64::from(self.0) & ((1 << PLACES) - 1);
        (self != UNKNOWN).then_some(places << (self.0 >> PLACES))
    }
}

impl Learned {
    /// The first roll-up that is not in it.
    fn end(&self) -> u64 {
        self.first.saturating_add(self.rates.len() as u64)
    }

    /// Adds what was learned since. What is told of later than `now_ms` comes from a clock that was ahead: kept, it
    /// would hide whatever is learned until then.
    pub fn add(&mut self, news: &Learned, now_ms: u64) {
        if news.cold_start_ms > 0 {
            self.cold_start_ms = news.cold_start_ms;
        }
        if news.service_ms > 0 {
            self.service_ms = news.service_ms;
        }
        // No clock is there yet; what says so is a slip.
        if news.first > u64::from(u32::MAX) {
            return;
        }
        let fresh = usize::try_from(self.end().saturating_sub(news.first)).unwrap_or(usize::MAX);
        let begun = (now_ms / ROLL_UP_MS).saturating_add(1).saturating_sub(news.first);
        let begun = usize::try_from(begun).unwrap_or(usize::MAX).min(news.rates.len());
        let Some(rates) = news.rates[..begun].get(fresh..).filter(|rates| !rates.is_empty()) else { return };
        let apart = news.first.saturating_sub(self.end());
        match usize::try_from(apart) {
            Ok(apart) if apart < REMEMBERED && !self.rates.is_empty() => {
                self.rates.extend(std::iter::repeat_n(UNKNOWN, apart));
            }
            _ => (self.first, self.rates) = (self.end().max(news.first), Vec::new()),
        }
        self.rates.extend(rates);
        let old = self.rates.len().saturating_sub(REMEMBERED);
        self.rates.drain(..old);
        self.first = self.first.saturating_add(old as u64);
    }

    /// Another version takes its own time to start, and may have been given a corrected one: that counts until starts
    /// of it are seen.
    pub fn of_another_version(&mut self) {
        self.cold_start_ms = 0;
    }

    /// Starts that took so long, and nothing else.
    #[cfg(test)]
    pub(crate) fn of_starts(cold_start_ms: u32) -> Self {
        Self { cold_start_ms, ..Self::default() }
    }

    /// Most bytes that it takes in a command.
    pub fn weight(&self) -> usize {
        24 + 3 * self.rates.len()
    }
}

impl Autoscaler {
    /// What it has learned beyond what is known already.
    pub fn learned(&self, known: Option<&Learned>) -> Learned {
        let end = known.map_or(0, Learned::end);
        let cold_start_ms = match self.cold.ms() {
            ms if ms == self.service.cold_start_ms => 0,
            ms => u32::try_from(ms).unwrap_or(u32::MAX),
        };
        let service_ms = match self.time.ms() {
            ms if self.service.service_guessed => u32::try_from(ms).unwrap_or(u32::MAX),
            _ => 0,
        };
        let mut news = Learned { cold_start_ms, service_ms, first: end, rates: Vec::new() };
        for (slot, rate_m) in self.day.full().filter(|(slot, _)| *slot >= end) {
            if news.rates.is_empty() {
                news.first = slot;
            }
            let at = usize::try_from(slot - news.first).unwrap_or(usize::MAX);
            if at >= NEWS {
                break;
            }
            news.rates.resize(at, UNKNOWN);
            news.rates.push(Rate::of(rate_m));
        }
        news
    }

    /// Begins with what others have learned until now. To be called before the first look.
    pub fn recall(&mut self, learned: &Learned, now_ms: u64) {
        if learned.cold_start_ms > 0 {
            self.cold = ColdStart::new(learned.cold_start_ms.into());
        }
        if learned.service_ms > 0 && self.service.service_guessed {
            self.time = ServiceTime::new(learned.service_ms.into(), true);
            self.staffing.follow(self.time.ms());
        }
        let begun = now_ms / ROLL_UP_MS;
        let rates = (learned.first..).zip(&learned.rates).take_while(|(slot, _)| *slot <= begun);
        self.day.recall(rates.filter_map(|(slot, rate)| Some((slot, rate.rate_m()?))));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Reading, Service, Signals};
    use super::*;
    use crate::codec;
    use proptest::prelude::*;

    const SERVICE: Service = Service {
        tick_ms: 5_000,
        cold_start_ms: 90_000,
        min: 1,
        max: 40,
        slots: 8,
        wait_ms: 2_000,
        promise_ms: 0,
        service_ms: 1_000,
        service_guessed: true,
        gpus: 1,
        idle_ms: 600_000,
        settle_ms: 60_000,
        steps: super::super::Steps { up: None, down: None, within_ms: 60_000 },
    };
    const HOUR: u64 = 3_600_000;

    /// From so many to so many milliseconds, with nine o'clock as the busy hour. A start takes half a minute. What is
    /// decided takes along what was learned.
    fn live(scaler: &mut Autoscaler, kept: &mut Learned, from_ms: u64, to_ms: u64) -> u32 {
        let (mut wanted, mut since, mut ready) = (1, 0, 1);
        for at_ms in (from_ms + 5_000..=to_ms).step_by(5_000) {
            let rate = if at_ms / HOUR % 24 == 9 { 60 } else { 6 };
            ready = if at_ms >= since + 30_000 { wanted } else { ready.min(wanted) };
            let decision = scaler.step(&Signals {
                at_ms,
                ready: Reading::of(ready.into()),
                starting: Reading::of(u64::from(wanted - ready)),
                draining: Reading::of(0),
                queue: Reading::of(0),
                running: Reading::of(rate),
                arrivals: Reading::of(rate * 5),
                ..Signals::default()
            });
            if decision.desired != wanted {
                (wanted, since) = (decision.desired, at_ms);
                let news = scaler.learned(Some(kept));
                assert!(codec::body(&news, Vec::new()).len() <= news.weight() && news.weight() <= 24 + 3 * NEWS);
                kept.add(&news, u64::MAX);
                assert!(codec::body(kept, Vec::new()).len() <= 24 + 3 * REMEMBERED);
            }
        }
        wanted
    }

    #[test]
    fn the_next_leader_knows_how_long_starts_take_and_when_it_was_busy_yesterday() {
        let (mut first, mut kept) = (Autoscaler::new(SERVICE).unwrap(), Learned::default());
        live(&mut first, &mut kept, 0, 30 * HOUR);
        assert!(first.cold.ms() < 80_000, "some starts were seen: {}", first.cold.ms());
        // Three minutes before nine: nobody who begins now can know that, unless he is told.
        let nine = (24 + 9) * HOUR;
        let ask = |kept: Option<&Learned>| {
            let mut next = Autoscaler::new(SERVICE).unwrap();
            kept.iter().for_each(|kept| next.recall(kept, nine));
            let cold_ms = next.cold.ms();
            live(&mut next, &mut Learned::default(), nine - 180_000, nine - 5_000);
            (cold_ms, next.outlook().season_m.last().copied().unwrap_or(0))
        };
        let (cold_ms, ahead_m) = ask(Some(&kept));
        assert_eq!(cold_ms, u64::from(kept.cold_start_ms));
        assert!((45_000..75_000).contains(&ahead_m), "{ahead_m}");
        assert_eq!(ask(None), (90_000, 0));
    }

    #[test]
    fn a_day_without_a_decision_is_told_in_parts_and_a_gap_stays_one() {
        let of =
            |first: u64, count: usize| Learned { first, rates: vec![Rate::of(7_000); count], ..Learned::default() };
        let mut kept = Learned::default();
        kept.add(&of(1_000, 3), u64::MAX);
        kept.add(&of(1_002, 3), u64::MAX);
        assert_eq!((kept.first, kept.rates.len()), (1_000, 5), "what is told twice counts once");
        kept.add(&of(1_007, 1), u64::MAX);
        assert_eq!(
            kept.rates[4..].iter().map(|r| r.rate_m()).collect::<Vec<_>>(),
            [Some(7_000), None, None, Some(7_000)]
        );
        kept.add(&of(1_003, 2), u64::MAX);
        assert_eq!(kept.rates.len(), 8, "and what is old not at all");
        kept.add(&of(1_000 + 2 * REMEMBERED as u64, 4), u64::MAX);
        assert_eq!((kept.first, kept.rates.len()), (1_000 + 2 * REMEMBERED as u64, 4));
        let mut day = Autoscaler::new(SERVICE).unwrap();
        day.recall(&of(1_000, 200), u64::MAX);
        let mut kept = Learned::default();
        let parts: Vec<usize> = (0..4)
            .map(|_| {
                let news = day.learned(Some(&kept));
                kept.add(&news, u64::MAX);
                news.rates.len()
            })
            .collect();
        // The last one is not full yet.
        assert_eq!((parts, kept.end()), (vec![96, 96, 7, 0], 1_199));
    }

    #[test]
    fn what_a_clock_that_was_ahead_tells_of_days_to_come_is_not_kept() {
        let of =
            |first: u64, count: usize| Learned { first, rates: vec![Rate::of(7_000); count], ..Learned::default() };
        let mut kept = Learned::default();
        kept.add(&of(1_000, 2), 1_010 * ROLL_UP_MS);
        kept.add(&of(2_000, 5), 1_010 * ROLL_UP_MS);
        assert_eq!(kept.end(), 1_002);
        kept.add(&of(1_009, 5), 1_010 * ROLL_UP_MS);
        assert_eq!(kept.end(), 1_011, "of those that have begun");
        let mut next = Autoscaler::new(SERVICE).unwrap();
        next.recall(&of(1_000, 50), 1_010 * ROLL_UP_MS);
        assert_eq!(next.day.full().last(), Some((1_009, 7_000)), "the newest is not over");
    }

    proptest! {
        #[test]
        fn a_rate_is_kept_to_a_thousandth(rate_m in 0u64..(1 << 40)) {
            let kept = Rate::of(rate_m).rate_m().unwrap();
            prop_assert!(kept <= rate_m && rate_m - kept <= rate_m / 1000);
        }

        /// Whatever an entry says: bounded, and no panic.
        #[test]
        fn what_is_kept_is_bounded(news in prop::collection::vec((prop_oneof![any::<u64>(), 0u64..2_000], 0usize..400), 0..20)) {
            let mut kept = Learned::default();
            for (first, count) in news {
                kept.add(&Learned { cold_start_ms: 1, service_ms: 1, first, rates: vec![Rate(1); count] }, u64::MAX);
                prop_assert!(kept.rates.len() <= REMEMBERED);
                let mut scaler = Autoscaler::new(SERVICE).unwrap();
                scaler.recall(&kept, u64::MAX);
                scaler.learned(Some(&kept));
            }
        }
    }
}
