//! One line of a scenario: `verb name key=value key=value flag`. A key that
//! nobody reads is a mistake and fails the scenario.

use nf_core::budget::{Budgets, Window};
use nf_core::command::Submission;
use nf_core::id::{DeviceType, Digest16, Label, NodeName, RequestId, TenantId};
use nf_core::job::{Arrangement, JobSpec, Restart, Runtime, Stage};
use nf_core::node::{DeviceKind, NodeSpec, PortRange};
use nf_core::placement::{Chosen, Policy};
use nf_core::plan::{Intent, Queueing};
use nf_core::played;
use nf_core::reason::Reason;
use nf_core::resources::{Gpus, parse_bytes};
use nf_core::scaling::Scaling;
use nf_core::sharing::Sharing;
use nf_core::tenant::{Quota, Share};
use nf_core::testing;
use nf_core::topology::{Level, Topology};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// See the module's text.
pub struct Words<'a> {
    line: &'a str,
    verb: &'a str,
    name: &'a str,
    values: BTreeMap<&'a str, &'a str>,
    read: RefCell<BTreeSet<String>>,
}

impl Drop for Words<'_> {
    fn drop(&mut self) {
        let read = self.read.borrow();
        let unread: Vec<_> = self.values.keys().filter(|key| !read.contains(**key)).collect();
        assert!(unread.is_empty() || std::thread::panicking(), "{}: nobody reads {unread:?}", self.line);
    }
}

impl<'a> Words<'a> {
    pub fn new(line: &'a str) -> Self {
        let mut words = line.split_whitespace();
        let verb = words.next().unwrap();
        let mut rest: Vec<&str> = words.collect();
        let named =
            rest.first().is_some_and(|word| !word.contains('=')) && !["wait", "show", "pass", "moves"].contains(&verb);
        let name = if named { rest.remove(0) } else { "" };
        let values = rest.iter().map(|word| word.split_once('=').unwrap_or((word, ""))).collect();
        Self { line, verb, name, values, read: RefCell::default() }
    }

    pub fn verb(&self) -> &str {
        self.verb
    }

    pub fn name(&self) -> &str {
        self.name
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.read.borrow_mut().insert(key.to_owned());
        self.values.get(key).copied()
    }

    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub fn number(&self, key: &str, default: u64) -> u64 {
        self.get(key).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{}: {key}", self.line)))
    }

    fn bytes(&self, key: &str, default: u64) -> u64 {
        self.get(key).map_or(default, |text| parse_bytes(text).unwrap())
    }

    fn label(&self, key: &str) -> Option<Label> {
        self.get(key).map(|text| Label::new(text).unwrap())
    }

    fn labels(&self) -> BTreeMap<Label, Label> {
        let pairs = self.get("label").into_iter().flat_map(|text| text.split(','));
        let pair = |text: &str| {
            let (key, value) = text.split_once(':').unwrap();
            (Label::new(key).unwrap(), Label::new(value).unwrap())
        };
        pairs.map(pair).collect()
    }

    pub fn request(&self) -> RequestId {
        RequestId::new(self.name).unwrap()
    }

    pub fn node_name(&self) -> NodeName {
        NodeName::new(self.name).unwrap()
    }

    pub fn tenant(&self) -> TenantId {
        TenantId::new(self.name).unwrap()
    }

    /// Thousandths, from a decimal number.
    fn milli(&self, key: &str) -> Option<u64> {
        let text = self.get(key)?;
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        Some(whole.parse::<u64>().unwrap() * 1000 + format!("{part:0<3}").parse::<u64>().unwrap())
    }

    pub fn quota(&self) -> Quota {
        Quota {
            gpu_milli: self.milli("gpu"),
            cpu_milli: self.milli("cpu"),
            memory: self.get("mem").map(|text| parse_bytes(text).unwrap()),
            tpu: self.get("tpu").map(|text| text.parse().unwrap()),
            waiting: self.get("waiting").map(|text| text.parse().unwrap()),
            parent: self.get("parent").map(|text| TenantId::new(text).unwrap()),
            borrow_milli: self.milli("borrow"),
            lend_milli: self.milli("lend"),
            budgets: self.budgets().some(),
            types: self.types(),
            soft_sharing: self.flag("soft"),
        }
    }

