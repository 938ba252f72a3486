//! The agent's beats: one message for all of its nodes, the leases that the answer grants, and whom it asks where no
//! leader answers.

use super::node::Standing;
use super::{Agent, Spoken, lease, supersede};
use crate::exchange::{Beat, BeatAnswer, Error, NodeStart, Vouched, vouch};
use nf_core::id::Incarnation;
use std::collections::BTreeSet;

/// When beats were sent, of whom, and the answer.
pub(super) type Beating = (u64, Spoken, Result<BeatAnswer, Error>);
/// When members were asked to vouch for whom, and what a majority says.
pub(super) type Vouching = (u64, Spoken, Option<Vouched>);

impl Agent {
    pub(super) fn beat(&mut self) {
        if self.beating.is_some() {
            return;
        }
        let alive = self.spoken(|s| matches!(s, Standing::Registered(_)));
        if alive.is_empty() {
            return;
        }
        let beat = |(at, incarnation): &(usize, Incarnation)| {
            let node = &self.nodes[*at];
            let first = self.vitals.as_ref().filter(|_| *at == 0);
            Beat {
                node: node.registration.node.clone(),
                incarnation: *incarnation,
                revision_seen: node.revision(),
                told: node.executor().told(),
                vitals: first.map(|vitals| vitals.borrow().to_vec()).unwrap_or_default(),
            }
        };
        let beats: Vec<Beat> = alive.iter().map(beat).collect();
        let (link, sent) = (self.link.clone(), lease::boot_ms());
        self.beating = Some(Box::pin(async move { (sent, alive, link.beat(beats).await) }));
    }

    pub(super) fn answered(
        &mut self,
        sent_ms: u64,
        spoken: &[(usize, Incarnation)],
        answer: Result<BeatAnswer, Error>,
    ) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(%error, "a beat was not answered");
                self.ask_vouchers();
                return;
            }
        };
        let superseded: BTreeSet<usize> = self.at(&answer.superseded).collect();
        let unknown: BTreeSet<usize> = self.at(&answer.unknown).collect();
        let mut waiting = BTreeSet::new();
        for (at, incarnation) in spoken {
            let node = &mut self.nodes[*at];
            match () {
                () if !matches!(node.standing(), Standing::Registered(_)) => {}
                () if node.registration.incarnation != *incarnation => {}
                () if superseded.contains(at) => supersede(node),
                () if unknown.contains(at) => node.unknown(),
                () => {
                    node.take_lease(sent_ms, &answer);
                    if node.waits() || node.exclusive_until().is_some() {
                        waiting.insert(*at);
                    }
                }
            }
        }
        // Starts may have waited for the lease, and exclusive replicas live by it.
        self.step(&waiting);
    }

    /// Whether a majority of voters hears no leader either: asked only for what a lease keeps alive.
    pub(super) fn ask_vouchers(&mut self) {
        let live = |(at, _): &(usize, Incarnation)| self.nodes[*at].exclusive_until().is_some();
        let nodes: Spoken = self.spoken(|s| s != Standing::Superseded).into_iter().filter(live).collect();
        if nodes.is_empty() || self.vouching.is_some() {
            return;
        }
        let starts: Vec<NodeStart> = nodes.iter().map(|(at, _)| self.nodes[*at].start()).collect();
        let (link, sent) = (self.link.clone(), lease::boot_ms());
        self.vouching = Some(Box::pin(async move { (sent, nodes, vouch::verdict(&link.vouchers(starts).await)) }));
    }

    pub(super) fn vouched(&mut self, sent_ms: u64, spoken: &[(usize, Incarnation)], vouched: Option<Vouched>) {
        let Some(Vouched { lease_ms, refused }) = vouched else { return };
        tracing::debug!(lease_ms, "no leader, and a majority of voters hears none: leases go on");
        let refused: BTreeSet<usize> = refused.iter().filter_map(|name| self.by_name.get(name).copied()).collect();
        let now_ms = lease::boot_ms();
        let mut prolonged = BTreeSet::new();
        for (at, incarnation) in spoken.iter().filter(|(at, _)| !refused.contains(at)) {
            let node = &mut self.nodes[*at];
            if node.standing() != Standing::Superseded && node.registration.incarnation == *incarnation {
                node.take_vouched(sent_ms, now_ms, lease_ms);
                prolonged.insert(*at);
            }
        }
        self.step(&prolonged);
    }
}
