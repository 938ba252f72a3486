//! A model of leases under cuts and pauses: voters that elect, leaders that judge by the core's own loop, a node that
//! beats, asks voters to vouch and holds its lease by the agent's own code. Whatever is cut, no leader's "Down" is
//! committed while what must never run twice may still run.

use crate::agent::lease::Lease;
use crate::exchange::{BeatAnswer, NodeStart, Voucher, vouch};
use crate::raft::{Electorate, Role, Status};
use nf_core::control::{self, Now, Observations, Timeouts};
use nf_core::id::{Incarnation, MemberId, NodeName};
use nf_core::node::NodeState;
use nf_core::plan::Intent;
use nf_core::sim::Rng;
use nf_core::state::State;
use nf_core::testing;
use std::time::Duration;

const LEASE: Duration = Duration::from_secs(45);
const BUDGET_MS: u64 = 5_000;
const ELECTION_MS: u64 = 450;
const MOMENT_MS: u64 = 50;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Weather {
    Fair,
    /// The node reaches nobody.
    Away,
    /// The voters reach nobody, and the node all of them.
    Apart,
    /// Who led last has a quorum and no voter more.
    Thin,
}

struct Voter {
    term: u64,
    heard_ms: u64,
    leads: Option<Lead>,
    frozen_until: u64,
}

struct Lead {
    acked_ms: u64,
    seen: Observations,
    stepped_ms: u64,
    /// It has proposed that the node is Down; that is committed when a quorum answers.
    gives_up: bool,
}

/// What is on its way to the node.
enum Coming {
    Granted { sent_ms: u64, term: u64 },
    Vouched { sent_ms: u64, asked: Vec<(usize, u64)>, said: Vec<Voucher> },
}

struct Model {
    now: u64,
    rng: Rng,
    state: State,
    start: NodeStart,
    voters: Vec<Voter>,
    /// Which voters reach each other, and which the node reaches.
    linked: Vec<Vec<bool>>,
    reached: Vec<bool>,
    weather: Weather,
    weather_until: u64,
    lease: Lease,
    node_frozen_until: u64,
    coming: Vec<(u64, Coming)>,
    granted_until: u64,
    /// Whether what runs lived on by vouchers alone.
    saved: bool,
    down: bool,
}

