//! A point of time as other programs and public traces write it: seconds from wherever
//! they count, Unix time in any unit, or a date. A count of requests has bounds that
//! no time has, so this is not for `Reading`. It knows no clock.

/// What somebody wrote where a time belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Milliseconds.
    At(u64),
    /// It is a number, or the word for a missing one, and no time: `-`, NaN, infinite, negative, beyond all years.
    Never,
}

/// A number from here on is of the smaller unit; as seconds it would be in the year 5138.
const UNITS: [(f64, f64); 4] = [(1e11, 1e3), (1e14, 1.0), (1e17, 1e-3), (1e20, 1e-6)];

const DAY_MS: i64 = 86_400_000;

impl When {
    /// None for what is neither a number nor a date.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text == "-" {
            return Some(When::Never);
        }
        match text.parse::<f64>() {
            Ok(number) => Some(Self::of_number(number)),
            Err(_) => Some(date(text)?.try_into().map_or(When::Never, When::At)),
        }
    }

    fn of_number(number: f64) -> Self {
        let unit = UNITS.iter().find(|(end, _)| number < *end).filter(|_| number >= 0.0);
        let Some((_, ms)) = unit else { return When::Never };
        // Decimals have no exact float, so that without rounding 1.001 s would be 1000 ms.
        #[allow(clippy::float_arithmetic, reason = "one multiplication is the same on every machine")]
        let ms = (number * ms).round();
        When::At(ms as u64)
    }
}

/// Milliseconds since 1970 of `2023-11-16T18:15:46.680Z` (RFC 3339). A space may stand for the T, and without a zone it
/// is UTC: for a replay only the differences count.
fn date(text: &str) -> Option<i64> {
    let (day, clock) = text.split_once(['T', 't', ' '])?;
    let mut parts = day.split('-').map(digits);
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let clock = clock.trim();
    let (clock, zone) = match clock.find(['Z', 'z', '+', '-']) {
        Some(at) => clock.split_at(at),
        None => (clock, ""),
    };
    Some(days(year, month, day) * DAY_MS + time_of_day(clock)? - offset(zone)?)
}

/// `18:15:46` with or without a fraction.
fn time_of_day(clock: &str) -> Option<i64> {
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut parts = clock.split(':').map(digits);
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    digits(fraction)?;
    let ms = fraction.bytes().chain(*b"00").take(3).fold(0, |ms, digit| ms * 10 + i64::from(digit - b'0'));
    // A leap second is the 60th.
    let real = parts.next().is_none() && hour < 24 && minute < 60 && second <= 60;
    real.then_some(((hour * 60 + minute) * 60 + second) * 1000 + ms)
}

/// Milliseconds east of Greenwich: nothing, `Z`, `+01:00`, `-0530`, `+02`.
fn offset(zone: &str) -> Option<i64> {
    if matches!(zone, "" | "Z" | "z") {
        return Some(0);
    }
    let (sign, rest) = zone.split_at(1);
    let (hours, minutes) = rest.split_once(':').or_else(|| rest.split_at_checked(2))?;
    let minutes = if minutes.is_empty() { 0 } else { digits(minutes)? };
    let ms = (digits(hours)? * 60 + minutes) * 60_000;
    Some(if sign == "-" { -ms } else { ms })
}

/// A number of one to nine digits.
fn digits(text: &str) -> Option<i64> {
    let sound = (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    sound.then(|| text.parse().ok()).flatten()
}

/// Days since 1970 in the Gregorian calendar, years counted from March, so that the leap day is the last of its year.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // March to July are 153 days, and so are August to December.
    year * 365 + leaps + (153 * month + 2) / 5 + day - 719_469
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_unix_time_in_every_unit_are_times() {
        let at = |text| match When::parse(text) {
            Some(When::At(ms)) => ms,
            other => panic!("{text}: {other:?}"),
        };
        for (text, ms) in [
            ("0", 0),
            ("1.001", 1_001),
            (" 10.5\r", 10_500),
            ("1e3", 1_000_000),
            ("1790000000", 1_790_000_000_000),
            ("1790000000.123", 1_790_000_000_123),
            ("1.79e9", 1_790_000_000_000),
            ("1790000000123", 1_790_000_000_123),
            ("1790000000123456", 1_790_000_000_123),
            ("1790000000123456789", 1_790_000_000_123),
        ] {
            assert_eq!(at(text), ms, "{text}");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29 12:00:00", 951_825_600_000),
            ("2023-11-16 18:15:46.6805900", 1_700_158_546_680),
            ("2026-09-21T14:13:20+00:00", 1_790_000_000_000),
            ("2026-09-21T16:13:20.5+02:00", 1_790_000_000_500),
            ("2026-09-21T08:43:20-0530", 1_790_000_000_000),
        ] {
            assert_eq!(When::parse(text), Some(When::At(ms)), "{text}");
        }
    }

    #[test]
    fn a_number_that_is_no_time_is_told_from_what_is_no_number() {
        for text in ["-", "nan", "NaN", "inf", "-5", "1e21"] {
            assert_eq!(When::parse(text), Some(When::Never), "{text}");
        }
        assert_eq!(When::parse("1960-01-01T00:00:00Z"), Some(When::Never));
        for text in [
            "",
            "time",
            "soon",
            "2023-11-16",
            "2023-13-01 00:00:00",
            "2023-01-01 25:00:00",
            "10:00",
            "2023-1-1 1:1:1+x",
        ] {
            assert_eq!(When::parse(text), None, "{text}");
        }
    }
}
