//! Arrivals: made from a seed in the shapes that loads have, or read from a file.
//! It does not know who serves them.

use super::super::signal::Reading;
use super::when::When;
use crate::sim::Rng;

/// A request: when it comes and how long it takes once it is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub at_ms: u64,
    pub takes_ms: u64,
}

/// Requests in the order in which they come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub requests: Vec<Request>,
    pub length_ms: u64,
}

/// Shapes that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The same rate for hours.
    Steady,
    /// A day with its night.
    Diurnal,
    /// Up over an hour, a plateau, down over an hour.
    Ramp,
    /// Ten times the usual for three minutes, at a fixed rhythm with a little play.
    Bursts,
    /// The same at any time.
    RandomBursts,
    /// All or nothing, a quarter of an hour each, with a little play.
    OnOff,
    /// All or nothing, as long as chance wants.
    RandomOnOff,
    /// People who write, read, think, and write again; more of them by day.
    Conversation,
}

impl Shape {
    pub const ALL: [Shape; 8] = [
        Shape::Steady,
        Shape::Diurnal,
        Shape::Ramp,
        Shape::Bursts,
        Shape::RandomBursts,
        Shape::OnOff,
        Shape::RandomOnOff,
        Shape::Conversation,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Shape::Steady => "steady",
            Shape::Diurnal => "diurnal",
            Shape::Ramp => "ramp",
            Shape::Bursts => "bursts",
            Shape::RandomBursts => "random-bursts",
            Shape::OnOff => "on-off",
            Shape::RandomOnOff => "random-on-off",
            Shape::Conversation => "conversation",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.name() == name)
    }
}

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

/// Rates, thousandths of a request per second, joined by straight lines.
type Curve = Vec<(u64, u64)>;

/// A load of `shape` whose usual peak is `peak_m` thousandths of a request per second.
pub fn make(shape: Shape, seed: u64, peak_m: u64, service_ms: u64) -> Load {
    let mut rng = Rng::new(seed ^ 0x6c6f_6164);
    let (curve, length_ms) = match shape {
        Shape::Steady => (vec![(0, peak_m)], 6 * HOUR),
        Shape::Diurnal => (diurnal(&mut rng, peak_m, 24 * HOUR), 24 * HOUR),
        Shape::Ramp => {
            let low = peak_m / 8;
            let points =
                vec![(0, low), (HOUR / 2, low), (3 * HOUR / 2, peak_m), (5 * HOUR / 2, peak_m), (7 * HOUR / 2, low)];
            (points, 4 * HOUR)
        }
        Shape::Bursts => (bursts(&mut rng, peak_m, 28 * MINUTE, 32 * MINUTE), 8 * HOUR),
        Shape::RandomBursts => (bursts(&mut rng, peak_m, 5 * MINUTE, 55 * MINUTE), 8 * HOUR),
        Shape::OnOff => (on_off(&mut rng, peak_m, 14 * MINUTE, 16 * MINUTE), 8 * HOUR),
        Shape::RandomOnOff => (on_off(&mut rng, peak_m, 3 * MINUTE, 30 * MINUTE), 8 * HOUR),
        Shape::Conversation => return conversation(&mut rng, peak_m, service_ms),
    };
    let times = poisson(&mut rng, &curve, length_ms);
    Load { requests: with_work(&mut rng, times, service_ms), length_ms }
}

/// A bell for the day and a smaller one for the evening, on a floor.
fn diurnal(rng: &mut Rng, peak_m: u64, length: u64) -> Curve {
    let shift = rng.below(length);
    let play = rng.between(80, 120);
    (0..=96)
        .map(|i| {
            let at = length * i / 96;
            let day = (at + shift) % length;
            // x(1−x) is a bell that needs no sine.
            let bell = |from: u64, to: u64| {
                let x = day.saturating_sub(length * from / 24).min(length * (to - from) / 24);
                let width = length * (to - from) / 24;
                4 * x * (width - x) / (width * width / 1000)
            };
            let evening = bell(17, 24) * play / 200;
            (at, peak_m / 8 + peak_m * (bell(6, 20) * 6 / 8 + evening / 4).min(1000) / 1000)
        })
        .collect()
}

fn bursts(rng: &mut Rng, peak_m: u64, shortest: u64, longest: u64) -> Curve {
    let base = peak_m / 10;
    let mut points = vec![(0, base)];
    let mut at = rng.between(shortest, longest);
    while at < 8 * HOUR {
        points.extend([(at, base), (at + 1, peak_m), (at + 3 * MINUTE, peak_m), (at + 3 * MINUTE + 1, base)]);
        at += 3 * MINUTE + rng.between(shortest, longest);
    }
    points
}

fn on_off(rng: &mut Rng, peak_m: u64, shortest: u64, longest: u64) -> Curve {
    let mut points = Vec::new();
    let (mut at, mut rate) = (0, peak_m);
    while at < 8 * HOUR {
        let until = at + rng.between(shortest, longest);
        points.extend([(at, rate), (until - 1, rate)]);
        (at, rate) = (until, peak_m - rate);
    }
    points
}

