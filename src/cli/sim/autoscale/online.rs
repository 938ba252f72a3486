//! `nf sim autoscale --online`: the daemon's autoscaler on text lines, so that
//! anybody's simulator or script can ask it. The other side owns the time and the
//! service. It does not decide anything.

use super::super::lines::Lines;
use crate::cli::exit::{Exit, fail};
use nf_core::autoscaler::replay::When;
use nf_core::autoscaler::{Autoscaler, Reading, Service, Signals};
use std::io::{BufRead, Write};

/// Answers until `END` or the end of the input.
pub fn run(input: impl BufRead, mut output: impl Write) -> anyhow::Result<()> {
    let mut service = None;
    let mut scaler: Option<Autoscaler> = None;
    let mut lines = Lines::new(input);
    let mut clock = Clock::default();
    loop {
        let number = lines.number() + 1;
        let wrong = |what: String| fail(Exit::Usage, format!("line {number}: {what}"));
        let Some(line) = lines.next().map_err(|e| wrong(e.to_string()))? else { break };
        let mut words = line.text.split_whitespace();
        match (words.next(), &mut scaler) {
            (None, _) => {}
            (Some("SERVICE"), None) => service = Some(parse_service(words).map_err(wrong)?),
            (Some("SERVICE"), Some(_)) => return Err(wrong("SERVICE comes once, before READY".to_owned())),
            (Some("READY"), slot) => {
                let service = service.ok_or_else(|| wrong("READY before SERVICE".to_owned()))?;
                *slot = Some(Autoscaler::new(service).map_err(|e| wrong(e.to_string()))?);
                say(&mut output, "READY")?;
            }
            (Some("TICK"), Some(scaler)) => {
                let signals = parse_tick(words, &mut clock, scaler.service().tick_ms).map_err(wrong)?;
                let decision = scaler.step(&signals);
                say(&mut output, &format!("DESIRED {} {}", decision.desired, decision.why))?;
            }
            (Some("TICK"), None) => return Err(wrong("TICK before READY".to_owned())),
            (Some("END"), _) => break,
            (Some(word), _) => {
                return Err(wrong(format!("`{word}` is none of SERVICE, READY, TICK, END")));
            }
        }
    }
    Ok(())
}

/// Nobody is silent for so long, in milliseconds: whose clock goes further in one step has another one now.
const DAY_MS: u64 = 86_400_000;
/// So many times on end that rise, all of them earlier than what was told before: that was a slip, and these are the time.
const RISING: u32 = 3;

/// The time as the autoscaler sees it. The other side's may leap ahead once, by a slip of the pen, and all that comes after
/// would be old news for ever.
#[derive(Default)]
struct Clock {
    /// The other side's time at the last news, and ours.
    last: Option<(u64, u64)>,
    /// The latest of the earlier times that have come since, each after the one before, and how many.
    earlier: Option<(u64, u32)>,
}

impl Clock {
    /// Ours at a tick, which usually comes after `tick_ms`; as late as at the last one where that is no news.
    fn at(&mut self, told: When, tick_ms: u64) -> u64 {
        let (When::At(t), Some((last, own))) = (told, self.last) else {
            if let When::At(t) = told {
                self.last = Some((t, t));
            }
            return self.last.map_or(0, |(_, own)| own);
        };
        let passed = match t.checked_sub(last) {
            None | Some(0) => self.slipped(t, last),
            Some(ahead) if ahead > DAY_MS => tick_ms,
            Some(ahead) => ahead,
        };
        if passed > 0 {
            *self = Self { last: Some((t, own + passed)), earlier: None };
        }
        own + passed
    }

    /// What has passed since the tick before, where the times go on from an earlier one; else nothing.
    fn slipped(&mut self, t: u64, last: u64) -> u64 {
        let (before, times) = self.earlier.filter(|(before, _)| t > *before).unwrap_or((t, 0));
        self.earlier = (t < last).then_some((t, times + 1));
        if times + 1 >= RISING && t < last { t - before } else { 0 }
    }
}

