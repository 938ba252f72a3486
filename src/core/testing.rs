//! Small builders for tests here and in the packages above. Not part of the product.

use crate::apply::{BatchOutcome, apply_batch};
use crate::audit::{Action, Actor, Check, Record, Refs};
use crate::command::{Answer, Batch, Submission};
use crate::id::{DeviceType, Digest16, Incarnation, ModelId, NodeName, RequestId, TenantId, VersionId};
use crate::job::JobSpec;
use crate::node::{Device, DeviceKind, NodeKind, NodeSpec, PortRange};
use crate::plan::{Intent, Queueing, plan};
use crate::reason::Refusal;
use crate::resources::{Gpus, Resources};
use crate::sharing::Sharing;
use crate::state::State;
use std::sync::Arc;

/// Says that a test can't be tried here, on the process' own stderr: what a test prints libtest keeps to itself, unless it
/// fails. The caller then returns.
pub fn skipped(why: impl std::fmt::Display) {
    let thread = std::thread::current();
    // libtest gives a test's thread its name.
    let line = format!("SKIPPED: {}: {why}\n", thread.name().unwrap_or("a test"));
    // Where nobody listens there is nobody to tell.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}

/// A node of `gpus` H100s in islands of four, 64 CPUs, 512 GiB.
pub fn node_spec(gpus: u16) -> NodeSpec {
    let device = |i: u16| Device {
        uuid: format!("GPU-{i:04}").into(),
        kind: DeviceKind::Gpu,
        device_type: DeviceType::new("H100-80G").expect("a valid name"),
        memory: 80 << 30,
        island: i / 4,
        numa: None,
        mig_profile: None,
        healthy: true,
        sharing: Sharing::Simulated,
    };
    NodeSpec {
        host: "127.0.0.1".into(),
        ports: Some(PortRange { first: 31000, last: 31999 }),
        cpu_milli: 64_000,
        memory: 512 << 30,
        disk: 4 << 40,
        devices: (0..gpus).map(device).collect(),
        labels: Default::default(),
        region: None,
        zone: None,
        rack: None,
        cost_per_hour: Default::default(),
        simulated: true,
    }
}

/// The same as a machine that is there: nothing keeps anybody to parts of its GPUs.
pub fn real_node_spec(gpus: u16) -> NodeSpec {
    let mut spec = NodeSpec { simulated: false, ..node_spec(gpus) };
    spec.devices.iter_mut().for_each(|device| device.sharing = Sharing::None);
    spec
}

/// Registers worker `name`.
pub fn register(name: &str, spec: NodeSpec) -> Intent {
    let name = NodeName::new(name).expect("a valid name");
    Intent::Register { name, kind: NodeKind::Worker, incarnation: Incarnation(1), spec: Arc::new(spec) }
}

/// A one-replica job of `tenant` that asks for `gpu`.
pub fn job_spec(tenant: &str, gpu: Gpus) -> JobSpec {
    let tenant = TenantId::new(tenant).expect("a valid name");
    let model = ModelId::new("m1").expect("a valid name");
    let version = VersionId::new("v1").expect("a valid name");
    JobSpec::plain(tenant, model, version, Resources { gpu, ..Resources::default() })
}

/// Schedules `spec` under a client-chosen id.
pub fn schedule(request: &str, spec: JobSpec) -> Intent {
    let body = Digest16::of(&[format!("{spec:?}").as_bytes()]);
    let request = RequestId::new(request).expect("a valid name");
    let submission = Submission { request, body, keyed: true, spec: Arc::new(spec) };
    Intent::Schedule { submission, queueing: Queueing::Wait, check_plan: None }
}

/// The same, wanted by `subject`.
pub fn by(subject: &str, intent: Intent) -> Intent {
    let actor = Actor { subject: subject.into(), tenant: None, token: None, node: None, issuer: None };
    Intent::By { actor, intent: Box::new(intent) }
}

/// Plans and applies one intent at the state's own time.
///
/// # Errors
/// The refusal of the plan or of the first refused command.
pub fn try_run(state: &mut State, intent: Intent) -> Result<Vec<Answer>, Refusal> {
    let at_ms = state.meta().now_ms;
    try_run_at(state, intent, at_ms)
}

/// Plans and applies one intent at `at_ms`.
///
/// # Errors
/// The refusal of the plan or of the first refused command.
pub fn try_run_at(state: &mut State, intent: Intent, at_ms: u64) -> Result<Vec<Answer>, Refusal> {
    let tick = Batch { base: state.meta().base, at_ms, commands: Vec::new(), ..Batch::default() };
    apply_batch(state, &tick);
    let commands = plan(state, &intent)?.commands;
    match apply_batch(state, &Batch { base: state.meta().base, at_ms, commands, ..Batch::default() }) {
        BatchOutcome::Applied(answers) => answers.into_iter().collect(),
        BatchOutcome::Superseded { base } => unreachable!("planned at base {base}"),
    }
}

/// Like [`try_run`], for what must work.
pub fn run(state: &mut State, intent: Intent) -> Vec<Answer> {
    try_run(state, intent.clone()).unwrap_or_else(|refusal| panic!("{intent:?}: {refusal}"))
}

/// What `subject` did, for an audit trail; the checks are none.
pub fn record(subject: &str, action: Action, object: String, at_ms: u64) -> Record {
    Record {
        at_ms,
        actor: Actor { subject: subject.into(), tenant: None, token: None, node: None, issuer: None },
        action,
        object: object.into(),
        checks: [Check::default(); 7],
        refs: Refs::default(),
        refused: None,
        count: 1,
    }
}

/// The state as a build that runs that feature level would leave it.
pub fn set_level(state: &mut State, level: u32) {
    state.change_meta(|meta| meta.level = level);
}

/// Makes a state that goes another way than its likes, as one whose apply is not deterministic would: the next new
/// tenant gets another number.
pub fn lead_astray(state: &mut State) {
    state.change_meta(|meta| meta.next_tenant += 100);
}

/// Flips a bit in the end of the audit trail, as if this member had been told another history.
pub fn fork_trail(state: &mut State) {
    // With the sum of the rows, which is stored beside the counters: else its own start would refuse it.
    state.change_meta(|_| {});
    state.fork_audit();
}

#[cfg(test)]
mod tests {
    #[test]
    #[ignore = "the other one runs it"]
    fn passes_without_having_been_tried() {
        super::skipped("there is no unicorn here");
    }

    #[test]
    fn a_skip_is_seen_though_its_test_passes() {
        let (own, name) = (std::env::current_exe().unwrap(), "testing::tests::passes_without_having_been_tried");
        let run = std::process::Command::new(own).args(["--exact", "--ignored", name]).output().unwrap();
        let told = String::from_utf8(run.stderr).unwrap();
        assert!(run.status.success(), "{told}");
        assert!(told.starts_with("SKIPPED: ") && told.ends_with(": there is no unicorn here\n"), "{told}");
    }
}