impl Model {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut state = State::new();
        testing::run(&mut state, testing::register("n1", testing::node_spec(1)));
        let count = if rng.chance(700) { 3 } else { 5 };
        let voter = |_| Voter { term: 0, heard_ms: 0, leads: None, frozen_until: 0 };
        Self {
            now: 0,
            start: NodeStart { node: NodeName::new("n1").unwrap(), incarnation: Incarnation(1) },
            state,
            voters: (0..count).map(voter).collect(),
            linked: vec![vec![true; count]; count],
            reached: vec![true; count],
            weather: Weather::Fair,
            weather_until: 5_000,
            lease: Lease::default(),
            node_frozen_until: 0,
            coming: Vec::new(),
            granted_until: 0,
            saved: false,
            down: false,
            rng,
        }
    }

    fn majority(&self, count: usize) -> bool {
        count * 2 > self.voters.len()
    }

    fn awake(&self, v: usize) -> bool {
        self.voters[v].frozen_until <= self.now
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        from == to || (self.linked[from][to] && self.awake(to))
    }

    /// The next weather, aimed at what is dangerous: a leader that has not heard the node for almost a Down time-out, and
    /// comes and goes between its quorum and nobody, while the node asks whoever does not hear it.
    fn weather(&mut self) {
        if self.now < self.weather_until {
            return;
        }
        let count = self.voters.len();
        self.weather = match self.weather {
            Weather::Fair => Weather::Away,
            Weather::Away => Weather::Apart,
            Weather::Apart if self.rng.chance(850) => Weather::Thin,
            Weather::Apart => Weather::Apart,
            Weather::Thin => {
                *self.rng.pick(&[Weather::Apart, Weather::Apart, Weather::Thin, Weather::Thin, Weather::Fair])
            }
        };
        let long = self.rng.chance(450);
        let (least, most) = match (self.weather, long) {
            (Weather::Fair, _) => (3_000, 10_000),
            (Weather::Away, _) => (15_000, 45_000),
            (Weather::Apart, false) => (200, 4_000),
            (Weather::Apart, true) => (4_000, 36_000),
            (Weather::Thin, false) => (100, 4_000),
            (Weather::Thin, true) => (4_000, 45_000),
        };
        self.weather_until = self.now + self.rng.between(least, most);
        let linked = matches!(self.weather, Weather::Fair | Weather::Away);
        self.linked = vec![vec![linked; count]; count];
        self.reached = vec![self.weather != Weather::Away; count];
        let leads = (0..count).filter(|v| self.voters[*v].leads.is_some()).max_by_key(|v| self.voters[*v].term);
        if let (Weather::Thin, Some(leader)) = (self.weather, leads) {
            self.thin(leader);
        }
        if self.rng.chance(100) {
            let v = leads.filter(|_| self.rng.chance(500)).unwrap_or(self.rng.below(count as u64) as usize);
            self.voters[v].frozen_until = self.now + self.rng.between(100, 30_000);
        }
        if self.rng.chance(50) {
            self.node_frozen_until = self.now + self.rng.between(100, 60_000);
        }
    }

    /// The leader reaches a bare quorum, and the node those others who hear nobody, or none.
    fn thin(&mut self, leader: usize) {
        let count = self.voters.len();
        let mut others: Vec<usize> = (0..count).filter(|v| *v != leader).collect();
        for _ in 0..count / 2 {
            let follower = others.swap_remove(self.rng.below(others.len() as u64) as usize);
            (self.linked[leader][follower], self.linked[follower][leader]) = (true, true);
        }
        let asks = self.rng.chance(500);
        self.reached = (0..count).map(|v| asks && others.contains(&v)).collect();
    }

    fn voter(&mut self, v: usize) {
        if !self.awake(v) {
            return;
        }
        match self.voters[v].leads.take() {
            Some(lead) => self.lead(v, lead),
            None => self.campaign(v),
        }
    }

    fn campaign(&mut self, v: usize) {
        let now = self.now;
        let quiet = |voter: &Voter| now - voter.heard_ms >= ELECTION_MS && voter.leads.is_none();
        if !quiet(&self.voters[v]) || !self.rng.chance(200) {
            return;
        }
        let willing: Vec<usize> =
            (0..self.voters.len()).filter(|p| self.reaches(v, *p) && quiet(&self.voters[*p])).collect();
        if !self.majority(willing.len()) {
            return;
        }
        let term = willing.iter().map(|p| self.voters[*p].term).max().unwrap_or(0) + 1;
        willing.iter().for_each(|p| self.voters[*p].term = term);
        let lead = Lead { acked_ms: now, seen: Observations::new(now), stepped_ms: now, gives_up: false };
        self.voters[v].leads = Some(lead);
    }

    fn lead(&mut self, v: usize, mut lead: Lead) {
        let (now, term) = (self.now, self.voters[v].term);
        let mut answers = 1;
        for p in (0..self.voters.len()).filter(|p| *p != v) {
            if !self.reaches(v, p) {
                continue;
            }
            if self.voters[p].term > term {
                self.voters[v].term = self.voters[p].term;
                return;
            }
            let peer = &mut self.voters[p];
            (peer.term, peer.heard_ms, peer.leads) = (term, now, None);
            answers += 1;
        }
        if self.majority(answers) {
            lead.acked_ms = now;
            if lead.gives_up {
                self.down = true;
                let ends = self.lease.clone().exclusive(now, BUDGET_MS, None).proven_ms;
                assert!(ends.is_none_or(|at| at <= now), "given up at {now} ms, and it lives until {ends:?}");
            }
        }
        // As short as the settings allow.
        let down_ms = LEASE.as_millis() as u64 * 101 / 100 + 5_100;
        let timeouts = Timeouts { down_ms, ..Timeouts::default() };
        if now - lead.stepped_ms >= 250 {
            lead.stepped_ms = now;
            let at = Now { mono_ms: now, wall_ms: now, unheard_ms: now - lead.acked_ms };
            for intent in control::step(&self.state, &mut lead.seen, &timeouts, at) {
                if let Intent::NodeStates(states) = intent {
                    lead.gives_up |= states.iter().any(|(.., to)| *to == NodeState::Down);
                }
            }
        }
        self.voters[v].leads = Some(lead);
    }

    fn says(&self, v: usize) -> Voucher {
        let voter = &self.voters[v];
        let status = Status {
            id: MemberId(v as u64),
            role: if voter.leads.is_some() { Role::Leader } else { Role::Follower },
            term: voter.term,
            leader: None,
            last_log_index: 0,
            commit_index: 0,
            applied_index: 0,
            snapshot_index: 0,
            purged_index: 0,
            last_contact_ms: 0,
            silence_ms: self.now - voter.heard_ms,
            quorum_ms: voter.leads.as_ref().map(|lead| self.now - lead.acked_ms),
            electorate: Electorate { since: (1, 1), sets: vec![(0..self.voters.len() as u64).map(MemberId).collect()] },
            members: Vec::new(),
        };
        Voucher::of(status, &self.state, std::slice::from_ref(&self.start), LEASE)
    }

    fn beat(&mut self) {
        let open: Vec<usize> = (0..self.voters.len()).filter(|v| self.reached[*v] && self.awake(*v)).collect();
        if open.is_empty() {
            return;
        }
        let (now, by) = (self.now, *self.rng.pick(&open));
        let leads = |v: &usize| self.voters[*v].leads.is_some() && self.reaches(by, *v) && self.awake(*v);
        if let Some(v) = (0..self.voters.len()).find(leads) {
            let lead = self.voters[v].leads.as_mut().unwrap();
            lead.seen.heard(nf_core::id::NodeNo(1), now);
            if lead.acked_ms == now {
                let granted = Coming::Granted { sent_ms: now, term: self.voters[v].term };
                self.coming.push((now + self.rng.below(1_000), granted));
                return;
            }
        }
        let asked = open.into_iter().map(|v| (v, now + self.rng.below(2_500))).collect();
        let vouched = Coming::Vouched { sent_ms: now, asked, said: Vec::new() };
        self.coming.push((now + self.rng.between(2_500, 4_000), vouched));
    }

    fn node(&mut self) {
        let mut coming = std::mem::take(&mut self.coming);
        for (_, what) in &mut coming {
            let Coming::Vouched { asked, said, .. } = what else { continue };
            asked.retain(|(v, at)| {
                let answers = *at <= self.now && self.awake(*v);
                if answers {
                    said.push(self.says(*v));
                }
                !answers
            });
        }
        if self.node_frozen_until > self.now {
            self.coming = coming;
            return;
        }
        let now = self.now;
        for (at, what) in coming {
            match what {
                what if at > now => self.coming.push((at, what)),
                Coming::Granted { sent_ms, term } => {
                    let lease_ms = LEASE.as_millis() as u64;
                    self.lease.granted(sent_ms, &BeatAnswer { term, lease_ms, ..BeatAnswer::default() }, 0);
                    self.granted_until = self.granted_until.max(sent_ms + lease_ms);
                }
                Coming::Vouched { sent_ms, said, .. } => {
                    if let Some(vouched) = vouch::verdict(&said) {
                        self.lease.vouched(sent_ms, now, vouched.lease_ms);
                    }
                }
            }
        }
        let lives = self.lease.exclusive(now, BUDGET_MS, None).proven_ms.is_some_and(|at| at > now);
        self.saved |= lives && now > self.granted_until;
        if now.is_multiple_of(1_000) {
            self.beat();
        }
    }

    fn run(mut self) -> (bool, bool) {
        while self.now < 400_000 && !self.down {
            self.now += MOMENT_MS;
            self.weather();
            (0..self.voters.len()).for_each(|v| self.voter(v));
            self.node();
        }
        (self.saved, self.down)
    }
}

#[test]
fn nothing_is_given_up_while_voters_vouch_for_it() {
    let seeds = std::env::var("NF_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(1000);
    let (mut saved, mut down) = (0_u64, 0_u64);
    for seed in 0..seeds {
        let ran = std::panic::catch_unwind(|| Model::new(seed).run());
        let (lived, fell) = ran.unwrap_or_else(|failure| {
            println!("seed {seed}");
            std::panic::resume_unwind(failure)
        });
        saved += u64::from(lived);
        down += u64::from(fell);
    }
    println!("{seeds} seeds: {saved} lived on by vouchers alone, {down} were given up");
    assert!(saved * 10 > seeds && down * 10 > seeds, "{saved} {down}: the weather shows nothing");
}
