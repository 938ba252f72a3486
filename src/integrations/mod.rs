//! Products beside ours, each with one job here, each optional. They decide nothing.

pub mod prometheus;