/// Sessions begin at a slowly changing rate; each has turns with time to read and think between.
fn conversation(rng: &mut Rng, peak_m: u64, service_ms: u64) -> Load {
    let length = 6 * HOUR;
    let turns = 6;
    let curve: Curve = diurnal(rng, peak_m / turns, length);
    let mut times = Vec::new();
    for begin in poisson(rng, &curve, length) {
        let mut at = begin;
        for _ in 0..rng.between(1, 2 * turns - 1) {
            times.push(at);
            at += service_ms + exponential(rng, 30_000);
        }
    }
    times.retain(|at| *at < length);
    times.sort_unstable();
    Load { requests: with_work(rng, times, service_ms), length_ms: length }
}

/// Independent requests at the rates of a curve: candidates at its highest rate, thinned.
fn poisson(rng: &mut Rng, curve: &Curve, length_ms: u64) -> Vec<u64> {
    let highest = curve.iter().map(|p| p.1).max().unwrap_or(0).max(1);
    let (mut out, mut at_us, mut segment) = (Vec::new(), 0_u64, 0);
    loop {
        // A thousandth of a request per second is one in a billion microseconds.
        at_us += exponential(rng, 1_000_000_000_000 / highest) / 1000;
        let at = at_us / 1000;
        if at >= length_ms {
            return out;
        }
        while segment + 1 < curve.len() && curve[segment + 1].0 <= at {
            segment += 1;
        }
        if rng.below(highest) < rate_at(curve, segment, at) {
            out.push(at);
        }
    }
}

fn rate_at(curve: &Curve, segment: usize, at: u64) -> u64 {
    let (from, low) = curve[segment];
    let Some(&(to, high)) = curve.get(segment + 1) else { return low };
    let (span, part) = ((to - from).max(1), at - from);
    (low * (span - part) + high * part) / span
}

/// Half of the time is fixed, half is as chance wants; on average `service_ms`.
fn with_work(rng: &mut Rng, times: Vec<u64>, service_ms: u64) -> Vec<Request> {
    let takes = |rng: &mut Rng| (service_ms / 2 + exponential(rng, service_ms.div_ceil(2))).max(1);
    times.into_iter().map(|at_ms| Request { at_ms, takes_ms: takes(rng) }).collect()
}

/// The time to the next of independent events, on average `mean`.
pub fn exponential(rng: &mut Rng, mean: u64) -> u64 {
    let minus_ln = minus_ln_q32((rng.bits() >> 32).max(1) as u32);
    u64::try_from((u128::from(mean) * u128::from(minus_ln)) >> 32).unwrap_or(u64::MAX)
}

/// −ln(u / 2³²) in 32 bits of fraction: the logarithm to base 2 bit by bit, by squaring.
fn minus_ln_q32(u: u32) -> u64 {
    let whole = u64::from(u.leading_zeros()) + 1;
    let mut x = u64::from(u) << (u.leading_zeros());
    let mut fraction = 0_u64;
    // x is in [2³¹, 2³²), that is in [1, 2).
    for bit in (12..32).rev() {
        x = (x * x) >> 31;
        if x >> 32 != 0 {
            fraction |= 1 << bit;
            x >>= 1;
        }
    }
    let log2 = (whole << 32) - fraction;
    // ln 2 = 0.693147…
    u64::try_from((u128::from(log2) * 2_977_044_472) >> 32).unwrap_or(u64::MAX)
}

/// The longest replay, in days: between two times of one file that are further apart one is a slip of the pen.
const LONGEST_DAYS: u64 = 366;

/// A file of arrivals: a column of times (seconds, Unix time in any unit, or dates), or of times and the milliseconds
/// that a request takes; what a heading calls tokens is no time. Other columns are ignored; a first line whose first
/// column is neither number nor date is a heading.
///
/// # Errors
/// A text that names the line.
pub fn read(text: &str, seed: u64, service_ms: u64) -> Result<Load, String> {
    let mut rng = Rng::new(seed ^ 0x776f_726b);
    let (mut requests, mut timed, mut begun) = (Vec::new(), true, false);
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate().map(|(i, line)| (i + 1, line.trim()))
    {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let cells = cells(line);
        let second = cells.get(1).copied().unwrap_or_default();
        match cells.first().and_then(|cell| When::parse(cell)) {
            Some(When::At(at_ms)) => {
                let drawn = (service_ms / 2 + exponential(&mut rng, service_ms.div_ceil(2))).max(1);
                let told = Reading::parse(second).known().filter(|_| timed);
                requests.push((Request { at_ms, takes_ms: told.map_or(drawn, |m| (m / 1000).max(1)) }, number));
            }
            None if !begun => timed = !second.to_lowercase().contains("token"),
            _ => return Err(format!("line {number}: `{line}` does not begin with a time")),
        }
        begun = true;
    }
    requests.sort_by_key(|(request, _)| request.at_ms);
    let (Some(first), Some(last)) = (requests.first().copied(), requests.last().copied()) else {
        return Err("no arrivals in it".to_owned());
    };
    let length_ms = last.0.at_ms - first.0.at_ms + 1;
    let days = length_ms / (24 * HOUR);
    if days >= LONGEST_DAYS {
        let (first, last) = (first.1, last.1);
        return Err(format!(
            "lines {first} and {last} are {days} days apart, {LONGEST_DAYS} at most: is one of them wrong?"
        ));
    }
    let since = |(request, _): (Request, usize)| Request { at_ms: request.at_ms - first.0.at_ms, ..request };
    Ok(Load { requests: requests.into_iter().map(since).collect(), length_ms })
}

