//! The integration binary: one program, so that RocksDB and the rest are linked
//! once. Each file beside this one is a topic.

// Helpers of tests are tests: a panic in them is a failed test with a line number.
#![allow(clippy::unwrap_used)]

mod api;
mod audit_export;
mod auth;
mod cli;
mod commands;
mod documents;
mod exchange;
mod floods;
mod harness;
mod layers;
mod model_signing;
mod parsers;
mod proof;
mod raft_group;
mod raft_members;
mod raft_voters;
mod raw;
mod storage_crash;
mod storage_files;
mod storage_suite;
mod surface;
mod table;
mod tree;
