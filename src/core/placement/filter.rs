//! The filter: everything that rules a class of nodes out for a job, each with
//! its reason. `verdict` collects all of them for
//! explanations; the search asks the same in two steps, once per flavor and once per class.

use super::devices;
use crate::capacity::{Class, DeviceFlavor, Flavor};
use crate::job::JobSpec;
use crate::node::{NodeState, has_engine};
use crate::reason::Reason;
use crate::sharing::Ask;

type Check = fn(&Class, &Ask<'_>) -> bool;

/// In the order in which they are told. `true` means "rules it out".
const CHECKS: &[(Reason, Check)] = &[
    (Reason::BadConstraints, |class, ask| !constraints_hold(&class.flavor, ask)),
    (Reason::NoMatchingDevice, |class, ask| !could_ever_hold(&class.flavor, &ask.accepted())),
    (Reason::FractionNotEnforced, |class, ask| lacks_only_enforcement(class, ask)),
    (Reason::NodeDown, |class, _| class.state != NodeState::Ready),
    (Reason::NodeCordoned, |class, _| class.cordoned),
    (Reason::Resources, |class, ask| !has_room(class, ask)),
];

/// Whether the class may have room: everything but the devices, which the score looks at.
pub fn may_have_room(class: &Class, ask: &Ask<'_>) -> bool {
    let wants = &ask.resources;
    class.takes_work()
        && class.port_free
        && wants.cpu_milli <= class.cpu_milli
        && wants.memory <= class.memory
        && wants.disk <= class.disk
}

/// Whether nodes of the flavor may ever run the job.
pub fn may_ever_run(flavor: &Flavor, ask: &Ask<'_>) -> bool {
    constraints_hold(flavor, ask) && could_ever_hold(flavor, ask)
}

/// Everything that rules the class out. Of those that are about size, only the one that says
/// more is named: what can never fit, or gets no part of what is there, does not also lack room.
pub fn verdict(class: &Class, ask: &Ask<'_>) -> Vec<Reason> {
    let mut reasons: Vec<Reason> = CHECKS.iter().filter(|(_, out)| out(class, ask)).map(|(r, _)| *r).collect();
    if reasons.iter().any(|r| matches!(r, Reason::NoMatchingDevice | Reason::FractionNotEnforced)) {
        reasons.retain(|r| *r != Reason::Resources);
    }
    reasons
}

/// Whether the class would do, now or once something there ends, if its devices enforced the part that is asked for.
fn lacks_only_enforcement(class: &Class, ask: &Ask<'_>) -> bool {
    let accepted = ask.accepted();
    let (ever, ever_accepted) = (could_ever_hold(&class.flavor, ask), could_ever_hold(&class.flavor, &accepted));
    ever_accepted && (!ever || !has_room(class, ask) && has_room(class, &accepted))
}

/// Whether such nodes can run the job's kind of program at all.
pub(crate) fn has_runtime(flavor: &Flavor, spec: &JobSpec) -> bool {
    !spec.needs_engine() || has_engine(&flavor.labels)
}

/// Place, labels, price, runtime: what no release of capacity can change.
pub fn constraints_hold(flavor: &Flavor, ask: &Ask<'_>) -> bool {
    let c = &ask.constraints;
    let place = |want: &Option<_>, have: &Option<_>| want.is_none() || want == have;
    has_runtime(flavor, ask)
        && place(&c.region, &flavor.region)
        && place(&c.zone, &flavor.zone)
        && place(&c.rack, &flavor.rack)
        && c.labels.iter().all(|(key, value)| flavor.labels.get(key) == Some(value))
        && c.max_cost_per_hour
            .is_none_or(|max| cost_per_hour(flavor, ask).saturating_mul(ask.most_replicas().into()) <= max)
}

/// Millionths per hour of one replica's devices on such a node.
pub fn cost_per_hour(flavor: &Flavor, ask: &Ask<'_>) -> u64 {
    if flavor.cost_per_hour.is_empty() {
        return 0;
    }
    let dearest = flavor.devices.iter().filter_map(|device| device_cost(flavor, device, ask)).max().unwrap_or(0) / 1000;
    u64::try_from(dearest).unwrap_or(u64::MAX)
}

/// What one replica's part of such devices costs, in thousandths of millionths an hour; None where it gets none.
fn device_cost(flavor: &Flavor, device: &DeviceFlavor, ask: &Ask<'_>) -> Option<u128> {
    let price = flavor.cost_per_hour.get(&device.device_type).copied().unwrap_or(0);
    let milli = match devices::divided(device, ask) {
        Some(shape) => shape.milli().into(),
        None => devices::suits(device, ask).then(|| ask.resources.gpu.milli())?,
    };
    Some(u128::from(price) * u128::from(milli))
}

/// The lowest that one replica's devices may cost on such a node, in thousandths of millionths an hour.
pub fn lowest_cost(flavor: &Flavor, ask: &Ask<'_>) -> u128 {
    flavor.devices.iter().filter_map(|device| device_cost(flavor, device, ask)).min().unwrap_or(0)
}

/// Whether an empty node of this flavor could hold one replica.
pub fn could_ever_hold(flavor: &Flavor, ask: &Ask<'_>) -> bool {
    let wants = &ask.resources;
    wants.cpu_milli <= flavor.cpu_milli
        && wants.memory <= flavor.memory
        && wants.disk <= flavor.disk
        && devices::could_hold(flavor, ask)
}

/// What a node may have too little of, in the words of an explanation.
pub const DIMENSIONS: [&str; 5] = ["devices", "CPU", "memory", "disk", "ports"];

/// Of which of [`DIMENSIONS`] the class has too little free for one replica now.
pub fn lacks(class: &Class, ask: &Ask<'_>) -> [bool; 5] {
    let wants = &ask.resources;
    [
        devices::fit(class, ask).is_none(),
        wants.cpu_milli > class.cpu_milli,
        wants.memory > class.memory,
        wants.disk > class.disk,
        !class.port_free,
    ]
}

/// How many replicas a node of the class has room for now, one after the other: all but the constraints, and ports.
pub fn room(class: &Class, ask: &Ask<'_>) -> u64 {
    if !may_have_room(class, ask) {
        return 0;
    }
    let wants = &ask.resources;
    let rest = [(class.cpu_milli, wants.cpu_milli), (class.memory, wants.memory), (class.disk, wants.disk)];
    let times = |all: u64, each: u64| all.checked_div(each).unwrap_or(u64::MAX);
    rest.into_iter().fold(devices::room(class, ask), |room, (all, each)| room.min(times(all, each)))
}

/// Whether the class has room for one replica now.
pub fn has_room(class: &Class, ask: &Ask<'_>) -> bool {
    !lacks(class, ask).contains(&true)
}
