//! The life of a program that runs: asked whether it is ready and whether it lives,
//! drained, told to end, killed, and gone only when every process that it started is
//! gone. It does not know how the program was started, nor, beyond a [`Body`], what it
//! runs as.

use super::drain::Leaving;
use super::ending::{Stuck, clear, gone, signal};
use super::exit;
use super::process::{let_go, save};
use super::processes::{Family, Identity};
use crate::agent::executor::{Shared, now_ms};
use crate::agent::lease::boot_ms;
use crate::agent::logs;
use crate::agent::post::Post;
use crate::agent::probe::Probe;
use crate::agent::record::{End, Launch, Record, Stopping};
use crate::agent::scrape::{Said, Scrape};
use crate::models::Drain;
use futures::FutureExt;
use nf_core::job::Stage;
use nf_core::node::address;
use nf_core::reason::Reason;
use nf_core::view::stage_name;
use nix::sys::signal::Signal;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::process::Child;
use tokio::task::JoinSet;

/// First and longest pause between two questions to a program that is not ready yet.
const PROBE_STARTING: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Between two questions to one that is.
const PROBE_RUNNING: Duration = Duration::from_secs(2);
/// Unanswered questions in a row that make a replica NotReady.
const MISSES: u32 = 3;
/// What tells a program that asked for it to save its state: the one that trainers under Slurm listen for, too.
const WARNING: Signal = Signal::SIGUSR1;
/// How long a replica with a broken device may finish what does not hang in it, while clients hear that it goes.
const BROKEN: Duration = Duration::from_secs(2);
/// How often a log is looked at while its replica stops.
const ROTATE: Duration = Duration::from_secs(2);
/// Between two looks at a process that is not a child of ours.
const LOOK: Duration = Duration::from_millis(50);

/// What a program runs as: processes of this machine, or a container of an engine.
pub(super) trait Body: Send {
    /// Waits until its first process is gone. May be dropped and asked again.
    fn gone(&mut self) -> impl Future<Output = Ended> + Send;
    /// Tells its first process that it will have to end, and may save its state.
    fn warn(&mut self) -> impl Future<Output = ()> + Send;
    /// Tells all of it to end, and waits until nothing of it is left.
    fn end(&mut self) -> impl Future<Output = ()> + Send;
    /// Kills until nothing of it is left, however long that takes.
    fn clear(&mut self, stuck: &Stuck) -> impl Future<Output = ()> + Send;
    /// Removes what held it, once nothing of it is left.
    fn let_go(&mut self, shared: &Arc<Shared>, record: &Record) -> impl Future<Output = ()> + Send;
}

/// How a program ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub end: End,
    /// The same for people.
    pub text: String,
}

/// The processes of one replica on this machine.
pub(super) struct Processes {
    pub leader: Leader,
    pub family: Family,
    /// The launch's own directory, where its first process is a shell that keeps the program's exit status there.
    pub kept: Option<PathBuf>,
}

impl Body for Processes {
    async fn gone(&mut self) -> Ended {
        let status = self.leader.gone().await;
        if let Some(dir) = self.kept.clone() {
            // What the shell itself returned is as good, and all there is where it could not write.
            let read = tokio::task::spawn_blocking(move || exit::read(&dir)).await.ok().flatten();
            if let Some(ended) = read.or(status.and_then(|status| status.code()).map(exit::of)) {
                return ended;
            }
        }
        let (end, text) = match status {
            Some(status) if status.success() => (End { ok: true, why: Reason::Completed }, "exit 0".to_string()),
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => (End::failed(Reason::ExitedNonZero), format!("exit {code}")),
                (None, signal) => (End::failed(Reason::RuntimeFailed), format!("signal {}", signal.unwrap_or(0))),
            },
            None => (End::failed(Reason::RuntimeFailed), "how is unknown, it was adopted".to_string()),
        };
        Ended { end, text }
    }

    async fn warn(&mut self) {
        // Others of its processes may know nothing of the signal, and would end by it.
        let Some(leader) = self.family.leader.filter(Identity::lives) else { return };
        if self.kept.is_none() {
            return leader.signal(WARNING);
        }
        let family = self.family.clone();
        let told = move || family.children().iter().for_each(|program| program.signal(WARNING));
        // If the runtime goes down, so do we.
        let _ = tokio::task::spawn_blocking(told).await;
    }

    async fn end(&mut self) {
        signal(&self.family, Signal::SIGTERM).await;
        // Waiting for the child, too, takes the zombie away.
        tokio::join!(self.leader.gone(), gone(&self.family));
    }

    async fn clear(&mut self, stuck: &Stuck) {
        tokio::join!(self.leader.gone(), clear(&self.family, stuck));
    }

    async fn let_go(&mut self, shared: &Arc<Shared>, record: &Record) {
        let_go(shared, record).await;
    }
}

