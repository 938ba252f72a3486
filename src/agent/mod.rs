//! To be written.
pub mod executor;
mod logs;
mod post;
mod probe;
mod record;
mod runtimes;
