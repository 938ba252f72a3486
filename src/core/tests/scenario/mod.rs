//! The player of golden scenarios: reads a line, does it to a state, and says
//! what became of it.

mod words;

use nf_core::apply::{BatchOutcome, apply_batch};
use nf_core::autoscaler::Why;
use nf_core::budget::{Window, judge};
use nf_core::command::{Answer, Batch, Command, DeviceFault, Report, ReportKind};
use nf_core::fault::Fault;
use nf_core::id::{NodeNo, RequestId};
use nf_core::job::{Job, Share};
use nf_core::node::{Cordon, Drain, DrainState, NodeState};
use nf_core::placement::explain;
use nf_core::plan::{Intent, draft, plan};
use nf_core::reason::{Reason, Refusal};
use nf_core::scaling::Target;
use nf_core::sharing::Kept;
use nf_core::state::State;
use nf_core::view::{self, JobView};
use nf_core::{invariants, testing};
use std::collections::BTreeMap;
use std::sync::Arc;
use words::Words;

/// Log time at the start of each scenario.
const START_MS: u64 = 1_000_000;

/// The scenario with what is said now below each of its commands.
pub fn play(text: &str) -> String {
    let mut player = Player { state: State::new(), now: START_MS, ended: BTreeMap::new() };
    let mut out = String::new();
    for line in text.lines().filter(|line| !line.starts_with("    ")) {
        out.push_str(line);
        out.push('\n');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        for said in player.line(line) {
            out.push_str("    ");
            out.push_str(&said);
            out.push('\n');
        }
        assert_eq!(invariants::check(&player.state), [], "after {line}");
    }
    out
}

struct Player {
    state: State,
    now: u64,
    ended: BTreeMap<RequestId, Job>,
}

impl Player {
    fn line(&mut self, line: &str) -> Vec<String> {
        let words = Words::new(line);
        match words.verb() {
            "node" => {
                let mut intent = testing::register(words.name(), words.node());
                if let Intent::Register { incarnation, .. } = &mut intent {
                    incarnation.0 = words.number("incarnation", 1);
                }
                self.quiet(intent)
            }
            "tenant" => self.quiet(Intent::SetQuota { tenant: words.tenant(), quota: words.quota() }),
            "policy" => self.quiet(Intent::SetPlacement { chosen: words.policy(), seen: None }),
            "job" => self.job(&words),
            "plan" => self.dry(&words),
            "stop" => {
                let intent = Intent::Stop { request: words.request(), tenant: None, why: Reason::StoppedByUser };
                self.about_job(intent, &words.request())
            }
            "cordon" => self.cordon(&words, None),
            "drain" => {
                let within = words.number("deadline", 0) * 1000;
                let drain = Drain { within_ms: (within > 0).then_some(within), force: words.flag("force") };
                self.cordon(&words, Some(drain))
            }
            "moves" => self.moves(),
            "fault" => {
                let fault = Fault::Xid(words.number("xid", 0) as u16);
                let faults = vec![DeviceFault { uuid: self.uuid(&words), fault, simulated: true }];
                self.quiet(Intent::Faults { node: words.node_name(), incarnation: None, faults })
            }
            "heal" => {
                let (node, uuid) = (words.node_name(), self.uuid(&words));
                self.quiet(Intent::Heal { node, uuid, by: "operator".into() })
            }
            "uncordon" => self.quiet(Intent::Cordon { node: words.node_name(), cordon: None }),
            "suspect" => self.node_state(&words, NodeState::Suspect),
            "unknown" => self.node_state(&words, NodeState::Unknown),
            "down" => self.node_state(&words, NodeState::Down),
            "ready" => self.node_state(&words, NodeState::Ready),
            "stage" => self.report(&words, ReportKind::Stage(words.stage())),
            "ended" => self.report(&words, ReportKind::Ended { ok: words.flag("ok"), why: words.reason() }),
            "pass" => self.pass(),
            "scale" => {
                let target = Target {
                    replicas: words.number("to", 1) as u16,
                    why: Why::Asked,
                    inputs: None,
                    seen: None,
                    learned: None,
                };
                self.about_job(Intent::Scale { request: words.request(), tenant: None, target }, &words.request())
            }
            "budgets" => self.budgets(),
            "usage" => self.usage(&words),
            "explain" => self.explain(&words.request()),
            "remedy" => nf_core::placement::explain::remedy(&self.state, self.state.job_of(&words.request()).unwrap()),
            "show" => self.show(),
            "wait" => {
                self.now += words.number("ms", 0) + 1000 * words.number("s", 0);
                self.apply(Vec::new());
                Vec::new()
            }
            "superseded" => self.superseded(&words),
            other => panic!("no such command: {other}"),
        }
    }