    /// `types=H100-80G:8,A100-40G:4`, with `+2` for what may be borrowed and `-1` for what is lent.
    fn types(&self) -> BTreeMap<DeviceType, Share> {
        let share = |text: &str| {
            let (kind, rest) = text.split_once(':').unwrap();
            let (rest, lend) = rest.split_once('-').map_or((rest, None), |(rest, lend)| (rest, Some(lend)));
            let (own, borrow) = rest.split_once('+').map_or((rest, None), |(own, borrow)| (own, Some(borrow)));
            let gpus = |text: &str| text.parse::<u64>().unwrap() * 1000;
            let share = Share { gpu_milli: gpus(own), borrow_milli: borrow.map(gpus), lend_milli: lend.map(gpus) };
            (DeviceType::new(kind).unwrap(), share)
        };
        self.get("types").into_iter().flat_map(|text| text.split(',')).map(share).collect()
    }

    /// `day_gpu_hours=`, `month_money=` and so on.
    fn budgets(&self) -> Budgets {
        let mut out = Budgets::default();
        for window in Window::ALL {
            let milli = |what: &str| self.milli(&format!("{}_{what}", window.name()));
            out.gpu_hours[window as usize] = milli("gpu_hours");
            out.money[window as usize] = milli("money").map(|milli| 1000 * milli);
        }
        out
    }

    pub fn policy(&self) -> Chosen {
        let mut chosen = Chosen::from(Policy::named(self.name).unwrap_or_default());
        chosen.preemption.min_run_ms = 1000 * self.number("min_run", 60);
        chosen.preemption.delay_ms = 1000 * self.number("delay", 0);
        chosen.preemption.max_grace_ms = 1000 * self.number("max_grace", 120) as u32;
        chosen
    }

    /// `sharing=none` or, for one device after the other, `sharing=none|mps`; the last word is that of the rest.
    fn sharing(&self, device: usize) -> Sharing {
        let words: Vec<&str> = self.get("sharing").unwrap_or("simulated").split('|').collect();
        Sharing::named(words[device.min(words.len() - 1)]).unwrap()
    }

    pub fn node(&self) -> NodeSpec {
        let (gpus, tpus) = (self.number("gpus", 1) as u16, self.number("tpus", 0) as u16);
        let mut spec = testing::node_spec(gpus + tpus);
        let island = self.number("island", 4) as u16;
        let device_type = DeviceType::new(self.get("type").unwrap_or("H100-80G")).unwrap();
        let memory = self.bytes("gpu_memory", 80 << 30);
        let mig = self.get("mig").map(|text| DeviceType::new(text).unwrap());
        let broken = self.get("broken").map(|text| text.parse::<usize>().unwrap());
        for (i, device) in spec.devices.iter_mut().enumerate() {
            device.island = i as u16 / island;
            device.device_type = device_type.clone();
            device.memory = memory;
            device.mig_profile = mig.clone();
            device.healthy = broken != Some(i);
            device.sharing = self.sharing(i);
            if i >= usize::from(gpus) {
                device.kind = DeviceKind::Tpu;
            }
        }
        played::on_numa_nodes(&mut spec.devices, self.get("numa").map(|text| text.parse().unwrap()));
        if let Some(price) = self.get("price") {
            spec.cost_per_hour.insert(device_type, price.parse::<u64>().unwrap() * 1_000_000);
        }
        spec.ports = match self.number("ports", 1000) as u16 {
            0 => None,
            n => Some(PortRange { first: 31000, last: 30999 + n }),
        };
        spec.cpu_milli = self.milli("cpu").unwrap_or(64_000);
        spec.memory = self.bytes("mem", 512 << 30);
        spec.disk = self.bytes("disk", 4 << 40);
        spec.host = self.name.into();
        spec.labels = self.labels();
        (spec.region, spec.zone, spec.rack) = (self.label("region"), self.label("zone"), self.label("rack"));
        spec
    }

