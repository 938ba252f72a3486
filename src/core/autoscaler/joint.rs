//! Many services, too few GPUs: who gets how many replicas. Floors come first, then
//! whoever lives on its own, then the heavier priorities, then whoever has the smallest
//! share of what it wants; never more than the GPUs there are, and never more than the
//! budget has left when the floors' cost to the end of the window is put aside. It does
//! not know why a service wants what it wants.

use super::why::Why;

/// What one service wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Which service; the tie-break of every choice.
    pub service: u64,
    pub wanted: u32,
    /// Replicas that are kept whatever happens.
    pub floor: u32,
    /// GPUs of one replica, in thousandths.
    pub gpu_milli: u64,
    /// A higher class is served first; within a class, by weight.
    pub priority: i32,
    /// Share within a class; at least 1.
    pub weight: u32,
}

/// What replicas are taken from, one by one. A wish is told by its place in the list of all.
pub trait Source {
    /// One more of its least, beside those that it has. What was spent already keeps no floor from running.
    ///
    /// # Errors
    /// What there is too little of.
    fn least(&mut self, wish: usize, granted: u32) -> Result<(), Why>;
    /// One more than that.
    ///
    /// # Errors
    /// What there is too little of.
    fn more(&mut self, wish: usize, granted: u32) -> Result<(), Why>;
    /// How far that one would live on what is others': who does so less goes first, whatever the priorities.
    fn borrowed(&self, _wish: usize) -> u64 {
        0
    }
}

/// What there is, where all draw from the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Means {
    /// GPUs in thousandths.
    pub gpu_milli: u64,
    /// GPU-time left in the budget's window, in thousandths of a GPU times milliseconds; None is no limit.
    pub budget_left: Option<u128>,
    /// To the end of the window.
    pub window_left_ms: u64,
    /// Until the next joint decision: nothing is granted that the budget can't pay for so long.
    pub step_ms: u64,
}

/// What one service gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub service: u64,
    pub replicas: u32,
    /// Why it is less than was wanted.
    pub cut: Option<Why>,
}

/// [`Means`], less what was granted.
struct Pool<'a> {
    wishes: &'a [Wish],
    free: u64,
    /// None is no limit.
    spare: Option<u128>,
    window_ms: u128,
    step_ms: u128,
}

impl Pool<'_> {
    fn take(&mut self, wish: usize, time_ms: u128, pays_always: bool) -> Result<(), Why> {
        let gpu_milli = self.wishes[wish].gpu_milli;
        let cost = u128::from(gpu_milli) * time_ms;
        if gpu_milli > self.free {
            return Err(Why::QuotaLimit);
        }
        if !pays_always && self.spare.is_some_and(|spare| cost > spare) {
            return Err(Why::BudgetLimit);
        }
        self.free -= gpu_milli;
        self.spare = self.spare.map(|spare| spare.saturating_sub(cost));
        Ok(())
    }
}

impl Source for Pool<'_> {
    /// What floors will cost to the end is not for anybody else.
    fn least(&mut self, wish: usize, _: u32) -> Result<(), Why> {
        self.take(wish, self.window_ms, true)
    }

    /// What is left pays for one step of the rest.
    fn more(&mut self, wish: usize, _: u32) -> Result<(), Why> {
        self.take(wish, self.step_ms, false)
    }
}

/// Shares out. Floors are granted even when the budget is spent, but never beyond the GPUs; grants are in the
/// order of the wishes.
pub fn share(wishes: &[Wish], means: &Means) -> Vec<Grant> {
    let pool = Pool {
        wishes,
        free: means.gpu_milli,
        spare: means.budget_left,
        window_ms: means.window_left_ms.into(),
        step_ms: means.step_ms.min(means.window_left_ms).max(1).into(),
    };
    share_from(wishes, pool)
}

/// The same, from whatever there is.
pub fn share_from(wishes: &[Wish], mut source: impl Source) -> Vec<Grant> {
    let mut grants: Vec<Grant> = wishes.iter().map(|w| Grant { service: w.service, replicas: 0, cut: None }).collect();
    while let Some(i) = next(wishes, &grants, &source, |wish| wish.floor) {
        match source.least(i, grants[i].replicas) {
            Ok(()) => grants[i].replicas += 1,
            cut => grants[i].cut = cut.err(),
        }
    }
    while let Some(i) = next(wishes, &grants, &source, |wish| wish.wanted) {
        match source.more(i, grants[i].replicas) {
            Ok(()) => grants[i].replicas += 1,
            cut => grants[i].cut = cut.err(),
        }
    }
    grants
}

