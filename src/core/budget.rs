//! Budgets over time: how many GPU-hours, and how much money, a tenant and those below
//! it may use in a UTC day, week or month. Here: what a limit is and when its window
//! begins and ends. What was used is `meter`'s, what may start `judge`'s, where it can be
//! paid `afford`'s, what must stop before a limit is passed `keep`'s, what is left for many `rest`'s. See ADR 37.

pub mod afford;
pub mod judge;
pub mod keep;
pub mod meter;
pub mod rest;

use serde::{Deserialize, Serialize};
use std::fmt;

pub use judge::Over;
pub use meter::{Meter, Rates};

pub const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// For so long ahead is paid what may be stopped again, when it starts.
pub const START_MS: u64 = 30 * 60_000;
/// With less than this left of what it pays, such work is stopped: the time in which a
/// leader may be missing and replicas may take to go without passing a limit.
pub const STOP_MS: u64 = 15 * 60_000;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    GpuHours,
    Money,
}

impl Kind {
    pub const ALL: [Kind; 2] = [Kind::GpuHours, Kind::Money];

    pub fn words(self) -> &'static str {
        match self {
            Kind::GpuHours => "GPU-hours",
            Kind::Money => "units of money",
        }
    }

    /// Units of the meter (rate times milliseconds) in one unit of a limit.
    fn scale(self) -> u128 {
        match self {
            // Thousandths of a GPU, in a limit and in a rate.
            Kind::GpuHours => HOUR_MS.into(),
            // Millionths of money in a limit; in a rate, thousandths of those.
            Kind::Money => 1000 * u128::from(HOUR_MS),
        }
    }

    /// A quantity of the meter in units of a limit: thousandths of a GPU-hour, millionths of money. Rounded up,
    /// so that what was used is never told as less.
    pub fn told(self, metered: u128) -> u64 {
        u64::try_from(metered.div_ceil(self.scale())).unwrap_or(u64::MAX)
    }

    /// A quantity of the meter for people.
    pub fn text(self, metered: u128) -> String {
        let told = self.told(metered);
        let (unit, digits) = match self {
            Kind::GpuHours => (1000, 3),
            Kind::Money => (1_000_000, 6),
        };
        let text = format!("{}.{:0digits$}", told / unit, told % unit);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

/// A UTC day, a week from Monday, or a month.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Window {
    Day,
    Week,
    Month,
}

impl Window {
    pub const ALL: [Window; 3] = [Window::Day, Window::Week, Window::Month];

    pub fn name(self) -> &'static str {
        match self {
            Window::Day => "day",
            Window::Week => "week",
            Window::Month => "month",
        }
    }

    /// The window of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|window| window.name() == name)
    }

    /// When the window in which `at_ms` lies began.
    pub fn start_ms(self, at_ms: u64) -> u64 {
        let day = at_ms / DAY_MS;
        let first = match self {
            Window::Day => day,
            // The epoch began on a Thursday.
            Window::Week => day.saturating_sub((day + 3) % 7),
            Window::Month => day + 1 - date(day).2,
        };
        first * DAY_MS
    }

    /// When it ends.
    pub fn end_ms(self, at_ms: u64) -> u64 {
        let start = self.start_ms(at_ms);
        match self {
            Window::Day => start + DAY_MS,
            // The first one was cut short by the epoch.
            Window::Week => self.start_ms(at_ms + 7 * DAY_MS),
            Window::Month => self.start_ms(start + 31 * DAY_MS),
        }
    }

    /// The length of the longest.
    pub fn longest_ms(self) -> u64 {
        match self {
            Window::Day => DAY_MS,
            Window::Week => 7 * DAY_MS,
            Window::Month => 31 * DAY_MS,
        }
    }
}

/// Year, month and day of month of a day since the epoch.
fn date(day: u64) -> (u64, u64, u64) {
    const CYCLE: u64 = 400 * 365 + 97;
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut rest) = (1970 + 400 * (day / CYCLE), day % CYCLE);
    while rest >= 365 + u64::from(leap(year)) {
        rest -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1)
}

/// A day's beginning in words, such as `2026-11-30 00:00 UTC`.
pub fn midnight(at_ms: u64) -> String {
    let (year, month, day) = date(at_ms / DAY_MS);
    format!("{year:04}-{month:02}-{day:02} 00:00 UTC")
}

/// Limits of one tenant, by window.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budgets {
    /// Thousandths of a GPU-hour.
    pub gpu_hours: [Option<u64>; 3],
    /// Millionths of the currency unit in which nodes state their price.
    pub money: [Option<u64>; 3],
}

impl Budgets {
    fn of(&self, kind: Kind) -> &[Option<u64>; 3] {
        match kind {
            Kind::GpuHours => &self.gpu_hours,
            Kind::Money => &self.money,
        }
    }

    /// What there is of that in each such window, as it was set.
    pub fn get(&self, kind: Kind, window: Window) -> Option<u64> {
        self.of(kind)[window as usize]
    }

    /// Sets what there is of that in each such window.
    pub fn set(&mut self, kind: Kind, window: Window, most: u64) {
        let of = match kind {
            Kind::GpuHours => &mut self.gpu_hours,
            Kind::Money => &mut self.money,
        };
        of[window as usize] = Some(most);
    }

    /// Each limit, in units of the meter.
    pub fn limits(&self) -> impl Iterator<Item = Limit> + '_ {
        let both = Kind::ALL.into_iter().flat_map(|kind| Window::ALL.map(|window| (kind, window)));
        both.filter_map(|(kind, window)| {
            let most = u128::from(self.get(kind, window)?) * kind.scale();
            Some(Limit { kind, window, most })
        })
    }

    /// None where nothing is limited.
    pub fn some(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub kind: Kind,
    pub window: Window,
    /// In units of the meter.
    pub most: u128,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} a {}", self.kind.text(self.most), self.kind.words(), self.window.name())
    }
}

#[cfg(test)]
mod tests;
