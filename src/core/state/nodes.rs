//! The setter of nodes, and what is derived of them: their classes, and what their replicas cost.

use super::*;

impl State {
    pub(crate) fn reclass_all(&mut self) {
        let nodes: Vec<NodeNo> = self.nodes.keys().copied().collect();
        nodes.into_iter().for_each(|no| self.reclass(no));
        let metered: Vec<TenantNo> = self.meters.keys().copied().collect();
        metered.into_iter().for_each(|no| self.set_due(no));
        self.make_rules(WORKLOAD);
    }

    pub(super) fn reclass(&mut self, no: NodeNo) {
        if let (Some(node), Some(used)) = (self.nodes.get(&no), self.ledger.nodes.get(&no)) {
            self.capacity.update(node, used);
        }
    }

    pub(crate) fn put_node(&mut self, node: Node) {
        let no = node.no;
        self.remember(RowKey::Node(no), |state| Before::Node(state.nodes.get(&no).cloned()));
        self.node_names.insert(node.name.clone(), no);
        self.ledger.resize(no, node.spec.devices.len());
        // What runs there costs what the node says from now on.
        let repriced = self.nodes.get(&no).is_some_and(|old| old.spec != node.spec);
        let gone = if repriced { self.rates_on(no) } else { Vec::new() };
        if node.has_faults() {
            self.faulty.insert(no)
        } else {
            self.faulty.remove(&no)
        };
        self.nodes.insert(no, Arc::new(node));
        // Its devices may be of other types now.
        self.claims_changed = true;
        for (job, gone) in gone {
            let come = Rates::of(self, &job.spec, &job.replicas, job.ran);
            self.meter_job(job.tenant, &gone, &come);
        }
        let known = self.capacity.kinds_of_hardware();
        self.reclass(no);
        let prices = self.nodes.get(&no).into_iter().flat_map(|node| node.spec.cost_per_hour.values());
        let dearer = prices.max().is_some_and(|most| *most > self.rules.dearest);
        if self.capacity.kinds_of_hardware() != known || dearer {
            self.make_rules(WORKLOAD);
        }
        self.room += 1;
    }

    /// What each job on a node uses.
    fn rates_on(&self, no: NodeNo) -> Vec<(Arc<Job>, Rates)> {
        let jobs: BTreeMap<JobNo, Arc<Job>> = self.replicas_on(no).map(|(job, ..)| (job.no, job.clone())).collect();
        jobs.into_values().map(|job| (job.clone(), Rates::of(self, &job.spec, &job.replicas, job.ran))).collect()
    }
}
