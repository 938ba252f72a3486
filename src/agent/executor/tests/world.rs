//! A world of an executor for one test: directories, a store with a small model server, and what to wait for.
//! Its end kills by key whatever is left of its own replicas; processes of other tests stay.

use super::*;

/// A server in Python that answers /health, as long as its directory has no file `sick`.
pub(super) const SERVER: &str = r#"
import http.server, os, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        sick = os.path.exists(os.path.join(os.environ["HOME"], "sick"))
        self.send_response(500 if sick else 200); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *a): pass
print("hello from", os.environ["NF_MODEL"], sorted(os.environ), flush=True)
http.server.HTTPServer((sys.argv[1], int(sys.argv[2])), H).serve_forever()
"#;

impl Executor {
    /// Without time to save anything.
    pub(super) fn stop(&self, id: ReplicaId, generation: Generation, why: Reason) {
        Execute::stop(self, id, generation, Leave::now(why));
    }

    /// With so many seconds for it.
    pub(super) fn leave(&self, want: &Want, why: Reason, seconds: u32) {
        Execute::stop(self, ID, want.generation, Leave { grace_ms: 1000 * seconds, ..Leave::now(why) });
    }
}

pub(super) struct World {
    pub(super) tmp: tempfile::TempDir,
    pub(super) store: Store,
    pub(super) grace: Duration,
    pub(super) cgroups: bool,
    pub(super) users: Option<(u32, u32)>,
    pub(super) wait: Duration,
    /// What is told to the group of devices.
    pub(super) sees: (Sees, Seen),
    /// Texts of the alarm; None when it was ended.
    pub(super) alarms: Arc<Mutex<Vec<Option<String>>>>,
}

impl World {
    pub(super) fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("file://{}/store", tmp.path().display()), &Default::default()).unwrap();
        Self {
            tmp,
            store,
            grace: Duration::from_secs(5),
            cgroups: true,
            users: None,
            wait: Duration::from_secs(30),
            sees: channel(),
            alarms: Arc::default(),
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    pub(super) fn config(&self) -> ExecutorConfig {
        ExecutorConfig {
            run_dir: self.path("run"),
            data_dir: self.path("data"),
            node: NodeName::new("n1").unwrap(),
            store: Some(self.store.clone()),
            model_cache: 1 << 30,
            judge: None,
            stop_grace: self.grace,
            kill_after: Duration::from_secs(5),
            cgroups: self.cgroups,
            vacancy: Arc::new(Vacancy::new(
                Sensor::Played(self.path("devices.json")),
                self.wait,
                Some(self.sees.0.clone()),
                Some(self.alarm()),
            )),
            near: Arc::default(),
            mps_pipes: self.path("mps"),
            users: Users { range: self.users, required: self.users.is_some(), home: self.path("data") },
            guard: self.path("no-such-program"),
            engine: Default::default(),
            anew: false,
            found: Arc::default(),
            troubles: Arc::new(Troubles::new(|_, _| {})),
        }
    }

    pub(super) fn alarm(&self) -> Alarm {
        let alarms = self.alarms.clone();
        Arc::new(move |text| held(&alarms).push(text.map(str::to_owned)))
    }

    pub(super) fn open(&self) -> Executor {
        Executor::open(self.config()).unwrap()
    }

    /// Publishes `program` and returns what to want of it.
    pub(super) async fn publish(&self, program: &str, argv: &[&str], timeout_s: u32) -> Want {
        self.publish_with(program, argv, timeout_s, |_| {}).await
    }

    /// The same with changes to how it is run.
    pub(super) async fn publish_with(
        &self,
        program: &str,
        argv: &[&str],
        timeout_s: u32,
        change: impl FnOnce(&mut Process),
    ) -> Want {
        let mut process = Process {
            argv: argv.iter().map(|a| a.to_string()).collect(),
            env: [("EXTRA".to_string(), "from the manifest".to_string())].into(),
            ready: Ready { timeout_s, ..Ready::default() },
            limits_gpu: false,
            live: None,
            drain: None,
            metrics: None,
        };
        change(&mut process);
        let dir = self.path("in");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("program.py"), program).unwrap();
        let draft = Draft {
            model_id: ModelId::new("m1").unwrap(),
            version: VersionId::new("v1").unwrap(),
            format: "test".into(),
            runtime: crate::models::Launch::Process(process),
            main: None,
            latency_ms: None,
            memory: None,
            data_classes: Vec::new(),
            encrypt_to: None,
        };
        let manifest = publish(&self.store, &dir, draft).await.unwrap();
        let mut want = simulated_want();
        let spec = Arc::make_mut(&mut want.spec);
        (spec.runtime, spec.manifest) = (Runtime::Process, Some(manifest.sha256()));
        want
    }

    pub(super) async fn server(&self) -> Want {
        self.publish(SERVER, &["{python}", "{model}", "{host}", "{port}"], 30).await
    }

    pub(super) async fn shell(&self, script: &str) -> Want {
        let mut want = self.publish(script, &["/bin/sh", "{model}"], 30).await;
        want.port = None;
        want
    }

    pub(super) fn record(&self, want: &Want) -> Record {
        self.record_there(want).expect("a record")
    }

    pub(super) fn record_there(&self, want: &Want) -> Option<Record> {
        record::load(&self.path("data/records/n1"), ID, want.generation)
    }

    /// The families of the world's own records: processes of other tests stay. Reads
    /// only, unlike `load_all`, which tidies up and so is for an agent's start alone.
    pub(super) fn families(&self) -> Vec<Family> {
        let Ok(entries) = fs::read_dir(self.path("data/records/n1")) else { return vec![] };
        let records = entries.filter_map(|e| fs::read(e.unwrap().path()).ok());
        let records = records.filter_map(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
        records.map(|r| r.family(None)).collect()
    }

    pub(super) fn living(&self) -> usize {
        self.families().iter().map(|f| f.members().len()).sum()
    }
}