/// Whose turn it is: who borrows least, there the highest class, there the smallest share of its weight, then the
/// lowest number.
fn next(wishes: &[Wish], grants: &[Grant], source: &impl Source, most: fn(&Wish) -> u32) -> Option<usize> {
    let open = |i: &usize| grants[*i].cut.is_none() && grants[*i].replicas < most(&wishes[*i]);
    (0..wishes.len()).filter(open).min_by_key(|&i| {
        let wish = &wishes[i];
        let extra = u64::from(grants[i].replicas - grants[i].replicas.min(wish.floor)) * wish.gpu_milli.max(1);
        let share = extra * 1000 / u64::from(wish.weight.max(1));
        (source.borrowed(i), std::cmp::Reverse(wish.priority), share, wish.service)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Rng;

    const HOUR: u64 = 3_600_000;

    fn wish(service: u64, wanted: u32, floor: u32) -> Wish {
        Wish { service, wanted, floor, gpu_milli: 1000, priority: 0, weight: 1 }
    }

    fn means(gpus: u64) -> Means {
        Means { gpu_milli: gpus * 1000, budget_left: None, window_left_ms: 24 * HOUR, step_ms: 5_000 }
    }

    fn replicas(grants: &[Grant]) -> Vec<u32> {
        grants.iter().map(|g| g.replicas).collect()
    }

    #[test]
    fn what_fits_is_granted_and_what_does_not_is_shared() {
        assert_eq!(replicas(&share(&[wish(1, 3, 1), wish(2, 2, 0)], &means(8))), [3, 2]);
        assert_eq!(replicas(&share(&[wish(1, 9, 1), wish(2, 9, 1)], &means(8))), [4, 4]);
        let heavy = Wish { weight: 3, ..wish(2, 9, 0) };
        assert_eq!(replicas(&share(&[wish(1, 9, 0), heavy], &means(8))), [2, 6]);
        let first = Wish { priority: 1, ..wish(2, 9, 0) };
        let grants = share(&[wish(1, 9, 1), first], &means(8));
        assert_eq!((replicas(&grants), grants[0].cut), (vec![1, 7], Some(Why::QuotaLimit)));
    }

    #[test]
    fn fifty_services_spike_together_on_forty_gpus_with_a_daily_budget() {
        let mut rng = Rng::new(7);
        // Each has a floor of half a GPU; the budget is 30 GPUs for a day, and the floors take 25 of these.
        let mut left = 30_000 * u128::from(24 * HOUR);
        let (step_ms, mut now, mut limited) = (60_000, 0, 0);
        while now < 24 * HOUR {
            let wishes: Vec<Wish> = (0..50)
                .map(|service| {
                    let spike = (4 * HOUR..12 * HOUR).contains(&now);
                    let wanted = if spike { rng.between(4, 12) } else { rng.between(1, 2) } as u32;
                    let priority = (service % 3) as i32;
                    Wish { service, wanted, floor: 1, gpu_milli: 500, priority, weight: 1 + (service % 4) as u32 }
                })
                .collect();
            let means = Means { gpu_milli: 40_000, budget_left: Some(left), window_left_ms: 24 * HOUR - now, step_ms };
            let grants = share(&wishes, &means);
            assert_eq!(grants, share(&wishes, &means), "the same again");
            let held: u64 = wishes.iter().zip(&grants).map(|(w, g)| u64::from(g.replicas) * w.gpu_milli).sum();
            assert!(held <= 40_000, "{held} at {now}");
            assert!(grants.iter().all(|g| g.replicas >= 1), "a floor was given up at {now}");
            limited += grants.iter().filter(|g| g.cut == Some(Why::BudgetLimit)).count();
            left = left.checked_sub(u128::from(held) * u128::from(step_ms)).expect("the budget holds");
            now += step_ms;
        }
        assert!(limited > 0, "the budget was never felt");
    }

    #[test]
    fn floors_run_on_when_the_budget_is_spent() {
        let spent = Means { budget_left: Some(0), ..means(8) };
        let grants = share(&[wish(1, 5, 2), wish(2, 1, 1)], &spent);
        assert_eq!((replicas(&grants), grants[0].cut), (vec![2, 1], Some(Why::BudgetLimit)));
    }
}
