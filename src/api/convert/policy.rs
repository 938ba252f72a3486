//! The body of a placement policy: what is not said is as the named policy has it, so
//! that a file of one line is a policy. It does not know which policy is in force.

use super::json::{Field, Object};
use nf_core::placement::policy::MOST_WEIGHT;
use nf_core::placement::{Chosen, Policy};
use nf_core::reason::Refusal;
use serde_json::{Map, Value};

/// Reads a policy, and whether it is only to be looked at.
///
/// # Errors
/// The first field at fault.
pub fn chosen(map: &Map<String, Value>) -> Result<(Chosen, bool), Refusal> {
    let mut o = Object::top(map);
    let words = Policy::ALL.map(|policy| (policy.name(), policy));
    let mut out = Chosen::from(o.need("policy")?.word(&words)?);
    if let Some(field) = o.get("weights") {
        let mut weights = field.object()?;
        for (name, weight) in [
            ("fragmentation", &mut out.weights.fragmentation),
            ("topology", &mut out.weights.topology),
            ("cost", &mut out.weights.cost),
        ] {
            let given = weights.integer(name, 0, MOST_WEIGHT.into())?;
            *weight = given.map_or(*weight, |n| n as u32);
        }
        weights.finish()?;
    }
    if let Some(field) = o.get("preemption") {
        let mut preemption = field.object()?;
        out.preemption.enabled = preemption.boolean("enabled")?.unwrap_or(out.preemption.enabled);
        if let Some(span) = preemption.get("min_run") {
            out.preemption.min_run_ms = or_none(&span)?;
        }
        if let Some(span) = preemption.get("delay") {
            out.preemption.delay_ms = or_none(&span)?;
        }
        if let Some(span) = preemption.get("max_grace") {
            let ms = or_none(&span)?;
            out.preemption.max_grace_ms = u32::try_from(ms).map_err(|_| span.refuse("at most an hour"))?;
        }
        preemption.finish()?;
    }
    let dry_run = o.boolean("dry_run")?.unwrap_or(false);
    o.finish()?;
    Ok((out, dry_run))
}

/// A span that may also be none.
fn or_none(field: &Field<'_>) -> Result<u64, Refusal> {
    let none = match field.value {
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse() == Ok(0.0),
        _ => false,
    };
    if none { Ok(0) } else { super::schedule::span(field) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: &Value) -> Result<Chosen, String> {
        chosen(value.as_object().unwrap())
            .map(|(chosen, _)| chosen)
            .map_err(|refusal| refusal.field.unwrap_or_default())
    }

    #[test]
    fn what_is_not_said_is_the_named_policys_own() {
        for policy in Policy::ALL {
            assert_eq!(read(&json!({ "policy": policy.name() })), Ok(policy.into()));
        }
        let given = read(&json!({"policy": "cost", "weights": {"topology": 0},
                                  "preemption": {"min_run": "5m", "delay": 0, "max_grace": "10m"}}));
        let given = given.unwrap();
        assert_eq!((given.preemption.delay_ms, given.preemption.max_grace_ms), (0, 600_000));
        assert_eq!((given.weights.topology, given.weights.cost), (0, 1000));
        assert_eq!((given.preemption.min_run_ms, given.preemption.enabled), (300_000, true));
    }

    #[test]
    fn a_bad_policy_is_refused_with_its_field() {
        let cases = [
            (json!({}), "policy"),
            (json!({"policy": "best"}), "policy"),
            (json!({"policy": "cost", "weights": {"cost": 1001}}), "weights.cost"),
            (json!({"policy": "cost", "weights": {"cost": -1}}), "weights.cost"),
            (json!({"policy": "cost", "weights": {"price": 1}}), "weights.price"),
            (json!({"policy": "cost", "preemption": {"min_run": "soon"}}), "preemption.min_run"),
            (json!({"policy": "cost", "preemption": {"max_grace": "60d"}}), "preemption.max_grace"),
            (json!({"policy": "cost", "weight": {}}), "weight"),
        ];
        for (body, field) in cases {
            assert_eq!(read(&body), Err(field.to_owned()), "{body}");
        }
    }
}