    fn apply(&mut self, commands: Vec<Command>) -> Vec<Result<Answer, Refusal>> {
        let batch = Batch { base: self.state.meta().base, at_ms: self.now, commands, ..Batch::default() };
        let BatchOutcome::Applied(answers) = apply_batch(&mut self.state, &batch) else { panic!("superseded") };
        for change in self.state.take_changes() {
            if let (nf_core::rows::Table::History, Some(row)) = (change.table, change.value) {
                let job = nf_core::rows::read_history(&row).unwrap();
                self.ended.insert(job.request.clone(), job);
            }
        }
        answers
    }

    fn intent(&mut self, intent: &Intent) -> Result<Vec<Answer>, Refusal> {
        self.apply(Vec::new());
        let planned = plan(&self.state, intent)?;
        self.apply(planned.commands).into_iter().collect()
    }

    /// Says only what is refused.
    fn quiet(&mut self, intent: Intent) -> Vec<String> {
        self.intent(&intent).err().map(refused).into_iter().collect()
    }

    fn node_state(&mut self, words: &Words, to: NodeState) -> Vec<String> {
        let node = self.state.node_named(&words.node_name()).unwrap().clone();
        self.quiet(Intent::NodeStates(vec![(node.no, node.incarnation, to)]))
    }

    fn job(&mut self, words: &Words) -> Vec<String> {
        let intent = words.schedule();
        match self.intent(&intent) {
            Err(refusal) => vec![refused(refusal)],
            Ok(answers) => {
                let replay = matches!(answers[..], [Answer::Job { replayed: true, .. }]);
                let mut out = self.tell(&words.request());
                out[0].push_str(if replay { " (replay)" } else { "" });
                out
            }
        }
    }

    /// What would happen, and nothing does.
    fn dry(&self, words: &Words) -> Vec<String> {
        let Intent::Schedule { submission, .. } = words.schedule() else { return Vec::new() };
        let draft = draft(&self.state, &submission.spec);
        let place = |(replica, pick): &(u16, nf_core::placement::Pick)| {
            let (devices, node) = (devices(&pick.alloc), self.name(pick.alloc.node));
            let next = pick.why.runner_up.map(|(no, _)| format!(", then {}", self.name(no)));
            format!("replica {replica} on {node} {devices}{}", next.unwrap_or_default())
        };
        let mut out: Vec<String> = draft.picks.iter().map(place).collect();
        for placement in draft.claim.iter().flat_map(|claim| &claim.placements) {
            let (devices, node) = (devices(&placement.alloc), self.name(placement.alloc.node));
            out.push(format!("replica {} on {node} {devices} when others have given way", placement.replica));
        }
        out.extend(draft.blockers(&self.state, &submission.spec).iter().map(blocker));
        out
    }

    fn about_job(&mut self, intent: Intent, request: &RequestId) -> Vec<String> {
        match self.intent(&intent) {
            Err(refusal) => vec![refused(refusal)],
            Ok(_) => self.tell(request),
        }
    }

    /// A report on a replica as it is now: the truth, unless `generation=` says otherwise.
    fn report(&mut self, words: &Words, kind: ReportKind) -> Vec<String> {
        let job = self.state.job_of(&words.request()).unwrap().clone();
        let replica = words.number("replica", 0) as u16;
        let r = &job.replicas[usize::from(replica)];
        let own = r.allocation().map_or(NodeNo(words.number("node", 1) as u32), |alloc| alloc.node);
        let other = words.flag("other").then(|| r.other_allocation().expect("another copy").node);
        let node = self.state.node(other.unwrap_or(own)).unwrap().clone();
        let mut generation = r.copy_on(node.no).map_or(r.generation, |(generation, ..)| generation);
        generation.0 = words.number("generation", generation.0.into()) as u32;
        let reports = vec![Report { job: job.no, replica, generation, kind }];
        let incarnation = node.incarnation;
        self.about_job(Intent::Reports { node: node.name.clone(), incarnation, reports }, &words.request())
    }

