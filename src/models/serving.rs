//! How a serving program is spoken to: when it is ready, whether it still lives, how it
//! drains, and which of its metrics mean what. Part of a manifest, so parsing is strict
//! and every time is bounded. It asks nobody anything.

use serde::{Deserialize, Serialize};

const MAX_READY_S: u32 = 3600;
const MAX_PERIOD_S: u32 = 300;
const MAX_FAILURES: u32 = 100;
const MAX_DRAIN_S: u32 = 3600;
const MAX_PATH: usize = 256;
const MAX_NAME: usize = 256;

/// When a started process counts as ready: a 2xx at `path` within `timeout_s` seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    #[serde(default = "Ready::default_path")]
    pub path: String,
    #[serde(default = "Ready::default_timeout")]
    pub timeout_s: u32,
}

impl Ready {
    fn default_path() -> String {
        "/health".into()
    }
    fn default_timeout() -> u32 {
        60
    }
}

impl Default for Ready {
    fn default() -> Self {
        Self { path: Self::default_path(), timeout_s: Self::default_timeout() }
    }
}

/// When a process that was ready counts as hung: so many questions in a row without a 2xx.
/// It is stopped and started again then; without this part it is only NotReady.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Live {
    #[serde(default = "Ready::default_path")]
    pub path: String,
    #[serde(default = "Live::default_period")]
    pub period_s: u32,
    #[serde(default = "Live::default_failures")]
    pub failures: u32,
}

impl Live {
    fn default_period() -> u32 {
        10
    }
    fn default_failures() -> u32 {
        3
    }
}

/// What is done before TERM, for at most `timeout_s` seconds: `path`, where there is one,
/// is told by POST, and the metrics that count requests are waited for to be 0. Where
/// neither is named, the open connections to its port are waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(default = "Drain::default_timeout")]
    pub timeout_s: u32,
}

impl Drain {
    /// Where the manifest does not say.
    pub const USUAL_S: u32 = 30;

    fn default_timeout() -> u32 {
        Self::USUAL_S
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { path: None, timeout_s: Self::USUAL_S }
    }
}

/// Where a replica's Prometheus metrics are, and what they are called: a name, or a name
/// with labels such as `name{type="waiting"}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    pub path: String,
    /// Requests being worked on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<String>,
    /// Requests that wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// A histogram of seconds from a request's arrival to its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<String>,
    /// The part of a language model's KV cache that is in use, 0 to 1. Names of several releases of one program stand
    /// beside one another, parted by `|`: the first that is there counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache: Option<String>,
    /// A histogram of seconds from a request's arrival to the first token of its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token: Option<String>,
}

impl Metrics {
    /// Its names for the KV cache, the one that counts first.
    pub fn kv_caches(&self) -> impl Iterator<Item = &str> {
        self.kv_cache.iter().flat_map(|names| alternatives(names))
    }
}

/// A label's value may have a `|` in it, so a name with labels is one alone.
fn alternatives(names: &str) -> Vec<&str> {
    if names.contains('{') { vec![names] } else { names.split('|').collect() }
}

/// All of it, as a program's manifest or profile has it.
pub(super) struct Serving<'a> {
    pub ready: &'a Ready,
    pub live: Option<&'a Live>,
    pub drain: Option<&'a Drain>,
    pub metrics: Option<&'a Metrics>,
}

impl Serving<'_> {
    /// The first field at fault, and the rule.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let within = |field: &str, value: u32, most: u32| match (1..=most).contains(&value) {
            true => Ok(()),
            false => Err((field.to_owned(), format!("1 to {most}, not {value}"))),
        };
        within("runtime.ready.timeout_s", self.ready.timeout_s, MAX_READY_S)?;
        path("runtime.ready.path", &self.ready.path)?;
        if let Some(live) = self.live {
            within("runtime.live.period_s", live.period_s, MAX_PERIOD_S)?;
            within("runtime.live.failures", live.failures, MAX_FAILURES)?;
            path("runtime.live.path", &live.path)?;
        }
        if let Some(drain) = self.drain {
            within("runtime.drain.timeout_s", drain.timeout_s, MAX_DRAIN_S)?;
            drain.path.iter().try_for_each(|p| path("runtime.drain.path", p))?;
        }
        let Some(metrics) = self.metrics else { return Ok(()) };
        path("runtime.metrics.path", &metrics.path)?;
        let Metrics { running, waiting, latency, kv_cache, first_token, .. } = metrics;
        let names = [("running", running), ("waiting", waiting), ("latency", latency), ("first_token", first_token)];
        let bad =
            |field: &str| Err((format!("runtime.metrics.{field}"), "a metric's name, or name{label=\"value\"}".into()));
        for (field, name) in names {
            if name.as_ref().is_some_and(|name| !is_selector(name)) {
                return bad(field);
            }
        }
        match kv_cache.as_ref().is_none_or(|names| names.len() <= MAX_NAME && metrics.kv_caches().all(is_selector)) {
            true => Ok(()),
            false => bad("kv_cache"),
        }
    }
}

