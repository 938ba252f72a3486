//! Use cases about approvals: a promoter lets a version of their tenant into
//! production, or takes that back. Whose approval counts is decided in the core.

use super::list::NumberPage;
use super::{Call, Service, freshness};
use crate::api::convert::approval::{ApprovalBody, ApprovalList, Wanted};
use crate::api::error::Failure;
use nf_core::approval::{self, Version};
use nf_core::command::{Answer, Mode};
use nf_core::plan::Intent;
use nf_core::reason::Reason;

/// What was approved, and the index that the answer reflects.
pub type Approved = (ApprovalBody, u64);

impl Service {
    /// Approves these bytes of a version, in the caller's name.
    pub async fn approve(&self, call: &Call, wanted: Wanted) -> Result<Approved, Failure> {
        let Wanted { of, manifest, for_ms } = wanted;
        call.who.acts(Some(of.tenant.clone()))?;
        self.not_by_its_signer(call, &of, manifest).await?;
        let (_, index) = self.commit(call, Intent::Approve { of: of.clone(), manifest, for_ms }).await?;
        self.applied_past(index.saturating_sub(1), call.deadline).await;
        let state = self.replica.applied().state;
        let found = state.approval(&of.tenant, &of.model, &of.version);
        let gone = || Failure::new(Reason::Conflict, "somebody revoked it at the same moment; approve it again");
        let found = found.map(|approval| ApprovalBody::new(approval, state.meta().now_ms));
        Ok((found.ok_or_else(gone)?, index))
    }

    /// Tells a promoter at once what each later call would be refused for: they signed it themselves, or nobody can
    /// tell. What the store does not know, or nobody has signed yet, is judged when it is to run.
    async fn not_by_its_signer(&self, call: &Call, of: &Version, manifest: [u8; 32]) -> Result<(), Failure> {
        let Some(actor) = self.actor(call) else { return Ok(()) };
        let found = self.models.facts(&of.tenant, &of.model, &of.version, call.deadline).await;
        let Ok(Some(facts)) = found else { return Ok(()) };
        let evidence = facts.evidence.filter(|_| facts.manifest == manifest);
        let Some(found) = evidence else { return Ok(()) };
        let judged = approval::not_by_its_signer(&found.publishers, &actor.person(), &of.model, &of.version);
        match judged {
            Err(refusal) if self.mode(call).await? == Mode::Production => Err(refusal.into()),
            _ => Ok(()),
        }
    }

    /// Takes an approval back. True when there was one.
    pub async fn disapprove(&self, call: &Call, of: Version) -> Result<(bool, u64), Failure> {
        call.who.acts(Some(of.tenant.clone()))?;
        let (answer, index) = self.commit(call, Intent::Disapprove(of)).await?;
        // The answer means that no member takes a job on it from now on.
        self.applied_past(index.saturating_sub(1), call.deadline).await;
        Ok((answer == Answer::Count(1), index))
    }

    /// What is approved, for one tenant or all.
    pub async fn approvals(&self, call: &Call, page: NumberPage) -> Result<ApprovalList, Failure> {
        let view = self.read(call).await?;
        let (read, meta) = (freshness(&view), view.state.meta());
        let mine = |of: &Version| call.tenant.as_ref().is_none_or(|tenant| *tenant == of.tenant);
        let mut items: Vec<_> = view.state.approvals().filter(|approval| mine(&approval.of)).collect();
        let first = usize::try_from(page.after.unwrap_or(0)).unwrap_or(usize::MAX).min(items.len());
        let name = |of: &Version| (of.tenant.clone(), of.model.clone(), of.version.clone());
        items.sort_by_cached_key(|approval| name(&approval.of));
        items.drain(..first);
        let next_token = (items.len() > page.per_page).then(|| page.token((first + page.per_page) as u64));
        items.truncate(page.per_page);
        let items = items.into_iter().map(|approval| ApprovalBody::new(approval, meta.now_ms)).collect();
        Ok(ApprovalList { items, next_token, simulation: meta.mode == Mode::Simulation, read })
    }
}
