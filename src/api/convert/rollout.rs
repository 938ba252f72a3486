//! Rollouts at the border: what starts one, what is said to it, and how far it has come.

use super::answer::{Freshness, ReasonBody, time};
use super::json::Object;
use super::schedule::span;
use nf_core::id::VersionId;
use nf_core::reason::{Reason, Refusal};
use nf_core::rollout::{Canary, Count2, Outlook, Strategy, Turn};
use nf_core::slo::Count;
use nf_proto::v1;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// What a caller wants of a rollout; `version` is None where it goes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub version: Option<VersionId>,
    pub strategy: Strategy,
}

/// `{"model_version":"v2","surge":1,"unavailable":1,"canary":10,"auto_promote":true,"window":"5m","ready_within":"10m"}`;
/// without a version for a rollback.
///
/// # Errors
/// The field at fault.
pub fn wanted(map: &Map<String, Value>, rollback: bool) -> Result<Wanted, Refusal> {
    let mut top = Object::top(map);
    let version = match rollback {
        true => None,
        false => Some(top.need("model_version")?.name(VersionId::new)?),
    };
    let usual = Strategy::default();
    let number = |n: Option<i64>, usual: u16| n.map_or(usual, |n| n as u16);
    let surge = number(top.integer("surge", 0, i64::from(u16::MAX))?, usual.surge);
    let unavailable = number(top.integer("unavailable", 0, i64::from(u16::MAX))?, usual.unavailable);
    let auto_promote = top.boolean("auto_promote")?;
    let canary = match top.get("canary") {
        None => None,
        Some(field) if field.value.is_boolean() => field.boolean()?.then_some(None),
        Some(field) => Some(Some(field.integer(1, 99)? as u8)),
    };
    let mut time = |key: &'static str, usual: u32| -> Result<u32, Refusal> {
        let Some(field) = top.get(key) else { return Ok(usual) };
        u32::try_from(span(&field)?).map_err(|_| field.refuse("at most a day"))
    };
    let (window_ms, ready_ms) = (time("window", usual.window_ms)?, time("ready_within", usual.ready_ms)?);
    top.finish()?;
    if canary.is_none() && auto_promote.is_some() {
        return Err(Refusal::invalid("auto_promote", "only a canary is promoted: say canary, too"));
    }
    let canary = canary.map(|percent| Canary { percent, auto_promote: auto_promote.unwrap_or(false) });
    let strategy = Strategy { surge, unavailable, canary, window_ms, ready_ms };
    strategy.check()?;
    Ok(Wanted { version, strategy })
}

/// pause, resume, promote or revert.
///
/// # Errors
/// Any other word.
pub fn turn(word: &str) -> Result<Turn, Refusal> {
    match word {
        "pause" => Ok(Turn::Pause),
        "resume" => Ok(Turn::Resume),
        "promote" => Ok(Turn::Promote),
        "revert" => Ok(Turn::Back { failed: false, why: Reason::StoppedByUser, counts: None }),
        _ => Err(Refusal::invalid("turn", "pause, resume, promote or revert")),
    }
}

/// How a version takes the place of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StrategyBody {
    pub surge: u16,
    pub unavailable: u16,
    pub canary: bool,
    /// Share of replicas and requests of the canary; null: one replica.
    pub canary_percent: Option<u8>,
    pub auto_promote: bool,
    pub window_ms: u32,
    pub ready_within_ms: u32,
}

/// Requests of one version, by what became of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TrialBody {
    pub version: String,
    pub requests: u64,
    pub good: u64,
    /// Answered later than promised.
    pub slow: u64,
    /// A server's error, or no answer.
    pub failed: u64,
}

impl TrialBody {
    pub fn new(version: &VersionId, count: Count) -> Self {
        let Count { good, slow, failed } = count;
        Self { version: version.to_string(), requests: count.requests(), good, slow, failed }
    }
}

/// How far a job's rollout has come; of one that is over, how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutBody {
    pub request_id: String,
    /// Counts the versions that the job ran.
    pub revision: u32,
    pub from: String,
    pub to: String,
    /// running, paused, blocked, failed, cancelled or successful.
    pub status: String,
    /// canary, rolling, watching or reverting while it is under way; else null.
    pub phase: Option<String>,
    /// Why the former version came back, or would if it might; null unless it did, or would.
    pub why: Option<String>,
    /// Why nothing moves, while it is blocked.
    pub reasons: Vec<ReasonBody>,
    /// Replicas that are wanted.
    pub replicas: u16,
    /// Of these on the new version.
    pub updated: u16,
    /// Of these ready.
    pub updated_ready: u16,
    /// Replicas that serve, of either version.
    pub ready: u16,
    pub strategy: StrategyBody,
    /// It goes back to the version before.
    pub rollback: bool,
    pub by: Option<String>,
    pub began_at: String,
    pub changed_at: String,
    /// When the window under way ends; null where no time ends it.
    pub window_ends_at: Option<String>,
    /// Copies of the new version that ended by themselves.
    pub failures: u16,
    /// What the promise was judged from, former version first; empty unless it was broken.
    pub counts: Vec<TrialBody>,
}