/// The program's first process.
pub(super) enum Leader {
    Child(Child),
    /// Started by an earlier agent: its end can be seen, its exit status not.
    Adopted(Identity),
}

impl Leader {
    /// Waits until it is gone; None when nobody could tell how it ended.
    async fn gone(&mut self) -> Option<ExitStatus> {
        match self {
            Leader::Child(child) => child.wait().await.ok(),
            Leader::Adopted(identity) => {
                // One read of /proc, which never waits for a disk.
                while identity.lives() {
                    tokio::time::sleep(LOOK).await;
                }
                None
            }
        }
    }
}

/// A program that runs.
pub(super) struct Running<B> {
    pub post: Post,
    pub record: Record,
    pub body: B,
}

/// What the answers were so far.
#[derive(Default)]
struct Health {
    /// Questions in a row that were not answered well.
    misses: u32,
    /// The same for the question whether it lives.
    hung: u32,
    /// When that one is asked next.
    live_at: Option<Instant>,
}

impl Health {
    fn pause(&self, was_ready: bool) -> Duration {
        match (was_ready, self.misses) {
            (true, 0) => PROBE_RUNNING,
            (true, misses) => (PROBE_STARTING.0 + LOOK * misses).min(PROBE_RUNNING),
            (false, misses) => PROBE_STARTING.1.min(PROBE_STARTING.0 * (1 << misses.min(8))),
        }
    }
}

/// Whom a program is asked by.
struct Probes {
    ready: Probe,
    /// None: by the same path, or not at all.
    live: Option<Probe>,
    /// None: its metrics are not known by name.
    scrape: Option<Scrape>,
}

impl Probes {
    fn of(shared: &Shared, launch: &Launch, record: &Record) -> Self {
        let probe = |path: &str| Probe::new(shared.client.clone(), &launch.host, launch.port, path);
        let live = record.live.as_ref().filter(|live| live.path != record.probe);
        let scrape = record.metrics.as_ref().zip(launch.port);
        let scrape =
            scrape.and_then(|(metrics, port)| Scrape::new(shared.client.clone(), &base(launch, port), metrics));
        Self { ready: probe(&record.probe), live: live.map(|live| probe(&live.path)), scrape }
    }

    /// Whether it is ready; when that was asked, whether it lives; and what its metrics say.
    async fn ask(&mut self, lives: bool) -> (bool, Option<bool>, Option<Said>) {
        let ready = self.ready.is_well().await;
        let lives = match (lives, &self.live) {
            (false, _) => None,
            (true, None) => Some(ready),
            (true, Some(live)) => Some(live.is_well().await),
        };
        let said = match &mut self.scrape {
            Some(scrape) if ready => scrape.read().await,
            _ => None,
        };
        (ready, lives, said)
    }
}

impl<B: Body> Running<B> {
    pub(super) async fn live(mut self) -> End {
        let launch = self.post.launch.clone();
        let mut probes = Probes::of(&self.post.shared, &launch, &self.record);
        let deadline = Instant::now() + Duration::from_secs(self.record.ready_timeout_s.into());
        if let Some(identity) = self.record.process {
            self.post.note(&format!("runs as pid {}, generation {}", identity.pid, launch.generation.0)).await;
        }
        let mut health = Health::default();
        let end = loop {
            let lives = self.record.was_ready && health.live_at.is_some_and(|at| Instant::now() >= at);
            let pause = health.pause(self.record.was_ready);
            let asked = async {
                tokio::time::sleep(pause).await;
                probes.ask(lives).await
            };
            tokio::select! {
                ended = self.body.gone() => break self.exited(ended).await,
                why = self.post.stop_asked() => break self.stop(End { ok: true, why }).await,
                (ready, lives, said) = asked => {
                    self.post.said(said);
                    if let Some(why) = self.answered(&mut health, ready, lives, deadline).await {
                        break self.stop(End::failed(why)).await;
                    }
                }
            }
            self.rotate().await;
        };
        self.body.let_go(&self.post.shared, &self.record).await;
        self.record.ended = Some(end);
        save(&self.post.shared, &self.record).await;
        self.post.note(&format!("ended: {}", end.why)).await;
        end
    }