fn say(output: &mut impl Write, line: &str) -> anyhow::Result<()> {
    // The other side has gone: there is nobody to tell.
    writeln!(output, "{line}").and_then(|()| output.flush()).map_err(|e| fail(Exit::Failed, format!("stdout: {e}")))
}

/// `key=value …`; unknown keys are ignored, absent ones have the product's defaults.
fn parse_service<'a>(words: impl Iterator<Item = &'a str>) -> Result<Service, String> {
    let mut service = Service::default();
    for word in words {
        let Some((key, value)) = word.split_once('=') else {
            return Err(format!("SERVICE wants key=value, not `{word}`"));
        };
        // In thousandths, so that seconds become milliseconds.
        let milli = || Reading::parse(value).known().ok_or_else(|| format!("{key}={value} is not a number of ours"));
        let whole = |n: u64| u32::try_from(n / 1000).map_err(|_| format!("{key}={value} is too large"));
        match key {
            "tick_s" => service.tick_ms = milli()?,
            "cold_start_s" => service.cold_start_ms = milli()?,
            "min" => service.min = whole(milli()?)?,
            "max" => service.max = whole(milli()?)?,
            "slots" => service.slots = whole(milli()?)?,
            "slo_ms" => service.wait_ms = milli()? / 1000,
            "service_ms" => service.service_ms = (milli()? / 1000).max(1),
            "gpus" => service.gpus = whole(milli()?.max(1000))?,
            _ => {}
        }
    }
    service.check().map_err(|e| e.to_string())
}