fn path(field: &str, path: &str) -> Result<(), (String, String)> {
    if !path.starts_with('/') || path.len() > MAX_PATH || !path.bytes().all(|b| b.is_ascii_graphic()) {
        return Err((field.to_owned(), format!("starts with /, printable ASCII, at most {MAX_PATH} bytes")));
    }
    Ok(())
}

fn is_selector(text: &str) -> bool {
    let (name, labels) = text.split_once('{').unwrap_or((text, "}"));
    let letter = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b':';
    let named = !name.is_empty() && name.bytes().all(letter) && !name.as_bytes()[0].is_ascii_digit();
    let bytes = text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    named && bytes && text.len() <= MAX_NAME && labels.ends_with('}')
}

/// The sum of all series of a metric in a Prometheus text; None when it has none. A
/// selector's labels must be among the series' own.
pub fn sum(text: &str, selector: &str) -> Option<f64> {
    values(text, selector).into_iter().reduce(|a, b| a + b)
}

/// The largest of all series of a metric in a Prometheus text; None when it has none.
pub fn most(text: &str, selector: &str) -> Option<f64> {
    values(text, selector).into_iter().reduce(f64::max)
}

fn values(text: &str, selector: &str) -> Vec<f64> {
    let (name, labels) = selector.split_once('{').unwrap_or((selector, ""));
    let wanted = wanted(labels);
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let (own, rest) = match rest.strip_prefix('{') {
            Some(rest) => rest.split_once('}')?,
            None => ("", rest.strip_prefix(' ').map(|_| rest)?),
        };
        wanted.iter().all(|label| own.contains(label)).then_some(())?;
        rest.split_ascii_whitespace().next()?.parse::<f64>().ok()
    };
    text.lines().filter_map(value).collect()
}

/// A Prometheus histogram, all of its series summed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Upper ends, rising, and how many were at most so much, ever. The last end is infinite.
    buckets: Vec<(f64, f64)>,
}

