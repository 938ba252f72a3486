//! Prefetches: jobs that run nothing. Their one replica brings a version's files to the node that they name, and holds them
//! in its cache as long as the job lasts. What lets a job in lets them in; how files come is the agent's business. ADR 91.

use crate::job::{JobSpec, Restart, Runtime};
use crate::reason::Refusal;
use crate::resources::Resources;

impl JobSpec {
    /// It keeps the model's files on its node, and runs and serves nothing.
    pub fn is_prefetch(&self) -> bool {
        self.runtime == Runtime::Prefetch
    }

    /// How often it asks for its resources, as a part of the workload that room is kept for.
    pub fn asks(&self) -> u64 {
        if self.is_prefetch() { 0 } else { self.replicas.into() }
    }
}

/// What brings files to one node holds nothing else there.
///
/// # Errors
/// The first field that says otherwise.
pub(crate) fn judge(spec: &JobSpec) -> Result<(), Refusal> {
    if !spec.is_prefetch() {
        return Ok(());
    }
    let c = &spec.constraints;
    let alone = "a prefetch brings a version's files to one node and runs nothing";
    let wrong = [
        ("constraints.node", c.node.is_none(), "name the node that it is for"),
        ("replicas", spec.replicas != 1 || spec.gang, "one for each node"),
        ("scaling", spec.scaling.is_some(), "leave it out"),
        ("resources", spec.resources != Resources::default(), "leave them out"),
        ("constraints.exclusive", c.exclusive, "leave it out"),
        ("constraints.restart", c.restart != Restart::Always, "leave it out: it lasts until it is stopped"),
    ];
    match wrong.into_iter().find(|(_, wrong, _)| *wrong) {
        Some((field, _, what)) => Err(Refusal::invalid(field, format!("{field}: {alone}: {what}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::job::{JobSpec, Restart, Runtime};
    use crate::resources::Gpus;
    use crate::state::State;
    use crate::testing::{job_spec, node_spec, register, run, schedule, try_run};

    fn prefetch(node: &str) -> JobSpec {
        let mut spec = job_spec("t1", Gpus::None);
        (spec.runtime, spec.resources, spec.manifest) = (Runtime::Prefetch, Default::default(), Some([7; 32]));
        spec.constraints.node = crate::id::NodeName::new(node).ok();
        spec
    }

    #[test]
    fn a_prefetch_holds_files_and_nothing_else() {
        let mut state = State::new();
        run(&mut state, register("n1", node_spec(1)));
        let refused = |state: &mut State, change: &dyn Fn(&mut JobSpec)| {
            let mut spec = prefetch("n1");
            change(&mut spec);
            try_run(state, schedule("r", spec)).unwrap_err().field
        };
        for (field, change) in [
            ("constraints.node", &(|spec: &mut JobSpec| spec.constraints.node = None) as &dyn Fn(&mut JobSpec)),
            ("replicas", &|spec| spec.replicas = 2),
            ("resources", &|spec| spec.resources.gpu = Gpus::Whole(1)),
            ("constraints.exclusive", &|spec| spec.constraints.exclusive = true),
            ("constraints.restart", &|spec| spec.constraints.restart = Restart::Never),
        ] {
            assert_eq!(refused(&mut state, change).as_deref(), Some(field));
        }
        run(&mut state, schedule("r1", prefetch("n1")));
        let job = state.jobs().values().next().unwrap();
        assert!(job.replicas[0].allocation().is_some_and(|alloc| alloc.shares.is_empty()));
        assert!(
            job.can_roll(&crate::rollout::Next::of(&job.spec), &Default::default()).is_err(),
            "it has no version to serve"
        );
        assert_eq!(crate::invariants::check(&state), []);
    }

    #[test]
    fn a_drain_waits_for_no_files() {
        let mut state = State::new();
        run(&mut state, register("n1", node_spec(1)));
        run(&mut state, schedule("r1", prefetch("n1")));
        let cordon = crate::node::Cordon {
            by: "ops".into(),
            reason: "fans".into(),
            at_ms: 0,
            drain: Some(crate::node::Drain { within_ms: None, force: false }),
        };
        let node = state.nodes().values().next().unwrap().name.clone();
        run(&mut state, crate::plan::Intent::Cordon { node, cordon: Some(cordon) });
        run(&mut state, crate::plan::Intent::Moves);
        let job = state.jobs().values().next().unwrap();
        assert!(!matches!(job.replicas[0].phase, crate::job::Phase::Held { .. }), "{:?}", job.replicas[0].phase);
    }
}
