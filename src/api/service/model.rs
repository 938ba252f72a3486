//! What the model store knows of a version, remembered for a moment so that the
//! schedule path does not touch a disk or a network for each call. It does not
//! fetch models.

use super::super::error::Failure;
use crate::api::convert::schedule::ModelFacts;
use arc_swap::ArcSwap;
use nf_core::id::{ModelId, TenantId, VersionId};
use nf_core::reason::{Reason, Refusal};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a version could not be looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// The store did not answer.
    Down(String),
    /// Its signature does not count for this tenant. With what else the store says of it, if it does.
    Refused(Refusal, Option<Box<ModelFacts>>),
}

/// Why a version is not let in, and what is known of it all the same.
#[derive(Clone, Debug)]
pub struct Missed {
    pub failure: Failure,
    pub facts: Option<Box<ModelFacts>>,
}

impl From<Failure> for Missed {
    fn from(failure: Failure) -> Self {
        Self { failure, facts: None }
    }
}

/// Looks a version up for a tenant; may block. None: no store knows it.
pub type Resolve = Arc<dyn Fn(&TenantId, &ModelId, &VersionId) -> Result<Option<ModelFacts>, Unresolved> + Send + Sync>;

/// How long an answer is trusted.
const FRESH: Duration = Duration::from_secs(2);
/// How long "unknown" is: short, so that a version just published counts at once.
const FRESH_UNKNOWN: Duration = Duration::from_millis(250);
/// Versions that are remembered.
const MAX_KNOWN: usize = 1024;

type Known = HashMap<(TenantId, ModelId, VersionId), (Option<ModelFacts>, Instant)>;

/// See the module's text. Readers take no lock.
pub struct Models {
    resolve: Option<Resolve>,
    known: ArcSwap<Known>,
}

impl Models {
    pub fn new(resolve: Option<Resolve>) -> Self {
        Self { resolve, known: ArcSwap::default() }
    }

    /// Whether there is a store to ask.
    pub fn known_store(&self) -> bool {
        self.resolve.is_some()
    }

    /// # Errors
    /// `StoreUnavailable` when the store does not answer in time, or why the signature does not count.
    pub async fn facts(
        &self,
        tenant: &TenantId,
        model: &ModelId,
        version: &VersionId,
        deadline: Instant,
    ) -> Result<Option<ModelFacts>, Missed> {
        let Some(resolve) = &self.resolve else { return Ok(None) };
        let key = (tenant.clone(), model.clone(), version.clone());
        if let Some((facts, until)) = self.known.load().get(&key)
            && *until > Instant::now()
        {
            return Ok(facts.clone());
        }
        let (resolve, (tenant, model, version)) = (resolve.clone(), key.clone());
        let asked = tokio::task::spawn_blocking(move || resolve(&tenant, &model, &version));
        let down = |text: String| {
            let detail = format!("the model store does not answer ({text}); see MODEL_STORE_URL in nf config view");
            Failure::new(Reason::StoreUnavailable, detail)
        };
        let facts = match tokio::time::timeout_at(deadline.into(), asked).await {
            Ok(Ok(Ok(facts))) => facts,
            Ok(Ok(Err(Unresolved::Down(text)))) => return Err(down(text).into()),
            Ok(Ok(Err(Unresolved::Refused(refusal, facts)))) => return Err(Missed { failure: refusal.into(), facts }),
            Ok(Err(_)) => return Err(down("its reader died".to_owned()).into()),
            Err(_) => return Err(down("the deadline passed".to_owned()).into()),
        };
        let until = Instant::now() + if facts.is_some() { FRESH } else { FRESH_UNKNOWN };
        self.known.rcu(|known| {
            // Full: start over, since what is in use comes back at once.
            let mut next = if known.len() < MAX_KNOWN { Known::clone(known) } else { Known::new() };
            next.insert(key.clone(), (facts.clone(), until));
            next
        });
        Ok(facts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::job::Runtime;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn an_answer_is_remembered_and_a_failure_is_not() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let resolve: Resolve = Arc::new(move |_, model, _| {
            count.fetch_add(1, Ordering::Relaxed);
            match model.as_str() {
                "broken" => Err(Unresolved::Down("refused".to_owned())),
                _ => Ok(Some(ModelFacts {
                    runtime: Runtime::Process,
                    manifest: [7; 32],
                    evidence: None,
                    data_classes: Vec::new(),
                    self_limiting: false,
                    budget: Default::default(),
                })),
            }
        });
        let models = Models::new(Some(resolve));
        let (m1, broken) = (ModelId::new("m1").unwrap(), ModelId::new("broken").unwrap());
        let version = VersionId::new("v1").unwrap();
        let tenant = TenantId::new("t1").unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        for _ in 0..3 {
            assert!(models.facts(&tenant, &m1, &version, deadline).await.unwrap().is_some());
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        for _ in 0..2 {
            let failure = models.facts(&tenant, &broken, &version, deadline).await.unwrap_err().failure;
            assert_eq!(failure.refusal.reason, Reason::StoreUnavailable);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }
}
