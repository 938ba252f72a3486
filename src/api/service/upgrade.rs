//! The end of a rolling upgrade: from then on entries may be written that the build before can't read.

use super::{Call, Service};
use crate::api::error::Failure;
use nf_core::apply::level_of_all;
use nf_core::command::Mode;
use nf_core::id::MemberId;
use nf_core::plan::Intent;
use nf_core::reason::Reason;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which feature level the group is at, and which it could be at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpgradeBody {
    /// Log entries of this level and below are written.
    pub feature_level: u32,
    /// The highest level that every member runs.
    pub highest: u32,
    /// Nothing is left to finalize.
    pub finalized: bool,
    pub dry_run: bool,
    pub simulation: bool,
}

impl Service {
    /// Raises the feature level to the highest one that every member runs; with `dry_run` says what that is. No
    /// build that runs less can be a member afterwards.
    pub async fn upgrade(&self, call: &Call, dry_run: bool) -> Result<UpgradeBody, Failure> {
        let view = self.read(call).await?;
        let members: Vec<MemberId> = self.replica.status().members.iter().map(|member| member.id).collect();
        let (highest, _) =
            level_of_all(&view.state, &members).map_err(|unknown| Failure::new(Reason::FeatureLevel, unknown))?;
        let mut level = view.state.meta().level;
        if highest > level && !dry_run {
            self.commit(call, Intent::RaiseLevel { to: highest, members }).await?;
            level = highest;
        }
        let simulation = view.state.meta().mode == Mode::Simulation;
        Ok(UpgradeBody { feature_level: level, highest, finalized: highest <= level, dry_run, simulation })
    }
}
