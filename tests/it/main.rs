//! Integration tests, in one binary: a harness and a file per topic.

mod harness;
mod raft_group;
mod raft_members;
mod storage_crash;
mod storage_files;
mod storage_suite;
