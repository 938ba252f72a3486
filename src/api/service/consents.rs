//! Use cases about consents (P1): a tenant's signed statement is verified and put on record,
//! or taken back. What then stops and is removed is decided in the core.

use super::list::NumberPage;
use super::{Call, Service, freshness, off_thread};
use crate::api::convert::consent::{ConsentBody, ConsentList, CopyBody};
use crate::api::error::Failure;
use nf_core::command::{Answer, Mode};
use nf_core::consent::{Consent, key};
use nf_core::id::TenantId;
use nf_core::plan::Intent;
use nf_core::reason::{Reason, Refusal};

/// Copies that one answer tells of.
const COPIES: usize = 1000;

impl Service {
    /// Puts a tenant's signed statement on record, in the caller's name.
    pub async fn consent(&self, call: &Call, tenant: TenantId, text: String) -> Result<(ConsentBody, u64), Failure> {
        call.who.acts(Some(tenant.clone()))?;
        let Some(judge) = self.consents.clone() else {
            let detail = "no keys of tenants are configured, so no statement can be verified; set NF_CONSENT_KEYS";
            return Err(Refusal::field(Reason::NoTrustRoot, "statement", detail).into());
        };
        let of = tenant.clone();
        // It reads a file, and verifies two signatures.
        let verified = off_thread(move || judge(&of, text.as_bytes())).await??;
        let said = Consent {
            statement: verified.statement,
            scope: verified.scope,
            until_ms: verified.until_ms,
            key_id: verified.key_id.into(),
            by: None,
            at_ms: 0,
            ended_ms: None,
        };
        let (_, index) = self.commit(call, Intent::Consent(Box::new(said))).await?;
        self.applied_past(index.saturating_sub(1), call.deadline).await;
        let state = self.replica.applied().state;
        let found = state.consent(key(&tenant, &verified.statement)).filter(|found| found.ended_ms.is_none());
        let gone = || Failure::new(Reason::Conflict, "somebody revoked it at the same moment; sign a new one");
        Ok((ConsentBody::new(found.ok_or_else(gone)?, state.meta().now_ms), index))
    }

    /// Takes a consent back. True when it counted until now.
    pub async fn dissent(&self, call: &Call, tenant: TenantId, statement: [u8; 32]) -> Result<(bool, u64), Failure> {
        call.who.acts(Some(tenant.clone()))?;
        let (answer, index) = self.commit(call, Intent::Dissent { tenant, statement }).await?;
        // The answer means that no member takes a job on it from now on.
        self.applied_past(index.saturating_sub(1), call.deadline).await;
        Ok((answer == Answer::Count(1), index))
    }

    /// What is on record, for one tenant or all, and which nodes may have copies.
    pub async fn consents(&self, call: &Call, page: NumberPage) -> Result<ConsentList, Failure> {
        let view = self.read(call).await?;
        let (read, meta) = (freshness(&view), view.state.meta());
        let mine = |tenant: &TenantId| call.tenant.as_ref().is_none_or(|only| only == tenant);
        let mut items: Vec<_> = view.state.consents().filter(|consent| mine(&consent.scope.tenant)).collect();
        let first = usize::try_from(page.after.unwrap_or(0)).unwrap_or(usize::MAX).min(items.len());
        items.sort_by_cached_key(|consent| (consent.scope.tenant.clone(), consent.at_ms, consent.statement));
        items.drain(..first);
        let next_token = (items.len() > page.per_page).then(|| page.token((first + page.per_page) as u64));
        items.truncate(page.per_page);
        let items = items.into_iter().map(|consent| ConsentBody::new(consent, meta.now_ms)).collect();
        let copies = view.state.copies().filter(|copy| mine(&copy.tenant));
        let mut copies: Vec<CopyBody> = copies.map(|copy| CopyBody::new(&view.state, copy)).collect();
        copies.sort_by(|a, b| (!a.purging, &a.node).cmp(&(!b.purging, &b.node)));
        let copies_left_out = copies.len().saturating_sub(COPIES);
        copies.truncate(COPIES);
        let simulation = meta.mode == Mode::Simulation;
        Ok(ConsentList { items, next_token, copies, copies_left_out, simulation, read })
    }
}
