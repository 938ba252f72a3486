//! Neural Fabric: everything that touches the world. Decisions live in `nf-core`.
//!
//! | row | modules | may import |
//! |---|---|---|
//! | 0 | `nf_core`, `nf_proto` | std and small crates |
//! | 1 | `pqc` `sealed` `secret` | row 0 |
//! | 1 | `outgoing` | row 0, `pqc` |
//! | 1 | `config` `telemetry` `security` `storage` `models` | row 0, `pqc`, `sealed`, `secret`, `outgoing` |
//! | 2 | `raft` (with the proposer) | rows 0–1; openraft, in this room alone |
//! | 2 | `exchange` | rows 0–1, `raft` |
//! | 3 | `controller` `agent` `api` `gateway` `integrations` | rows 0–1, `raft`, `exchange`; not one another |
//! | 4 | `daemon` `cli` `main` | everything |
//!
//! `tests/it/layers.rs` holds the code against this table.

pub mod agent;
pub mod api;
pub mod cli;
pub mod config;
pub mod controller;
pub mod daemon;
pub mod exchange;
pub mod gateway;
pub mod integrations;
pub mod models;
pub mod outgoing;
pub mod pqc;
pub mod raft;
pub mod sealed;
pub mod secret;
pub mod security;
pub mod storage;
pub mod telemetry;
