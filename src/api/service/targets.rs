//! The replicas that listen, in the form in which Prometheus asks for targets
//! (http_sd), so that one scrape job finds them all. It does not scrape.

use super::{Call, Service};
use crate::api::error::Failure;
use nf_core::job::Phase;
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
    /// `tenant`, `model`, `version` and `node`.
    pub labels: BTreeMap<String, String>,
}

impl Service {
    /// Every replica that has an address and may answer there.
    pub async fn targets(&self, call: &Call) -> Result<Vec<TargetBody>, Failure> {
        let view = self.read(call).await?;
        let tenant = call.tenant.clone();
        let mine = move |id: &nf_core::id::TenantId| tenant.as_ref().is_none_or(|only| only == id);
        super::off_thread(move || targets(&view.state, mine)).await
    }
}

fn targets(state: &State, mine: impl Fn(&nf_core::id::TenantId) -> bool) -> Vec<TargetBody> {
    let mut out = Vec::new();
    for job in state.jobs().values().filter(|job| mine(&job.spec.tenant)) {
        for replica in &job.replicas {
            let Phase::Held { alloc, .. } = &replica.phase else { continue };
            let Some((node, port)) = state.node(alloc.node).zip(alloc.port) else { continue };
            // What was given up is not there to be scraped; what is only silent may be.
            if node.state == NodeState::Down {
                continue;
            }
            let labels = [
                ("tenant", job.spec.tenant.to_string()),
                ("model", job.spec.model.to_string()),
                ("version", job.spec_of(replica.revision).version.to_string()),
                ("node", node.name.to_string()),
            ];
            out.push(TargetBody {
                targets: vec![format!("{}:{port}", node.spec.host)],
                labels: labels.map(|(key, value)| (key.to_owned(), value)).into(),
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
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
}