/// The columns of a line. A date may have a space in it where columns are parted by something else.
fn cells(line: &str) -> Vec<&str> {
    let by = |ends: &[char]| -> Vec<&str> {
        line.split(ends).map(|cell| cell.trim().trim_matches('"').trim()).filter(|cell| !cell.is_empty()).collect()
    };
    let parted = by(&[',', ';', '\t']);
    match parted.first().and_then(|cell| When::parse(cell)) {
        Some(_) => parted,
        None => by(&[',', ';', '\t', ' ']),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_that_of_the_book() {
        let ln = |u: u32| (minus_ln_q32(u) * 1_000_000) >> 32;
        assert!(ln(1 << 31).abs_diff(693_147) < 5, "{}", ln(1 << 31));
        assert!(ln(429_496_730).abs_diff(2_302_585) < 5, "{}", ln(429_496_730));
        assert!(ln(u32::MAX) < 5, "{}", ln(u32::MAX));
        assert!(ln(1).abs_diff(22_180_710) < 20, "{}", ln(1));
    }

    #[test]
    fn loads_have_the_rates_they_claim_and_the_same_seed_gives_the_same() {
        let load = make(Shape::Steady, 3, 20_000, 2_000);
        let expected = 20 * 6 * 3600;
        assert!(load.requests.len().abs_diff(expected) < expected / 50, "{}", load.requests.len());
        let mean = load.requests.iter().map(|r| r.takes_ms).sum::<u64>() / load.requests.len() as u64;
        assert!(mean.abs_diff(2_000) < 20, "{mean}");
        for shape in Shape::ALL {
            let load = make(shape, 5, 10_000, 2_000);
            assert!(load == make(shape, 5, 10_000, 2_000) && load != make(shape, 6, 10_000, 2_000), "{}", shape.name());
            assert!(load.requests.is_sorted_by_key(|r| r.at_ms) && load.requests.len() > 1_000, "{}", shape.name());
            assert_eq!(Shape::parse(shape.name()), Some(shape));
        }
    }

    #[test]
    fn a_file_may_have_a_heading_and_more_columns() {
        let load = read("time,ms\n10.5,300,x\n10,200\n", 1, 2_000).unwrap();
        let expected = [Request { at_ms: 0, takes_ms: 200 }, Request { at_ms: 500, takes_ms: 300 }];
        assert_eq!((load.requests, load.length_ms), (expected.to_vec(), 501));
        assert!(read("a\nb\n", 1, 2_000).unwrap_err().starts_with("line 2"));
        assert!(read("", 1, 2_000).is_err());
    }

    #[test]
    fn unix_time_dates_and_the_lines_of_other_programs_are_read_and_none_is_lost() {
        let times = |text: &str| -> Vec<u64> {
            read(text, 1, 2_000).unwrap_or_else(|e| panic!("{text:?}: {e}")).requests.iter().map(|r| r.at_ms).collect()
        };
        for text in [
            "1790000000\n1790000001.5",
            "1790000000.0,\r\n\r\n1790000001.5,\r\n",
            "1.79e9\n1.7900000015e9\n",
            "1790000000000\n1790000001500\n",
            "\u{feff}\"at\";\"x\"\n\"1790000000\";\"\"\n\"1790000001.5\";\"\"",
            "1790000001.5\n\n# later came first\n1790000000\n",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2026-09-21 14:13:20.0000000,374,44\n2026-09-21 14:13:21.5000000,396,109",
            "2026-09-21T14:13:20Z 300\n2026-09-21T14:13:21.5Z 300\n",
        ] {
            assert_eq!(times(text), [0, 1_500], "{text:?}");
        }
        let tokens = read("at,ContextTokens\n1790000000,7\n", 1, 2_000).unwrap();
        assert!(tokens.requests[0].takes_ms >= 1_000, "tokens are no milliseconds: {tokens:?}");
        for (text, line) in
            [("nan\n5\n", "line 1"), ("-5\n5\n", "line 1"), ("5\nx\n", "line 2"), ("5\n1790000000", "lines 1 and 2")]
        {
            let error = read(text, 1, 2_000).unwrap_err();
            assert!(error.starts_with(line), "{text:?}: {error}");
        }
    }
}
