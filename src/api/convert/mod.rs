//! The border: what comes in from outside becomes core types here or is refused
//! with the path of the field at fault, and core types become answers. Nothing
//! behind it ever sees unchecked input. It does not call anything.

pub mod amounts;
pub mod answer;
pub mod approval;
pub mod asked;
pub mod consent;
pub mod event;
pub mod joining;
pub mod json;
pub mod node;
pub mod policy;
pub mod proto;
pub mod rollout;
pub mod schedule;
pub mod value;

#[cfg(test)]
mod tests;
