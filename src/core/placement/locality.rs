//! Weights that are there already: a node on which a replica's files were verified, and are held, needs to fetch none of
//! them for the next replica of that version. Which nodes those are follows from the live jobs, so every member knows
//! it and nothing is stored; what is in a node's cache beside that, it may throw out at any time, and is not counted.
//! A preference among places that the search found; it filters nothing.

use super::policy::Policy;
use super::{Found, Limits, Terms, filter, score};
use crate::id::NodeNo;
use crate::job::{Job, JobSpec, Phase, Stage};
use crate::sharing::Ask;
use crate::state::State;
use imbl::OrdMap;
use std::cmp::Reverse;

/// The term of a node that has the files; of any other it is 0.
const HERE: i32 = 1000;
/// Nodes with the files that one search looks at, lowest numbers first, so that it stays as short as it is.
const LOOKED_AT: usize = 64;

/// Nodes that hold a version's files, by the digest of its manifest, each with how many replicas hold them there.
#[derive(Clone, Debug, Default)]
pub(crate) struct FilesAt(OrdMap<([u8; 32], NodeNo), u32>);

impl FilesAt {
    pub(crate) fn note(&mut self, job: &Job) {
        for key in held(job) {
            let count = self.0.get(&key).copied().unwrap_or(0) + 1;
            self.0.insert(key, count);
        }
    }

    pub(crate) fn forget(&mut self, job: &Job) {
        for key in held(job) {
            match self.0.get(&key).copied().unwrap_or(0) {
                0 | 1 => self.0.remove(&key),
                count => self.0.insert(key, count - 1),
            };
        }
    }

    fn of(&self, manifest: [u8; 32]) -> impl Iterator<Item = NodeNo> + '_ {
        let all = (manifest, NodeNo(0))..=(manifest, NodeNo(u32::MAX));
        self.0.range(all).map(|((_, node), _)| *node)
    }
}

impl State {
    /// Nodes that hold the files of the version with that manifest, for a replica that lives there.
    pub fn nodes_with(&self, manifest: [u8; 32]) -> impl Iterator<Item = NodeNo> + '_ {
        self.files_at.of(manifest)
    }
}

/// What its replicas hold where: from the end of their verifying on, until they are told to stop.
fn held(job: &Job) -> impl Iterator<Item = ([u8; 32], NodeNo)> + '_ {
    job.replicas.iter().filter_map(|replica| match &replica.phase {
        Phase::Held { alloc, stage: Stage::Starting | Stage::Ready | Stage::NotReady } => {
            Some((job.spec_of(replica.revision).manifest?, alloc.node))
        }
        _ => None,
    })
}