impl From<&Outlook> for RolloutBody {
    fn from(o: &Outlook) -> Self {
        let Strategy { surge, unavailable, canary, window_ms, ready_ms } = o.strategy;
        let strategy = StrategyBody {
            surge,
            unavailable,
            canary: canary.is_some(),
            canary_percent: canary.and_then(|canary| canary.percent),
            auto_promote: canary.is_some_and(|canary| canary.auto_promote),
            window_ms,
            ready_within_ms: ready_ms,
        };
        let counts = |Count2 { former, new }| vec![TrialBody::new(&o.from, former), TrialBody::new(&o.to, new)];
        Self {
            request_id: o.request.to_string(),
            revision: o.revision.0,
            from: o.from.to_string(),
            to: o.to.to_string(),
            status: o.status.to_string(),
            phase: o.phase.as_deref().map(str::to_owned),
            why: o.why.map(|why| why.token().to_owned()),
            reasons: o.blockers.iter().map(ReasonBody::from).collect(),
            replicas: o.desired,
            updated: o.updated,
            updated_ready: o.updated_ready,
            ready: o.ready,
            strategy,
            rollback: o.rollback,
            by: o.by.as_deref().map(str::to_owned),
            began_at: time(o.began_ms),
            changed_at: time(o.turned_ms),
            window_ends_at: o.until_ms.map(time),
            failures: o.failures,
            counts: o.counts.map(counts).unwrap_or_default(),
        }
    }
}

/// The answer to whoever asks after a rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RolloutAnswer {
    #[serde(flatten)]
    pub rollout: RolloutBody,
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}

/// The same for gRPC.
pub fn put(o: &Outlook) -> v1::Rollout {
    let RolloutBody { request_id, revision, from, to, status, phase, why, rollback, counts, .. } = o.into();
    let trial = |t: TrialBody| v1::Trial { version: t.version, good: t.good, slow: t.slow, failed: t.failed };
    v1::Rollout {
        request_id,
        revision,
        from,
        to,
        status,
        phase: phase.unwrap_or_default(),
        why: why.unwrap_or_default(),
        reasons: o.blockers.iter().map(super::proto::blocker).collect(),
        replicas: o.desired.into(),
        updated: o.updated.into(),
        updated_ready: o.updated_ready.into(),
        ready: o.ready.into(),
        rollback,
        counts: counts.into_iter().map(trial).collect(),
        began_ms: o.began_ms,
        changed_ms: o.turned_ms,
    }
}

/// From gRPC's message. Times of 0, and numbers left out, are the usual ones.
///
/// # Errors
/// The field at fault.
pub fn from_proto(m: &v1::StartRolloutRequest) -> Result<Wanted, Refusal> {
    let usual = Strategy::default();
    let number = |field: &str, n: Option<u32>, usual: u16| match n {
        None => Ok(usual),
        Some(n) => u16::try_from(n).map_err(|_| Refusal::invalid(field, "at most 64")),
    };
    let time = |ms: u32, usual: u32| if ms == 0 { usual } else { ms };
    let percent = match m.canary_percent {
        0 => None,
        n => Some(u8::try_from(n).map_err(|_| Refusal::invalid("canary_percent", "1 to 99"))?),
    };
    let version = match m.rollback {
        true => None,
        false => Some(VersionId::new(&m.model_version).map_err(|e| Refusal::invalid("model_version", e.to_string()))?),
    };
    let strategy = Strategy {
        surge: number("surge", m.surge, usual.surge)?,
        unavailable: number("unavailable", m.unavailable, usual.unavailable)?,
        canary: m.canary.then_some(Canary { percent, auto_promote: m.auto_promote }),
        window_ms: time(m.window_ms, usual.window_ms),
        ready_ms: time(m.ready_within_ms, usual.ready_ms),
    };
    strategy.check()?;
    Ok(Wanted { version, strategy })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
    use serde_json::json;

    fn read(body: Value) -> Result<Wanted, Refusal> {
        wanted(body.as_object().unwrap(), false)
    }

    #[test]
    fn what_is_left_out_is_as_usual() {
        let usual = Wanted { version: VersionId::new("v2").ok(), strategy: Strategy::default() };
        assert_eq!(read(json!({"model_version": "v2"})), Ok(usual));
        let canary = |body: Value| read(body).unwrap().strategy.canary;
        let one = Canary { percent: None, auto_promote: false };
        assert_eq!(canary(json!({"model_version": "v2", "canary": true})), Some(one));
        assert_eq!(canary(json!({"model_version": "v2", "canary": false})), None);
        let ten = Some(Canary { percent: Some(10), auto_promote: true });
        assert_eq!(canary(json!({"model_version": "v2", "canary": 10, "auto_promote": true})), ten);
        assert_eq!(wanted(&Map::new(), true).unwrap().version, None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn whatever_comes_is_read_or_refused_with_its_field(
            key in "surge|unavailable|canary|auto_promote|window|ready_within|model_version|else",
            number in any::<i64>(),
            text in ".{0,12}",
            which in 0u8..3,
        ) {
            let value = match which { 0 => json!(number), 1 => json!(text), _ => json!(number % 2 == 0) };
            let mut body = json!({"model_version": "v2"});
            body[&key] = value;
            match read(body) {
                Ok(wanted) => prop_assert!(wanted.strategy.check().is_ok()),
                Err(refusal) => prop_assert_eq!(refusal.field, Some(key)),
            }
        }
    }
}
