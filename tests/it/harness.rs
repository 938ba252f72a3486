//! A group of members in this process, each with its directory and its port, and `eventually`.
//!
//! It does not know what a test wants of the group.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use neural_fabric::raft::{self, Hooks, MemberId, Options, Replica, Timing, Tuning};
use neural_fabric::security::tls::{Authority, PeerTls, Role};
use neural_fabric::storage::fatal::Fatal;
use nf_core::command::{Member, Mode};
use nf_core::id::{NodeName, TenantId};
use nf_core::plan::{Intent, Reply};
use tempfile::TempDir;

/// How long anything may take before a test fails; generous, as machines are busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What the hook of a member that lost its data leaves in [`Cluster::fatal`].
pub const WIPED: &str = "wiped";

pub fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// Waits until `holds` gives a value. Panics with `what` after [`PATIENCE`].
pub async fn eventually<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let end = deadline();
    loop {
        if let Some(value) = holds() {
            return value;
        }
        assert!(Instant::now() < end, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn tenant(name: &str) -> Intent {
    Intent::CreateTenant { tenant: TenantId::new(name).expect("a valid name") }
}

/// What a member tells the group of itself.
pub fn introduction(id: MemberId, name: &str) -> Intent {
    let text: Arc<str> = "x".into();
    Intent::Member(Member {
        id,
        name: NodeName::new(name).expect("a valid name"),
        api: text.clone(),
        peer: text.clone(),
        min_level: 1,
        max_level: 1,
        version: text,
    })
}

/// One place of the group: what stays when its member stops.
pub struct Seat {
    pub id: MemberId,
    pub name: String,
    pub dir: TempDir,
    pub port: u16,
    /// Holds the port until the member starts for the first time: else it is anybody's meanwhile.
    held: Mutex<Option<TcpListener>>,
    pub tls: PeerTls,
    /// How wrong its clock is, in milliseconds.
    pub skew_ms: Arc<AtomicI64>,
    /// Its syncs don't end.
    pub disk_hangs: Arc<AtomicBool>,
    pub replica: Option<Replica>,
}

pub struct Cluster {
    pub name: String,
    pub seats: Vec<Seat>,
    pub tuning: Tuning,
    pub authority: Authority,
    /// What the members' disks complained about.
    pub fatal: Arc<Mutex<Vec<String>>>,
    /// Which member found that another has another state, and which.
    pub differs: Arc<Mutex<Vec<(MemberId, MemberId)>>>,
}

/// The port of a member that starts again. An outgoing connection of another test may have it for a moment.
async fn bind_again(port: u16) -> TcpListener {
    let until = Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(listener) => return listener,
            Err(error) if Instant::now() > until => panic!("port {port} of a member that starts again: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

fn free_port() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

/// With RUST_LOG set, shows what the members say.
fn log_to_stderr() {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        // A second test in the same process finds it set, which is fine.
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    }
}

impl Cluster {
    /// `n` seats, nobody on them yet.
    pub fn empty(n: u64) -> Self {
        log_to_stderr();
        let name = "test".to_owned();
        let mut cluster = Self {
            authority: Authority::create(&name).expect("an authority"),
            name,
            seats: Vec::new(),
            tuning: Tuning { keep_entries: 0, purge_entries: 1, ..Tuning::default() },
            fatal: Arc::default(),
            differs: Arc::default(),
        };
        for _ in 0..n {
            cluster.add_seat();
        }
        cluster
    }

    /// `n` members that form a group, initialised for the core as well.
    pub async fn start(n: u64) -> Self {
        let mut cluster = Self::empty(n);
        for seat in 0..cluster.seats.len() {
            cluster.start_seat(seat).await;
        }
        let members = (0..cluster.seats.len()).map(|seat| cluster.member(seat)).collect();
        cluster.replica(0).initialize(members).await.expect("initialize");
        let init = Intent::Init { cluster: "test".into(), mode: Mode::Simulation, default_gpu_milli: 8_000 };
        cluster.submit(0, init).await;
        cluster
    }

    pub fn add_seat(&mut self) -> usize {
        let id = MemberId(self.seats.len() as u64 + 1);
        let name = format!("n{}", id.0);
        let tls = self.keys(&name, Role::Server);
        let (listener, port) = free_port();
        let held = Mutex::new(Some(listener));
        let dir = tempfile::tempdir().expect("a directory");
        self.seats.push(Seat {
            id,
            name,
            dir,
            port,
            held,
            tls,
            skew_ms: Arc::default(),
            disk_hangs: Arc::default(),
            replica: None,
        });
        self.seats.len() - 1
    }

    /// Keys of the group for somebody without a seat.
    pub fn keys(&self, name: &str, role: Role) -> PeerTls {
        let credentials = self.authority.issue_as(&self.name, name, role).expect("a certificate");
        PeerTls::new(&credentials, &self.name, name).expect("usable credentials")
    }

    pub fn member(&self, seat: usize) -> (MemberId, String, String) {
        let seat = &self.seats[seat];
        (seat.id, seat.name.clone(), format!("127.0.0.1:{}", seat.port))
    }

    pub fn dir(&self, seat: usize) -> PathBuf {
        self.seats[seat].dir.path().to_path_buf()
    }

    pub async fn options(&self, seat: usize) -> Options {
        let seat = &self.seats[seat];
        let held = seat.held.lock().expect("unpoisoned").take();
        let listener = match held {
            Some(listener) => listener,
            None => bind_again(seat.port).await,
        };
        let (fatal, skew_ms) = (self.fatal.clone(), seat.skew_ms.clone());
        let (wiped, hangs) = (fatal.clone(), seat.disk_hangs.clone());
        let (differs, seat_id) = (self.differs.clone(), seat.id);
        Options {
            data_dir: seat.dir.path().to_path_buf(),
            cluster: self.name.clone(),
            id: seat.id,
            name: seat.name.clone(),
            listener,
            tls: seat.tls.clone(),
            timing: Timing::default(),
            tuning: self.tuning,
            hooks: Hooks {
                // On the disk's own thread.
                #[allow(clippy::disallowed_methods)]
                fsync: Arc::new(move |_| {
                    while hangs.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }),
                differs: Arc::new(move |member, _| differs.lock().expect("unpoisoned").push((seat_id, member))),
                wiped: Arc::new(move || wiped.lock().expect("unpoisoned").push(WIPED.to_owned())),
                ..Hooks::default()
            },
            wall: Arc::new(move || raft::wall_clock_ms().saturating_add_signed(skew_ms.load(Ordering::Relaxed))),
            fatal: Fatal::hook(move |reason| fatal.lock().expect("unpoisoned").push(reason.to_owned())),
            services: None,
            aside: None,
        }
    }

    pub async fn start_seat(&mut self, seat: usize) {
        let replica = raft::start(self.options(seat).await).await.expect("starts");
        self.seats[seat].replica = Some(replica);
    }

    /// Somebody empties its directory.
    pub fn wipe_seat(&mut self, seat: usize) {
        self.seats[seat].dir = tempfile::tempdir().expect("a directory");
    }

    pub async fn stop_seat(&mut self, seat: usize) {
        if let Some(replica) = self.seats[seat].replica.take() {
            replica.shutdown().await;
        }
    }

    pub fn replica(&self, seat: usize) -> &Replica {
        self.seats[seat].replica.as_ref().expect("running")
    }

    pub fn running(&self) -> impl Iterator<Item = &Replica> {
        self.seats.iter().filter_map(|seat| seat.replica.as_ref())
    }

    /// The seat that leads and knows it.
    pub async fn leader(&self) -> usize {
        eventually("somebody leads", || {
            let leads = |seat: &Seat| seat.replica.as_ref().is_some_and(|r| r.leading().borrow().is_some());
            self.seats.iter().position(leads)
        })
        .await
    }

    pub async fn submit(&self, seat: usize, intent: Intent) -> Reply {
        self.replica(seat).submit(intent, deadline()).await.expect("an answer")
    }

    /// Tells the group of each seat, as a member does for itself; says which one led then.
    pub async fn introduced(&self) -> usize {
        let leader = self.leader().await;
        for seat in 0..self.seats.len() {
            let (id, name, _) = self.member(seat);
            self.submit(leader, introduction(id, &name)).await;
        }
        self.agree().await;
        leader
    }

    /// Waits until all running members have the same state, and returns its hash.
    pub async fn agree(&self) -> u128 {
        eventually("all members have applied the same", || {
            let mut seen: Vec<_> = self.running().map(|r| (r.applied().index, r.applied().state.hash())).collect();
            let last = self.running().map(|r| r.status().last_log_index).max();
            seen.dedup();
            (seen.len() == 1 && last == Some(seen[0].0)).then(|| seen[0].1)
        })
        .await
    }

    pub async fn stop(&mut self) {
        for seat in 0..self.seats.len() {
            self.stop_seat(seat).await;
        }
        let fatal = self.fatal.lock().expect("unpoisoned");
        assert!(fatal.is_empty(), "disks complained: {fatal:?}");
    }
}