impl Histogram {
    /// The histogram of that name in a Prometheus text; None when it has none, or one without an end.
    pub fn read(text: &str, selector: &str) -> Option<Self> {
        let (name, labels) = selector.split_once('{').unwrap_or((selector, ""));
        let wanted: Vec<&str> = wanted(labels);
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for line in text.lines() {
            let Some(rest) = line.strip_prefix(name).and_then(|rest| rest.strip_prefix("_bucket{")) else { continue };
            let Some((own, rest)) = rest.split_once('}') else { continue };
            let end = own.split(',').find_map(|label| label.trim().strip_prefix("le=\"")?.strip_suffix('"'));
            let end = end.and_then(|end| end.parse::<f64>().ok()).filter(|end| !end.is_nan());
            let count = rest.split_ascii_whitespace().next().and_then(|count| count.parse::<f64>().ok());
            let (Some(end), Some(count)) = (end, count.filter(|count| count.is_finite() && *count >= 0.0)) else {
                continue;
            };
            if !wanted.iter().all(|label| own.contains(label)) {
                continue;
            }
            match buckets.iter().position(|(known, _)| *known == end) {
                Some(at) => buckets[at].1 += count,
                None if buckets.len() < MAX_BUCKETS => buckets.push((end, count)),
                None => return None,
            }
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        (buckets.last()?.0 == f64::INFINITY).then_some(Self { buckets })
    }

    /// How many were measured, ever.
    pub fn count(&self) -> f64 {
        self.buckets.last().map_or(0.0, |(_, count)| *count)
    }

    /// The 95th percentile of what was measured since `before`, between the ends of its bucket; beyond
    /// the last finite end it is that end. None when nothing was, or the server began anew.
    pub fn p95_since(&self, before: &Self) -> Option<f64> {
        let earlier = |i: usize, end: f64| match before.buckets.get(i) {
            Some((known, count)) if *known == end => Some(*count),
            _ => None,
        };
        let (mut low, mut below, mut risen) = (0.0, 0.0, 0.0);
        let all = self.count() - before.count();
        if all <= 0.0 {
            return None;
        }
        for (i, (end, count)) in self.buckets.iter().enumerate() {
            // Cumulative counts rise; where a torn page says otherwise, the former counts.
            risen = (count - earlier(i, *end)?).max(risen);
            if risen >= all * 0.95 {
                let within = if risen > below { (all * 0.95 - below) / (risen - below) } else { 1.0 };
                return Some(if end.is_finite() { low + (end - low) * within } else { low });
            }
            (low, below) = (*end, risen);
        }
        None
    }
}

/// Most buckets of a histogram that are told apart.
const MAX_BUCKETS: usize = 256;

fn wanted(labels: &str) -> Vec<&str> {
    labels.trim_end_matches('}').split(',').map(str::trim).filter(|l| !l.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_of_what_came_since() {
        let page = |low: u32, mid: u32, all: u32| {
            let text = format!(
                "t_bucket{{m=\"a\",le=\"0.1\"}} {low}\nt_bucket{{m=\"a\",le=\"1\"}} {mid}\nt_bucket{{m=\"a\",le=\"+Inf\"}} {all}\nt_sum 3\n"
            );
            Histogram::read(&text, "t").unwrap()
        };
        let before = page(100, 100, 100);
        assert_eq!(page(100, 100, 100).p95_since(&before), None);
        // Twenty came, ten of them fast: the 19th of 20 lies nine tenths into the second bucket.
        let p95 = page(110, 120, 120).p95_since(&before).unwrap();
        assert!((p95 - 0.91).abs() < 1e-9, "{p95}");
        assert_eq!(page(100, 100, 120).p95_since(&before), Some(1.0));
        // It began anew, or has other buckets.
        assert_eq!(page(1, 1, 1).p95_since(&before), None);
        assert_eq!(page(200, 200, 200).p95_since(&Histogram::default()), None);
        for none in ["", "t 3", "t_bucket{le=\"1\"} 3", "t_bucket{le=\"x\"} 3", "t_bucket{le=\"+Inf\"} NaN"] {
            assert_eq!(Histogram::read(none, "t"), None, "{none}");
        }
    }

    const TEXT: &str = "# HELP q Requests.\n# TYPE q gauge\nq{model=\"a\",t=\"waiting\"} 2\nq{model=\"b\",t=\"running\"} 3.0 17\nq_total 9\nplain 4\n";

    #[test]
    fn series_are_summed_by_name_and_labels() {
        assert_eq!(sum(TEXT, "q"), Some(5.0));
        assert_eq!(sum(TEXT, "q{t=\"waiting\"}"), Some(2.0));
        assert_eq!(sum(TEXT, "plain"), Some(4.0));
        assert_eq!(sum(TEXT, "absent"), None);
        assert_eq!(sum(TEXT, "q{t=\"other\"}"), None);
        assert_eq!(sum("q{broken 1\nq x\n", "q"), None);
    }

    #[test]
    fn what_is_out_of_bounds_is_named() {
        let ready = Ready::default();
        let check = |live: Option<Live>, drain: Option<Drain>, metrics: Option<Metrics>| {
            let serving =
                Serving { ready: &ready, live: live.as_ref(), drain: drain.as_ref(), metrics: metrics.as_ref() };
            serving.check().err().map(|(field, _)| field)
        };
        let live = |period_s, failures| Some(Live { path: "/health".into(), period_s, failures });
        let drain = |path: Option<&str>| Some(Drain { path: path.map(Into::into), timeout_s: 30 });
        let counts = |running: &str| {
            Some(Metrics { path: "/metrics".into(), running: Some(running.into()), ..Metrics::default() })
        };
        assert_eq!(check(live(10, 3), drain(None), counts("vllm:num_requests_running")), None);
        assert_eq!(check(live(0, 3), None, None).as_deref(), Some("runtime.live.period_s"));
        assert_eq!(check(live(1, 0), None, None).as_deref(), Some("runtime.live.failures"));
        assert_eq!(check(None, drain(Some("x")), None).as_deref(), Some("runtime.drain.path"));
        assert_eq!(check(None, drain(None), None), None, "connections are counted");
        let endless = Some(Drain { path: None, timeout_s: MAX_DRAIN_S + 1 });
        assert_eq!(check(None, endless, None).as_deref(), Some("runtime.drain.timeout_s"));
        for bad in ["", "1x", "a b", "a{b", "é"] {
            assert_eq!(check(None, None, counts(bad)).as_deref(), Some("runtime.metrics.running"), "{bad}");
        }
    }
}