    /// Takes in an answer; says why the replica must go, if it must.
    async fn answered(
        &mut self,
        health: &mut Health,
        ready: bool,
        lives: Option<bool>,
        deadline: Instant,
    ) -> Option<Reason> {
        let was_ready = self.record.was_ready;
        if ready {
            health.misses = 0;
            if !was_ready {
                // On disk before it is told, so that the next agent doesn't take it back.
                self.record.was_ready = true;
                self.post.live(|life| life.step(stage_name(Stage::Ready), now_ms(), None));
                save(&self.post.shared, &self.record).await;
                self.post.note("ready").await;
            }
            self.post.stage(Stage::Ready);
        } else if !was_ready && Instant::now() >= deadline {
            self.post.note(&format!("not ready within {} s, stopped", self.record.ready_timeout_s)).await;
            return Some(Reason::ReadyTimeout);
        } else {
            health.misses = health.misses.saturating_add(1);
            if was_ready && health.misses >= MISSES {
                self.post.stage(Stage::NotReady);
            }
        }
        let live = self.record.live.as_ref().filter(|_| self.record.was_ready)?;
        if health.live_at.is_none() || lives.is_some() {
            health.live_at = Some(Instant::now() + Duration::from_secs(live.period_s.into()));
        }
        health.hung = match lives {
            Some(true) => 0,
            Some(false) => health.hung + 1,
            None => health.hung,
        };
        if health.hung < live.failures {
            return None;
        }
        self.post.note(&format!("{} did not answer {} times in a row, stopped", live.path, health.hung)).await;
        Some(Reason::LivenessFailed)
    }

    async fn rotate(&self) {
        let path = self.post.log();
        if let Ok(Err(e)) = tokio::task::spawn_blocking(move || logs::rotate(&path)).await {
            tracing::warn!(request = %self.post.launch.request, error = %e, "a replica's log can't be rotated");
        }
    }

    /// Bounds the log for as long as the answer is kept.
    fn rotates(&self) -> JoinSet<()> {
        let (mut task, path) = (JoinSet::new(), self.post.log());
        task.spawn(async move {
            loop {
                tokio::time::sleep(ROTATE).await;
                let path = path.clone();
                // An error is said when it is rotated next, or it is over.
                let _ = tokio::task::spawn_blocking(move || logs::rotate(&path)).await;
            }
        });
        task
    }

    /// The first process ended by itself: what it left behind goes, too.
    async fn exited(&mut self, Ended { end, text }: Ended) -> End {
        self.body.clear(&Stuck::of(&self.post.shared, &self.post.launch, end)).await;
        if self.record.exclusive && self.post.shared.guard.has_fired(&self.record.key).await {
            self.post.note("killed by the guard: no lease covered it any more").await;
            return End::failed(Reason::NodeFailure);
        }
        self.post.note(&format!("its program ended by itself: {text}")).await;
        end
    }

    /// Drain, TERM, a while, KILL; returns when nothing of it is left.
    async fn stop(&mut self, end: End) -> End {
        // Until it is over: what it says meanwhile has a bound, too.
        let _rotates = self.rotates();
        let grace = self.post.shared.config.stop_grace;
        let plan = self.plan(end).await;
        let most = Duration::from_millis(plan.term_ms.saturating_sub(boot_ms()));
        let fence = self.fence().boxed().shared();
        let gently = async {
            match plan.saves {
                _ if most.is_zero() => {}
                true => self.save_state(most).await,
                false => self.drain(most).await,
            }
        };
        tokio::select! {
            // Who loses its lease loses its time with it: that is what its log shall say.
            biased;
            () = fence.clone() => self.post.note("no lease covers it any more: its time is over").await,
            () = gently => {}
        }
        let left = Duration::from_millis(plan.kill_ms.saturating_sub(boot_ms())).min(grace);
        self.told(Stopping { term_ms: boot_ms(), kill_ms: boot_ms() + ms(left), ..plan });
        self.post.note(&format!("TERM, and KILL at {} ({left:?})", at(left))).await;
        let (guard, key) = (self.post.shared.guard.clone(), self.record.key.clone());
        let fenced = async {
            fence.await;
            let left = Duration::from_millis(guard.ends_ms(&key).saturating_sub(boot_ms()));
            tokio::time::sleep(left).await;
        };
        let ended = tokio::select! {
            biased;
            ended = tokio::time::timeout(left, self.body.end()) => ended.is_ok(),
            () = fenced => false,
        };
        if !ended {
            self.post.note("did not end in time, KILL").await;
            self.body.clear(&Stuck::of(&self.post.shared, &self.post.launch, end)).await;
        }
        end
    }

