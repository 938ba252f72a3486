//! The replicas that listen, in the form in which Prometheus asks for targets
//! (http_sd), so that one scrape job finds them all. It does not scrape.

use super::{Call, Service, endpoints};
use crate::api::error::Failure;
use nf_core::id::{NodeName, TenantId};
use nf_core::node::NodeState;
use nf_core::state::State;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// One group of targets, as Prometheus defines it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TargetBody {
    /// `host:port`.
    pub targets: Vec<String>,
    /// `tenant`, `model`, `version`, `node`; `draining` (`true`) of a copy that is about to stop. For relabelling alone,
    /// since they change, what an endpoint says: `__meta_nf_state` and `__meta_nf_traffic` (`true` or `false`).
    pub labels: BTreeMap<String, String>,
}

impl Service {
    /// Every replica that has an address and may answer there.
    pub async fn targets(&self, call: &Call) -> Result<Vec<TargetBody>, Failure> {
        let view = self.read(call).await?;
        let tenant = call.tenant.clone();
        let mine = move |id: &TenantId| tenant.as_ref().is_none_or(|only| only == id);
        super::off_thread(move || targets(&view.state, mine)).await
    }
}

fn targets(state: &State, mine: impl Fn(&TenantId) -> bool) -> Vec<TargetBody> {
    let mut out = Vec::new();
    for job in state.jobs().values().filter(|job| mine(&job.spec.tenant)) {
        for endpoint in endpoints::of_job(state, job) {
            // What was given up is not there to be scraped; what is only silent may be.
            let node = NodeName::new(&endpoint.node).ok();
            if node.and_then(|node| state.node_named(&node)).is_none_or(|node| node.state == NodeState::Down) {
                continue;
            }
            let draining = (endpoint.state == "Draining").then(|| ("draining", "true".to_owned()));
            let labels = [
                ("tenant", endpoint.tenant_id),
                ("model", endpoint.model_id),
                ("version", endpoint.model_version),
                ("node", endpoint.node),
                ("__meta_nf_state", endpoint.state),
                ("__meta_nf_traffic", endpoint.traffic.to_string()),
            ];
            out.push(TargetBody {
                targets: vec![endpoint.address],
                labels: labels.into_iter().chain(draining).map(|(key, value)| (key.to_owned(), value)).collect(),
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::command::{Report, ReportKind};
    use nf_core::id::{Generation, Incarnation, JobNo, NodeNo, RequestId};
    use nf_core::job::Stage;
    use nf_core::plan::Intent;
    use nf_core::reason::Reason;
    use nf_core::resources::Gpus;
    use nf_core::testing::{job_spec, node_spec, register, run, schedule};

    #[test]
    fn each_replica_that_listens_is_a_target() {
        let mut state = State::new();
        run(&mut state, register("n1", node_spec(4)));
        run(&mut state, schedule("r1", job_spec("t1", Gpus::Milli(500))));
        run(&mut state, schedule("r2", job_spec("t2", Gpus::Milli(500))));
        run(&mut state, schedule("waits", job_spec("t2", Gpus::Whole(64))));
        let all = targets(&state, |_| true);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].targets, ["127.0.0.1:31000"]);
        assert_eq!((all[0].labels["tenant"].as_str(), all[0].labels["node"].as_str()), ("t1", "n1"));
        assert_eq!(targets(&state, |tenant| tenant.as_str() == "t2").len(), 1);
    }

    /// State and traffic of each target.
    fn told(state: &State) -> Vec<(String, String)> {
        let mut all = targets(state, |_| true);
        for target in &all {
            let draining = target.labels.get("draining").map(String::as_str);
            assert_eq!(draining, (target.labels["__meta_nf_state"] == "Draining").then_some("true"));
        }
        let take = |t: &mut TargetBody, name: &str| t.labels.remove(name).unwrap();
        all.iter_mut().map(|t| (take(t, "__meta_nf_state"), take(t, "__meta_nf_traffic"))).collect()
    }

    #[test]
    fn a_target_says_whether_it_serves_and_is_there_while_it_drains() {
        let mut state = State::new();
        run(&mut state, register("n1", node_spec(1)));
        run(&mut state, schedule("r1", job_spec("t1", Gpus::Whole(1))));
        let line = |state: &str, traffic: &str| vec![(state.to_owned(), traffic.to_owned())];
        assert_eq!(told(&state), line("Scheduled", "false"));
        let mut to = |kind| {
            let reports = vec![Report { job: JobNo(1), replica: 0, generation: Generation(1), kind }];
            let node = NodeName::new("n1").unwrap();
            run(&mut state, Intent::Reports { node, incarnation: Incarnation(1), reports });
            told(&state)
        };
        assert_eq!(to(ReportKind::Stage(Stage::Starting)), line("Starting", "false"));
        assert_eq!(to(ReportKind::Stage(Stage::Ready)), line("Ready", "true"));
        let request = RequestId::new("r1").unwrap();
        run(&mut state, Intent::Stop { request, tenant: None, why: Reason::StoppedByUser });
        assert_eq!(told(&state), line("Draining", "false"));
        run(&mut state, Intent::NodeStates(vec![(NodeNo(1), Incarnation(1), NodeState::Down)]));
        assert_eq!(told(&state), []);
    }
}
