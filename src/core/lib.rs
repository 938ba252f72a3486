//! Every decision Neural Fabric makes, and nothing else: no I/O, no clock, no
//! threads, no randomness. Given the same commands, each member computes the
//! same state; given the same state, the same plan. See docs/architecture.md.

#![forbid(unsafe_code)]

pub mod apply;
pub mod approval;
pub mod audit;
pub mod autoscaler;
mod bisect;
pub mod bounds;
pub mod budget;
pub mod capacity;
pub mod claim;
pub mod clock;
pub mod codec;
pub mod command;
pub mod consent;
pub mod control;
pub mod defrag;
pub mod disruption;
pub mod etag;
pub mod event;
pub mod fault;
pub mod floor;
pub mod forecast;
pub mod id;
pub mod invariants;
pub mod job;
pub mod join;
pub mod ledger;
pub mod liveness;
pub mod mig;
pub mod model_budget;
pub mod moves;
pub mod node;
pub mod placement;
pub mod plan;
pub mod played;
pub mod policy;
pub mod prefetch;
pub mod proposer;
pub mod quarantine;
pub mod quota;
pub mod reason;
pub mod reconcile;
pub mod resources;
pub mod rollout;
pub mod rows;
pub mod scaling;
pub mod sharing;
#[doc(hidden)]
pub mod sim;
pub mod slo;
pub mod state;
pub mod tenant;
#[doc(hidden)]
pub mod testing;
pub mod topology;
mod trail;
pub mod trust;
pub mod vacancy;
pub mod view;
pub mod whatif;