    fn pass(&mut self) -> Vec<String> {
        self.apply(Vec::new());
        let planned = plan(&self.state, &Intent::PlaceWaiting).unwrap();
        let mut jobs: Vec<_> = planned
            .commands
            .iter()
            .filter_map(|command| match command {
                Command::Place { job, .. } | Command::Preempt { job, .. } | Command::Evict { job, .. } => {
                    Some(self.state.job(*job)?.request.clone())
                }
                _ => None,
            })
            .collect();
        jobs.dedup();
        for answer in self.apply(planned.commands) {
            answer.unwrap();
        }
        match jobs.is_empty() {
            true => vec!["nothing to place".into()],
            false => jobs.iter().flat_map(|request| self.tell(request)).collect(),
        }
    }

    fn uuid(&self, words: &Words) -> Arc<str> {
        let node = self.state.node_named(&words.node_name()).unwrap();
        node.spec.devices[words.number("device", 0) as usize].uuid.clone()
    }

    fn cordon(&mut self, words: &Words, drain: Option<Drain>) -> Vec<String> {
        let cordon = Cordon { by: "operator".into(), reason: "drill".into(), at_ms: 0, drain };
        self.quiet(Intent::Cordon { node: words.node_name(), cordon: Some(cordon) })
    }

    /// One pass over what has to leave where it is, and what is said of nodes that are drained.
    fn budgets(&mut self) -> Vec<String> {
        self.apply(Vec::new());
        let planned = plan(&self.state, &Intent::Budgets).unwrap().commands;
        let scaled = planned.iter().filter_map(|command| match command {
            Command::Scale { job, target } => {
                Some(format!("{} to {} {}", self.state.job(*job)?.request, target.replicas, target.why))
            }
            _ => None,
        });
        let out = scaled.collect();
        for answer in self.apply(planned) {
            answer.unwrap();
        }
        out
    }

    fn usage(&mut self, words: &Words) -> Vec<String> {
        self.apply(Vec::new());
        let tenant = self.state.tenant_named(&words.tenant()).unwrap();
        let standing = Window::ALL.map(|window| judge::standing(&self.state, tenant, window));
        let line = |s: judge::Standing| {
            let limit = s.limit.map_or_else(|| "no limit".to_owned(), |limit| format!("limit {limit}"));
            format!("{:?} this {}: {} used, {} reserved, {limit}", s.kind, s.window.name(), s.used, s.reserved)
        };
        standing.into_iter().flatten().map(line).collect()
    }

    fn moves(&mut self) -> Vec<String> {
        self.apply(Vec::new());
        let planned = plan(&self.state, &Intent::Moves).unwrap();
        let mut jobs: Vec<_> = planned
            .commands
            .iter()
            .filter_map(|command| match command {
                Command::Move { job, .. } | Command::Evict { job, .. } => Some(self.state.job(*job)?.request.clone()),
                _ => None,
            })
            .collect();
        jobs.dedup();
        for answer in self.apply(planned.commands) {
            answer.unwrap();
        }
        let mut out: Vec<String> = jobs.iter().flat_map(|request| self.tell(request)).collect();
        for node in self.state.nodes().values().filter(|node| node.drain != DrainState::None) {
            out.push(format!("{} {} {}", node.name, node.state.name(), node.drain.name()));
            for stay in nf_core::moves::outlook(&self.state, node.no).iter().filter(|look| look.to.is_none()) {
                out.extend(stay.blockers.iter().map(|b| format!("{} stays: {}", stay.request, blocker(b))));
            }
        }
        out
    }

    fn explain(&self, request: &RequestId) -> Vec<String> {
        let view = self.view(request);
        let mut out: Vec<String> = view.blockers.iter().map(blocker).collect();
        out.extend(view.position.map(|position| format!("position {position}")));
        out
    }