    fn spec(&self) -> JobSpec {
        let gpu = Gpus::from_milli(self.milli("gpu").unwrap_or(0)).unwrap();
        let mut spec = testing::job_spec(self.get("tenant").unwrap_or("t1"), gpu);
        spec.replicas = self.number("replicas", 1) as u16;
        spec.gang = self.flag("gang");
        spec.self_limiting = self.flag("self_limiting");
        spec.runtime = match () {
            () if self.flag("docker") => Runtime::Docker,
            () if self.flag("process") => Runtime::Process,
            () => Runtime::Simulated,
        };
        spec.scaling = self.get("scale").and_then(|text| text.split_once("..")).map(|(min, max)| Scaling {
            min: min.parse().unwrap(),
            max: max.parse().unwrap(),
            ..Scaling::default()
        });
        spec.priority = self.get("priority").map_or(0, |text| text.parse().unwrap());
        let r = &mut spec.resources;
        r.gpu_memory = self.bytes("gpu_memory", 0);
        r.device_types = self.get("type").map(|text| DeviceType::new(text).unwrap()).into_iter().collect();
        r.mig_profile = self.get("mig").map(|text| DeviceType::new(text).unwrap());
        r.tpu = self.number("tpu", 0) as u16;
        r.cpu_milli = self.milli("cpu").unwrap_or(0);
        r.memory = self.bytes("mem", 0);
        r.disk = self.bytes("disk", 0);
        let c = &mut spec.constraints;
        (c.region, c.zone, c.rack) = (self.label("region"), self.label("zone"), self.label("rack"));
        c.labels = self.labels();
        c.arrangement = match (self.flag("spread"), self.flag("pack")) {
            (true, _) => Arrangement::Spread,
            (_, true) => Arrangement::Pack,
            _ => Arrangement::Any,
        };
        let level = |name: &str| self.get(name).map(|text| Level::named(text).unwrap());
        c.topology = Topology { required: level("together"), preferred: level("near") };
        c.preemptible = self.flag("preemptible");
        c.same_island = self.flag("same_island");
        c.exclusive = self.flag("exclusive");
        c.checkpoint_ms = self.get("grace").map(|text| 1000 * text.parse::<u32>().unwrap());
        c.max_unavailable = self.get("max_unavailable").map(|text| text.parse().unwrap());
        c.max_run_ms = self.get("max_run").map(|text| text.parse::<u64>().unwrap() * 1000);
        c.node = self.get("node").map(|text| NodeName::new(text).unwrap());
        c.max_cost_per_hour = self.get("max_price").map(|text| text.parse::<u64>().unwrap() * 1_000_000);
        c.restart = match self.get("restart") {
            None | Some("always") => Restart::Always,
            Some("on-failure") => Restart::OnFailure,
            Some(_) => Restart::Never,
        };
        spec
    }

    /// The request; its body is what the line says, so another line is another body.
    pub fn schedule(&self) -> Intent {
        let spec = self.spec();
        let queueing = if self.get("queue") == Some("never") { Queueing::Never } else { Queueing::Wait };
        let body = Digest16::of(&[format!("{spec:?}").as_bytes()]);
        let submission = Submission { request: self.request(), body, keyed: true, spec: Arc::new(spec) };
        Intent::Schedule { submission, queueing, check_plan: None }
    }

    pub fn stage(&self) -> Stage {
        let stages = [
            ("downloading", Stage::Downloading),
            ("verifying", Stage::Verifying),
            ("starting", Stage::Starting),
            ("ready", Stage::Ready),
            ("not-ready", Stage::NotReady),
        ];
        stages.iter().find(|(word, _)| self.flag(word)).expect("a stage").1
    }

    pub fn reason(&self) -> Reason {
        let found = self.get("why").and_then(|why| Reason::ALL.iter().find(|r| r.token() == why));
        found.copied().unwrap_or(Reason::RuntimeFailed)
    }
}