    /// Is over when it must be dead soon, whatever time it was given; never for one that may run twice.
    fn fence(&self) -> impl Future<Output = ()> + Send + use<B> {
        let fence = self.record.exclusive.then(|| self.post.fence());
        async move {
            match fence {
                Some(fence) => fence.await,
                None => std::future::pending().await,
            }
        }
    }

    /// Both deadlines, on disk: an agent that starts meanwhile keeps to them.
    async fn plan(&mut self, end: End) -> Stopping {
        if let Some(plan) = self.record.stopping {
            self.told(plan);
            return plan;
        }
        // One that failed, or whose lease runs out, has nobody to wait for.
        let serves = end.ok && end.why != Reason::NodeFailure && self.record.was_ready;
        let (gently, broken) = (serves && self.post.launch.port.is_some(), self.post.broken());
        let most_s = self.record.drain.as_ref().map_or(Drain::USUAL_S, |drain| drain.timeout_s);
        let drain = if gently { Duration::from_secs(most_s.into()) } else { Duration::ZERO };
        let drain = if broken { drain.min(BROKEN) } else { drain };
        let grace = self.post.shared.config.stop_grace;
        // One that was never ready has nothing to save.
        let saving = self.post.grace();
        let saves = serves && !broken && !saving.is_zero();
        let drain = if saves { drain.max(saving) } else { drain };
        let term_ms = boot_ms() + ms(drain);
        let mut kill_ms = term_ms.saturating_add(ms(grace));
        // Its guard would not wait longer, and should that be gone, we don't either.
        if end.why == Reason::NodeFailure && self.record.exclusive {
            kill_ms = kill_ms.min(self.post.shared.guard.ends_ms(&self.record.key).max(term_ms));
        }
        let plan = Stopping { why: end.why, term_ms, kill_ms, saves };
        self.record.stopping = Some(plan);
        self.told(plan);
        save(&self.post.shared, &self.record).await;
        let when = match (drain.is_zero(), saves) {
            (true, _) => String::from("now"),
            (false, true) => format!("at {} or when it has saved its state and ended", at(drain)),
            (false, false) => format!("at {} or when no request is left", at(drain)),
        };
        self.post.note(&format!("stopping: {}; TERM {when}, KILL {grace:?} later", end.why)).await;
        plan
    }

    /// Lets people see the deadlines, by the clock that they have.
    fn told(&self, plan: Stopping) {
        let (now_ms, boot_ms) = (now_ms(), boot_ms());
        let by_day = |by_boot: u64| (now_ms + by_boot).saturating_sub(boot_ms);
        self.post.stops(plan.why, by_day(plan.term_ms), by_day(plan.kill_ms));
    }

    /// Tells the program to save its state, and clients that it goes; waits until it ends by itself, for so long at
    /// most. An agent that starts meanwhile tells it once more.
    async fn save_state(&mut self, most: Duration) {
        let until = Instant::now() + most;
        // An engine that does not answer is not waited for any longer.
        let _ = tokio::time::timeout(most, self.body.warn()).await;
        self.post.note(&format!("{WARNING}: it may save its state until {}", at(most))).await;
        let launch = &self.post.launch;
        let leaving = launch.port.map(|port| Leaving::of(&self.post, &self.record, base(launch, port), port));
        let requests = async {
            if let Some(leaving) = leaving {
                leaving.over().await;
            }
            std::future::pending::<()>().await;
        };
        let said = tokio::select! {
            _ = self.body.gone() => "its program has ended",
            () = tokio::time::sleep_until(until.into()) => "its time for that is over",
            () = self.post.hurried() => "its time for that was taken back",
            () = requests => "",
        };
        self.post.note(&format!("state saved, as far as it was: {said}")).await;
    }

    /// Waits until no request is left, for so long at most.
    async fn drain(&mut self, most: Duration) {
        let Some(port) = self.post.launch.port else { return };
        let leaving = Leaving::of(&self.post, &self.record, base(&self.post.launch, port), port);
        let said = tokio::select! {
            said = leaving.over() => said,
            _ = self.body.gone() => "its program has ended",
            () = tokio::time::sleep(most) => "its time for that is over",
        };
        self.post.note(&format!("drained: {said}")).await;
    }
}

/// Where its server is.
fn base(launch: &Launch, port: u16) -> String {
    format!("http://{}", address(&launch.host, port))
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The time of day in so long, for people.
fn at(wait: Duration) -> String {
    let then = jiff::Timestamp::now() + wait;
    then.strftime("%FT%TZ").to_string()
}