/// `t ready starting draining queue running arrivals p95_ms`. A time that is missing is no news, as an old one is not.
fn parse_tick<'a>(words: impl Iterator<Item = &'a str>, clock: &mut Clock, tick_ms: u64) -> Result<Signals, String> {
    let words: Vec<&str> = words.collect();
    let [t, ready, starting, draining, queue, running, arrivals, p95, ..] = words[..] else {
        return Err(format!("TICK wants t ready starting draining queue running arrivals p95_ms, got {}", words.len()));
    };
    let told = When::parse(t).ok_or_else(|| format!("TICK at `{t}`: not a time in seconds"))?;
    Ok(Signals {
        at_ms: clock.at(told, tick_ms),
        ready: Reading::parse(ready),
        starting: Reading::parse(starting),
        draining: Reading::parse(draining),
        queue: Reading::parse(queue),
        running: Reading::parse(running),
        arrivals: Reading::parse(arrivals),
        p95_ms: Reading::parse(p95),
        ..Signals::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk(input: &str) -> (String, Result<(), String>) {
        let mut output = Vec::new();
        let result = run(input.as_bytes(), &mut output).map_err(|e| e.to_string());
        (String::from_utf8(output).unwrap(), result)
    }

    const HELLO: &str =
        "SERVICE tick_s=5 cold_start_s=90 min=1 max=20 slots=16 slo_ms=2000 service_ms=2000 gpus=1 colour=red\nREADY\n";

    #[test]
    fn each_tick_is_answered() {
        let (out, result) = talk(&format!(
            "{HELLO}\nTICK 0 1 0 0 0 8 20 1900\nTICK 5 1 0 0 - nan 20 -\nTICK 5 1 0 0 0 0 0 0 extra\nEND\nTICK"
        ));
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(out, "READY\nDESIRED 1 Stabilizing\nDESIRED 1 MissingSignal\nDESIRED 1 StaleSignal\n");
    }

    #[test]
    fn the_other_sides_clock_and_lines_may_be_of_any_kind() {
        let ticks = [
            [0.0, 5.0, 12.5],
            [1_790_000_000.0, 1_790_000_005.0, 1_790_000_012.5],
            [1_790_000_000_000.0, 1_790_000_005_000.0, 1_790_000_012_500.0],
        ];
        for at in ticks {
            let tick = |at: f64| format!("TICK {at} 1.0 0 0 0 8e0 +20 1900  ");
            let [a, b, c] = at.map(tick);
            let input = format!("\u{feff}{HELLO}\n{a}\n  \n\t{b}\n{c}").replace('\n', "\r\n");
            let (out, result) = talk(&input);
            assert!(result.is_ok(), "{result:?}");
            assert_eq!(out, "READY\nDESIRED 1 Stabilizing\nDESIRED 1 Stabilizing\nDESIRED 1 Stabilizing\n", "{at:?}");
        }
    }

    #[test]
    fn a_time_that_is_missing_ends_nothing() {
        let mut input = HELLO.to_owned();
        for t in ["1790000000", "nan", "-", "1790000004", "NaN", "-3", "inf", "1790000009"] {
            input.push_str(&format!("TICK {t} 2 0 0 0 8 20 1900\n"));
        }
        let (out, result) = talk(&input);
        assert!(result.is_ok(), "{result:?}");
        let said: Vec<&str> = out.lines().skip(1).map(|line| line.rsplit(' ').next().unwrap()).collect();
        let (news, none) = ("Stabilizing", "StaleSignal");
        assert_eq!(said, [news, none, none, news, none, none, none, news]);
        let (out, result) = talk(&format!("{HELLO}TICK - 2 0 0 0 8 20 1900\n"));
        assert!(result.is_ok() && out.lines().count() == 2, "{out} {result:?}");
    }

    /// What is said of each of these times, the same load at each.
    fn said(times: &[f64]) -> Vec<String> {
        let ticks: String = times.iter().map(|t| format!("TICK {t} 1 0 0 0 8 20 1900\n")).collect();
        let (out, result) = talk(&format!("{HELLO}{ticks}"));
        assert!(result.is_ok(), "{result:?}");
        out.lines().skip(1).map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn one_time_from_the_far_future_makes_no_old_news_of_all_that_comes_after_it() {
        let (news, none) = ("Stabilizing", "StaleSignal");
        // Two looks show that it was a slip; where nobody is silent for so long it is known at once.
        for (slip, then) in [(1e9, news), (2_000.0, none)] {
            let said = said(&[600.0, 605.0, slip, 610.0, 615.0, 620.0, 625.0, 630.0]);
            assert_eq!(said, [news, news, then, none, none, news, news, news], "{slip}");
        }
    }

    #[test]
    fn times_of_long_ago_between_others_stay_old_news() {
        let (news, none) = ("Stabilizing", "StaleSignal");
        let said = said(&[600.0, 300.0, 605.0, 305.0, 610.0, 300.0, 305.0, 305.0, 303.0, 610.0, 304.0, 615.0]);
        assert_eq!(said, [news, none, news, none, news, none, none, none, none, none, none, news]);
    }

    /// Whoever waits for an answer before the next question would wait for ever.
    #[test]
    fn each_answer_is_sent_at_once() {
        struct Sent(Vec<u8>, usize);
        impl Write for Sent {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                self.1 += 1;
                Ok(())
            }
        }
        let mut sent = Sent(Vec::new(), 0);
        run(format!("{HELLO}TICK 0 1 0 0 0 8 20 1900\nEND\n").as_bytes(), &mut sent).unwrap();
        assert_eq!(sent.1, 2);
    }

    #[test]
    fn a_bad_line_says_which_and_why() {
        let cases = [
            ("READY\n".to_owned(), "line 1: READY before SERVICE"),
            ("SERVICE max\n".to_owned(), "line 1: SERVICE wants key=value"),
            ("SERVICE max=nan\n".to_owned(), "line 1: max=nan"),
            ("SERVICE min=5 max=2\n".to_owned(), "line 1: min is 5: at most max"),
            ("TICK 1\n".to_owned(), "line 1: TICK before READY"),
            (format!("{HELLO}TICK 1 2\n"), "line 3: TICK wants"),
            (format!("{HELLO}TICK soon 1 0 0 0 0 0 0\n"), "line 3: TICK at `soon`"),
            (format!("{HELLO}TOCK\n"), "line 3: `TOCK` is none of"),
            ("x".repeat(100_000), "line 1: longer than"),
        ];
        for (input, expected) in cases {
            let error = talk(&input).1.unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
