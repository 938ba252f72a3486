//! The filter: everything that rules a class of nodes out for a job, each with
//! its reason. `verdict` collects all of them for
//! explanations; the search asks the same in two steps, once per flavor and once per class.

use super::devices;
use crate::capacity::{Class, Flavor};
use crate::job::{JobSpec, Runtime};
use crate::node::{ENGINE_LABEL, NodeState};
use crate::reason::Reason;

type Check = fn(&Class, &JobSpec) -> bool;

/// In the order in which they are told. `true` means "rules it out".
const CHECKS: &[(Reason, Check)] = &[
    (Reason::BadConstraints, |class, spec| !constraints_hold(&class.flavor, spec)),
    (Reason::NoMatchingDevice, |class, spec| !could_ever_hold(&class.flavor, spec)),
    (Reason::NodeDown, |class, _| class.state != NodeState::Ready),
    (Reason::NodeCordoned, |class, _| class.cordoned),
    (Reason::Resources, |class, spec| !has_room(class, spec)),
];

/// Whether the class may have room: everything but the devices, which the score looks at.
pub fn may_have_room(class: &Class, spec: &JobSpec) -> bool {
    let ask = &spec.resources;
    class.takes_work()
        && class.port_free
        && ask.cpu_milli <= class.cpu_milli
        && ask.memory <= class.memory
        && ask.disk <= class.disk
}

/// Whether nodes of the flavor may ever run the job.
pub fn may_ever_run(flavor: &Flavor, spec: &JobSpec) -> bool {
    constraints_hold(flavor, spec) && could_ever_hold(flavor, spec)
}

/// Everything that rules the class out. Of the two that are about size, only
/// the one that says more is named: what can never fit does not also lack room.
pub fn verdict(class: &Class, spec: &JobSpec) -> Vec<Reason> {
    let mut reasons: Vec<Reason> = CHECKS.iter().filter(|(_, out)| out(class, spec)).map(|(r, _)| *r).collect();
    if reasons.contains(&Reason::NoMatchingDevice) {
        reasons.retain(|r| *r != Reason::Resources);
    }
    reasons
}

/// Whether such nodes can run the job's kind of program at all.
pub(crate) fn has_runtime(flavor: &Flavor, spec: &JobSpec) -> bool {
    spec.runtime != Runtime::Docker || flavor.labels.keys().any(|key| key.as_str() == ENGINE_LABEL)
}

/// Place, labels, price, runtime: what no release of capacity can change.
pub fn constraints_hold(flavor: &Flavor, spec: &JobSpec) -> bool {
    let c = &spec.constraints;
    let place = |want: &Option<_>, have: &Option<_>| want.is_none() || want == have;
    has_runtime(flavor, spec)
        && place(&c.region, &flavor.region)
        && place(&c.zone, &flavor.zone)
        && place(&c.rack, &flavor.rack)
        && c.labels.iter().all(|(key, value)| flavor.labels.get(key) == Some(value))
        && c.max_cost_per_hour
            .is_none_or(|max| cost_per_hour(flavor, spec).saturating_mul(spec.most_replicas().into()) <= max)
}

/// Millionths per hour of one replica's devices on such a node.
pub fn cost_per_hour(flavor: &Flavor, spec: &JobSpec) -> u64 {
    let milli = spec.resources.gpu.milli();
    if flavor.cost_per_hour.is_empty() {
        return 0;
    }
    let price = |d: &crate::capacity::DeviceFlavor| flavor.cost_per_hour.get(&d.device_type).copied().unwrap_or(0);
    let dearest = flavor.devices.iter().filter(|d| devices::suits(d, &spec.resources)).map(price).max();
    dearest.unwrap_or(0).saturating_mul(milli) / 1000
}

/// The lowest that one replica's devices may cost on such a node, in thousandths of millionths an hour.
pub fn lowest_cost(flavor: &Flavor, spec: &JobSpec) -> u128 {
    let price = |d: &crate::capacity::DeviceFlavor| flavor.cost_per_hour.get(&d.device_type).copied().unwrap_or(0);
    let lowest = flavor.devices.iter().filter(|d| devices::suits(d, &spec.resources)).map(price).min();
    u128::from(lowest.unwrap_or(0)) * u128::from(spec.resources.gpu.milli())
}

/// Whether an empty node of this flavor could hold one replica.
pub fn could_ever_hold(flavor: &Flavor, spec: &JobSpec) -> bool {
    let ask = &spec.resources;
    ask.cpu_milli <= flavor.cpu_milli
        && ask.memory <= flavor.memory
        && ask.disk <= flavor.disk
        && devices::could_hold(flavor, ask, spec.constraints.same_island)
}

/// Whether the class has room for one replica now.
fn has_room(class: &Class, spec: &JobSpec) -> bool {
    let ask = &spec.resources;
    ask.cpu_milli <= class.cpu_milli
        && ask.memory <= class.memory
        && ask.disk <= class.disk
        && class.port_free
        && devices::fit(class, ask, spec.constraints.same_island).is_some()
}
