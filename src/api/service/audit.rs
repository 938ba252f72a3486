//! The audit trail, read in pages of lines that `nf audit verify` takes as they are.
//! The last page ends with the checkpoint. It does not check the trail: whoever reads
//! it does, without trusting a member.

use super::{Call, Service};
use crate::api::error::Failure;
use crate::raft::View;
use crate::security::audit;

/// Entries of a page when the caller does not say, and at most.
pub const PER_PAGE: u64 = 1000;
pub const MAX_PER_PAGE: u64 = 10_000;

/// A page of the trail.
#[derive(Clone, Debug)]
pub struct Page {
    pub lines: String,
    /// Where the next page begins; None: the checkpoint is the last line of this one.
    pub next: Option<u64>,
    pub index: u64,
}

impl Service {
    /// Entries from `from` on, which counts from 1.
    pub async fn audit(&self, call: &Call, from: u64, limit: u64) -> Result<Page, Failure> {
        let view = self.read(call).await?;
        let chain = view.state.audit();
        let (from, limit) = (from.max(1), limit.clamp(1, MAX_PER_PAGE));
        let entries = self.replica.audit(from, limit as usize).await?;
        let lines: String = entries.iter().filter(|entry| entry.seq <= chain.seq()).map(audit::line).collect();
        let last = entries.last().map_or(from.saturating_sub(1), |entry| entry.seq);
        if last < chain.seq() && !entries.is_empty() {
            return Ok(Page { lines, next: Some(last + 1), index: view.index });
        }
        let lines = lines + &self.signed_end(&view);
        Ok(Page { lines, next: None, index: view.index })
    }

    /// Where the trail ends, signed by this member: one line, for others to keep.
    pub async fn checkpoint(&self, call: &Call) -> Result<Page, Failure> {
        let view = self.read(call).await?;
        Ok(Page { lines: self.signed_end(&view), next: None, index: view.index })
    }

    fn signed_end(&self, view: &View) -> String {
        let checkpoint = view.state.audit().checkpoint(&view.state.meta().cluster);
        let signed = self.sign.as_ref().and_then(|sign| sign(&checkpoint));
        audit::last_line(&checkpoint, signed.as_ref())
    }
}