impl Drop for World {
    #[allow(clippy::disallowed_methods, reason = "the end of a test waits")]
    fn drop(&mut self) {
        // Again until nobody is left: who was being started or was forking at the first signal is found by the next.
        for _ in 0..100 {
            self.families().iter().for_each(|family| {
                family.signal(Signal::SIGKILL);
            });
            if self.living() == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(range) = self.users {
            users::unclaim(range);
        }
    }
}

pub(super) const ID: ReplicaId = ReplicaId { job: JobNo(1), replica: 0 };

pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(super) fn simulated_want() -> Want {
    Want {
        request: RequestId::new("r1").unwrap(),
        generation: Generation(1),
        spec: Arc::new(testing::job_spec("t1", Gpus::Whole(1))),
        shares: vec![],
        uuids: vec!["GPU-7".into()],
        part: None,
        host: "127.0.0.1".into(),
        port: Some(free_port()),
        stage: None,
        stop: None,
    }
}

impl Executor {
    /// Waits until the replica is so, by the executor's own changes.
    pub(super) async fn until<T>(&self, what: &str, test: impl Fn(&Self) -> Option<T>) -> T {
        let mut changes = self.changes();
        let seen = async {
            loop {
                if let Some(found) = test(self) {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(Duration::from_secs(60), seen).await {
            Ok(found) => found,
            Err(_) => panic!("never {what}: {:?} {:?}", self.actual(), self.stages()),
        }
    }

    pub(super) async fn stage_is(&self, generation: u32, stage: Stage) {
        let wanted = (ID, Generation(generation), stage);
        self.until(&format!("{stage:?}"), |e| e.stages().contains(&wanted).then_some(())).await;
    }

    pub(super) async fn gone(&self) -> End {
        self.until("gone", |e| match e.actual().replicas.get(&ID)?.values().next()? {
            Condition::Gone { ok, why } => Some(End { ok: *ok, why: *why }),
            _ => None,
        })
        .await
    }
}

/// Polls what has no channel, up to a bound.
pub(super) async fn eventually(what: &str, test: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !test() {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(super) async fn log(executor: &Executor, tail: usize) -> String {
    log_of(executor, ID, tail).await.unwrap()
}

pub(super) async fn log_of(executor: &Executor, id: ReplicaId, tail: usize) -> io::Result<String> {
    let parts: Vec<_> = executor.logs(&RequestId::new("r1").unwrap(), id, tail, false).collect().await;
    parts.into_iter().map(|p| p.map(|p| String::from_utf8_lossy(&p).into_owned())).collect()
}

pub(super) fn stopped() -> End {
    End { ok: true, why: Reason::StoppedByUser }
}
