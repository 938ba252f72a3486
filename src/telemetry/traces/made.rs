//! To which traces the jobs belong that were made a short while ago. Each process keeps this
//! for itself, and members tell one another beside the log entries that make the jobs, so
//! that an agent knows whose call its replica goes back to. Losing it loses a few spans.

use super::{carried, on};
use nf_core::command::{Batch, Command};
use nf_core::id::{RequestId, TenantId};
use nf_core::plan::Intent;
use nf_core::reconcile::Desired;
use nf_proto::internal::Traced;
use std::collections::{HashMap, VecDeque};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::Span;

/// Jobs whose trace is known at a time.
const KEPT: usize = 1024;
/// What starts later than this starts for reasons of its own.
const LONG: Duration = Duration::from_secs(600);
/// `00-`, 32 digits, `-`, 16 digits, `-01`: a trace that is watched.
const LENGTH: usize = 55;

/// A job by its tenant and its request.
type Named = (TenantId, RequestId);

#[derive(Debug, Default)]
struct Made {
    of: HashMap<Named, (Instant, String)>,
    /// The oldest first.
    order: VecDeque<Named>,
}

static MADE: LazyLock<Mutex<Made>> = LazyLock::new(Mutex::default);

fn with<T>(work: impl FnOnce(&mut Made) -> T) -> T {
    // Whatever a panic leaves half done here, spans alone miss it.
    work(&mut MADE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What is wanted belongs to the span's trace.
pub fn made(intent: &Intent, span: &Span) {
    if let Intent::Schedule { submission, .. } = intent.bare()
        && let Some(traceparent) = carried(span)
    {
        let (request, tenant) = (submission.request.to_string(), submission.spec.tenant.to_string());
        take(vec![Traced { request, traceparent, tenant }]);
    }
}

/// Takes in what others tell. What is no trace that is watched is left out: it is no reason to refuse
/// what it came with.
pub fn take(told: Vec<Traced>) {
    if told.is_empty() || !on() {
        return;
    }
    let watched = |text: &String| text.len() == LENGTH && text.ends_with("01");
    let one = |Traced { request, traceparent, tenant }| {
        let of = (TenantId::new(&tenant).ok()?, RequestId::new(&request).ok()?);
        Some((of, Some(traceparent).filter(watched)?))
    };
    let told: Vec<_> = told.into_iter().take(KEPT).filter_map(one).collect();
    with(|made| told.into_iter().for_each(|(of, traceparent)| made.keep(of, traceparent)));
}

/// The trace that a tenant's job belongs to.
pub fn of(tenant: &TenantId, request: &RequestId) -> Option<String> {
    let fresh = |(at, text): &(Instant, String)| (at.elapsed() < LONG).then(|| text.clone());
    on().then(|| with(|made| made.of.get(&(tenant.clone(), request.clone())).and_then(fresh))).flatten()
}

/// The traces of jobs among which there may be some that are watched.
pub trait Jobs {
    fn requests(&self) -> impl Iterator<Item = (&TenantId, &RequestId)>;
}

impl Jobs for Batch {
    fn requests(&self) -> impl Iterator<Item = (&TenantId, &RequestId)> {
        self.commands.iter().filter_map(|command| match command {
            Command::Submit { submission, .. } => Some((&submission.spec.tenant, &submission.request)),
            _ => None,
        })
    }
}

impl Jobs for Desired {
    fn requests(&self) -> impl Iterator<Item = (&TenantId, &RequestId)> {
        self.replicas.values().map(|want| (&want.spec.tenant, &want.request))
    }
}

/// Whether there is anything to tell to others.
pub fn any() -> bool {
    on() && with(|made| !made.of.is_empty())
}

/// What is known of these jobs, to be told to others.
pub fn among(jobs: &impl Jobs) -> Vec<Traced> {
    if !any() {
        return Vec::new();
    }
    let traced = |(tenant, request): (&TenantId, &RequestId)| {
        let traceparent = of(tenant, request)?;
        Some(Traced { request: request.to_string(), traceparent, tenant: tenant.to_string() })
    };
    jobs.requests().filter_map(traced).collect()
}

impl Made {
    fn keep(&mut self, of: Named, traceparent: String) {
        if self.of.insert(of.clone(), (Instant::now(), traceparent)).is_none() {
            self.order.push_back(of);
        }
        while self.order.len() > KEPT {
            if let Some(oldest) = self.order.pop_front() {
                self.of.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_no_more_than_there_is_room_for() {
        let mut made = Made::default();
        let tenant = |name| TenantId::new(name).unwrap();
        let request = |n: usize| (tenant("t1"), RequestId::new(&format!("r-{n}")).unwrap());
        for n in 0..KEPT + 10 {
            made.keep(request(n), n.to_string());
            made.keep(request(n), format!("{n} again"));
        }
        assert_eq!((made.of.len(), made.order.len()), (KEPT, KEPT));
        assert!(!made.of.contains_key(&request(9)));
        assert_eq!(made.of[&request(KEPT + 9)].1, format!("{} again", KEPT + 9));
        assert!(
            !made.of.contains_key(&(tenant("t2"), request(KEPT + 9).1)),
            "another tenant's of that name has its own"
        );
    }
}
