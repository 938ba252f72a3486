//! Replays: arrivals through a model of a service, once for each policy, so that
//! the autoscaler can be held against the rules that others use, on equal terms. A
//! request waits in one line for a free slot; replicas start slowly and finish what
//! they run before they go. In integers and seeded, so a replay is the same for ever.

pub mod load;
pub mod rules;
pub mod table;
pub mod when;
pub mod world;

pub use load::{Load, Shape};
pub use rules::{Policy, Product, Rule};
pub use when::When;
pub use world::{Outcome, run};