    /// Sends the request planned on an older base.
    fn superseded(&mut self, words: &Words) -> Vec<String> {
        let planned = plan(&self.state, &words.schedule()).unwrap();
        let batch =
            Batch { base: self.state.meta().base - 1, at_ms: self.now, commands: planned.commands, ..Batch::default() };
        match apply_batch(&mut self.state, &batch) {
            BatchOutcome::Superseded { .. } => vec!["superseded".into()],
            BatchOutcome::Applied(_) => vec!["applied".into()],
        }
    }

    fn view(&self, request: &RequestId) -> JobView {
        let live = self.state.job_of(request).map(|job| {
            let mut view = view::job(&self.state, job);
            view.blockers.extend(explain::rivals(&self.state, job));
            view
        });
        live.unwrap_or_else(|| view::job(&self.state, &self.ended[request]))
    }

    /// A job's state, then a line for each replica, or why it waits.
    fn tell(&self, request: &RequestId) -> Vec<String> {
        let view = self.view(request);
        let mut out = vec![format!("{request} {}", view.state.name())];
        for r in &view.replicas {
            let mut line = format!("replica {} {}", r.no, r.status);
            if let Some(place) = &r.place {
                let shares = place.devices.iter().map(|d| Share { device: d.index, milli: d.milli, kept: d.kept });
                line.push_str(&format!(" on {} {}", place.node, list(&shares.collect::<Vec<_>>())));
                line.extend(place.address.iter().map(|a| format!(" {a}")));
            }
            line.extend(r.why.iter().map(|why| format!(" {why}")));
            line.extend(r.other.iter().map(|other| {
                let on = other.place.as_ref().map_or_else(|| "nowhere".to_owned(), |p| p.node.to_string());
                format!(" ({} on {on} generation {})", other.status, other.generation)
            }));
            if r.generation > 1 || r.restarts > 0 {
                line.push_str(&format!(" generation {} restarts {}", r.generation, r.restarts));
            }
            out.push(line);
        }
        out.extend(view.blockers.iter().map(blocker));
        out
    }

    fn show(&self) -> Vec<String> {
        let node = |node: &Arc<nf_core::node::Node>| {
            let class = self.state.capacity().class(node.no).unwrap();
            let free: Vec<String> = class.devices.iter().map(|d| d.milli.to_string()).collect();
            let cordon = if node.cordon.is_some() { " cordoned" } else { "" };
            format!("{} {}{cordon} free [{}]", node.name, node.state.name(), free.join(" "))
        };
        let tenant = |tenant: &Arc<nf_core::tenant::Tenant>| {
            let used = self.state.ledger().tenant(tenant.no);
            format!("{} holds {} milli-GPUs, {} jobs, {} waiting", tenant.id, used.gpu_milli, used.jobs, used.waiting)
        };
        self.state.nodes().values().map(node).chain(self.state.tenants().values().map(tenant)).collect()
    }

    fn name(&self, no: NodeNo) -> String {
        self.state.node(no).map_or_else(|| no.to_string(), |node| node.name.to_string())
    }
}

fn refused(refusal: Refusal) -> String {
    let field = refusal.field.map(|field| format!(" ({field})"));
    format!("refused {}{}: {}", refusal.reason, field.unwrap_or_default(), refusal.detail)
}

fn blocker(b: &nf_core::reason::Blocker) -> String {
    let permanent = if b.permanent { " permanent" } else { "" };
    let nodes = if b.nodes > 0 { format!(" {} nodes", b.nodes) } else { String::new() };
    format!("{}{permanent}{nodes}: {}", b.reason, b.detail)
}

fn devices(alloc: &nf_core::job::Allocation) -> String {
    list(&alloc.shares)
}

/// `[0 1]` for whole devices, `[3:0.250]` for a part; `[3:2@4]` is a slice of two parts that begins at part 4.
fn list(shares: &[Share]) -> String {
    let one = |Share { device, milli, kept }: &Share| match (kept, milli) {
        (Kept::Mig(slice), _) => format!("{device}:{}@{}", slice.shape.size(), slice.start),
        (_, 1000) => device.to_string(),
        (_, part) => format!("{device}:0.{part:03}"),
    };
    format!("[{}]", shares.iter().map(one).collect::<Vec<_>>().join(" "))
}