/// The best place once nodes that have the files are preferred, as far as [`super::Term::Locality`] counts.
pub(super) fn prefer(state: &State, spec: &JobSpec, limits: &Limits, found: Found) -> Found {
    let rules = &*state.rules;
    let Some(manifest) = spec.manifest else { return found };
    // Who names its node, or wants any, has nothing to compare.
    if spec.constraints.node.is_some() || rules.chosen.policy == Policy::Random {
        return found;
    }
    let ask = Ask::of(state, spec);
    let mut best = found;
    for node in state.nodes_with(manifest).take(LOOKED_AT).filter(|node| !limits.held.contains(node)) {
        let Some(class) = state.capacity().class(node) else { continue };
        let within = limits.within.as_ref().is_none_or(|domain| domain.has(class.flavor.names()));
        if !within || !filter::may_have_room(class, &ask) || !filter::may_ever_run(&class.flavor, &ask) {
            continue;
        }
        let Some((terms, device)) = score::terms(class, &ask, rules) else { continue };
        let siblings = limits.siblings.get(&node).copied().unwrap_or(0);
        let terms = Terms { locality: HERE, ..terms.with_siblings(spec, siblings) };
        let score = terms.total(rules.chosen.weights);
        let better = |than: (NodeNo, i64)| (score, Reverse(node)) > (than.1, Reverse(than.0));
        if better((best.node, best.score)) {
            let runner_up = if best.node == node { best.runner_up } else { Some((best.node, best.score)) };
            best = Found { score, node, terms, device, class: class.clone(), runner_up, candidates: best.candidates };
        } else if node != best.node && best.runner_up.is_none_or(better) {
            best.runner_up = Some((node, score));
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::super::place_one;
    use super::*;
    use crate::codec;
    use crate::command::{Report, ReportKind};
    use crate::id::NodeName;
    use crate::job::Arrangement;
    use crate::plan::Intent;
    use crate::resources::Gpus;
    use crate::testing::{job_spec, node_spec, register, run, schedule};

    /// Three alike nodes; a replica of that manifest is Ready on the third.
    fn third_has(manifest: [u8; 32]) -> State {
        let mut state = State::new();
        for name in ["n1", "n2", "n3"] {
            run(&mut state, register(name, node_spec(8)));
        }
        let mut spec = job_spec("t1", Gpus::None);
        (spec.manifest, spec.constraints.node) = (Some(manifest), NodeName::new("n3").ok());
        run(&mut state, schedule("first", spec));
        state
    }

    fn is_at(state: &mut State, stage: Stage) {
        let job = state.jobs().values().next().unwrap().clone();
        let (node, generation) = (job.replicas[0].allocation().unwrap().node, job.replicas[0].generation);
        let report = Report { job: job.no, replica: 0, generation, kind: ReportKind::Stage(stage) };
        let row = state.node(node).unwrap();
        let (name, incarnation) = (row.name.clone(), row.incarnation);
        let reports = vec![report];
        run(state, Intent::Reports { node: name, incarnation, reports });
    }

    fn wants(manifest: [u8; 32]) -> JobSpec {
        JobSpec { manifest: Some(manifest), ..job_spec("t1", Gpus::Whole(1)) }
    }

    #[test]
    fn of_places_alike_the_one_that_has_the_weights_is_taken_and_says_why() {
        let mut state = third_has([7; 32]);
        let place = |state: &State, spec: &JobSpec| {
            let pick = place_one(state, spec, &Limits::default()).unwrap();
            (pick.alloc.node, pick.why)
        };
        for stage in [Stage::Downloading, Stage::Verifying] {
            is_at(&mut state, stage);
            assert_eq!(place(&state, &wants([7; 32])).0, NodeNo(1), "not there yet: {stage:?}");
        }
        is_at(&mut state, Stage::Ready);
        let (node, why) = place(&state, &wants([7; 32]));
        assert_eq!((node, why.terms.locality), (NodeNo(3), HERE));
        assert_eq!(why.score, why.terms.total(state.rules.chosen.weights));
        assert_eq!(why.runner_up.map(|(node, _)| node), Some(NodeNo(1)));
        assert_eq!(place(&state, &wants([8; 32])).0, NodeNo(1), "another version's files");
        let held = Limits { held: vec![NodeNo(3)], ..Limits::default() };
        assert_eq!(place_one(&state, &wants([7; 32]), &held).unwrap().alloc.node, NodeNo(1), "kept for others");
        let mut apart = wants([7; 32]);
        apart.constraints.arrangement = Arrangement::Spread;
        let siblings = Limits { siblings: [(NodeNo(3), 1)].into(), ..Limits::default() };
        assert_eq!(place_one(&state, &apart, &siblings).unwrap().alloc.node, NodeNo(1), "spreading goes before");
    }

    #[test]
    fn no_gpu_is_torn_open_for_files_that_could_be_fetched() {
        let mut state = third_has([7; 32]);
        is_at(&mut state, Stage::Ready);
        // The first node has a GPU in use already.
        let mut half = job_spec("t1", Gpus::Milli(500));
        half.constraints.node = NodeName::new("n1").ok();
        run(&mut state, schedule("half", half));
        let part = JobSpec { manifest: Some([7; 32]), ..job_spec("t1", Gpus::Milli(500)) };
        assert_eq!(place_one(&state, &part, &Limits::default()).unwrap().alloc.node, NodeNo(1));
    }

    #[test]
    fn whoever_stops_holds_nothing_and_a_load_knows_what_was_held() {
        let mut state = third_has([7; 32]);
        is_at(&mut state, Stage::Ready);
        state.take_changes();
        let with = |state: &State| state.nodes_with([7; 32]).collect::<Vec<_>>();
        assert_eq!(with(&state), [NodeNo(3)]);
        assert_eq!(with(&State::from_rows(state.live_rows()).unwrap()), [NodeNo(3)]);
        let request = crate::id::RequestId::new("first").unwrap();
        run(&mut state, Intent::Stop { request, tenant: None, why: crate::reason::Reason::StoppedByUser });
        assert_eq!(with(&state), []);
    }

    #[test]
    fn terms_without_locality_have_the_bytes_that_they_always_had() {
        for arrangement in [0, 1, 999, 1000] {
            let terms = |locality| Terms { fragmentation: 500, fit: 7, topology: 998, cost: 3, arrangement, locality };
            let before = codec::body(&(500, 7, 998, 3, arrangement), Vec::new());
            assert_eq!(codec::body(&terms(0), Vec::new()), before);
            for locality in [0, HERE] {
                let bytes = codec::body(&terms(locality), Vec::new());
                assert_eq!(codec::exact::<Terms>(0, &bytes).unwrap(), terms(locality));
            }
        }
    }
}
