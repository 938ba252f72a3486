//! Use cases about join tokens. The secret stays with whoever made it: what is committed is
//! its digest. Using one is no use case here: that is a door of the peer port.

use super::list::NumberPage;
use super::{Call, Service, freshness};
use crate::api::convert::joining::{JoinTokenBody, JoinTokenList, Wanted};
use crate::api::error::Failure;
use nf_core::audit::Hash;
use nf_core::command::{Answer, Mode};
use nf_core::id::Digest16;
use nf_core::plan::Intent;
use nf_core::reason::Reason;

/// What whoever made a token needs for its text.
#[derive(Clone, Debug)]
pub struct Made {
    pub token: JoinTokenBody,
    /// SHA-256 of the public key of the group's authority.
    pub authority: String,
    /// Peer addresses of members.
    pub members: Vec<String>,
    pub index: u64,
}

impl Service {
    pub async fn add_join_token(&self, call: &Call, wanted: Wanted) -> Result<Made, Failure> {
        let none = || {
            let detail = "this member does not know which authority signed its own certificate; ask another member";
            Failure::new(Reason::NotSupported, detail)
        };
        let authority = self.authority.as_ref().and_then(|authority| authority()).ok_or_else(none)?;
        let Wanted { id, secret, node, for_ms } = wanted;
        let (_, index) = self.commit(call, Intent::AddJoinToken { id, secret, node, for_ms }).await?;
        self.applied_past(index.saturating_sub(1), call.deadline).await;
        let state = self.replica.applied().state;
        let gone = || Failure::new(Reason::Conflict, "somebody revoked it at the same moment; make another");
        let token = state.join_tokens().find(|token| token.id == id).ok_or_else(gone)?;
        let members = self.replica.status().members.into_iter().map(|member| member.peer).collect();
        Ok(Made { token: JoinTokenBody::new(token), authority: Hash(authority).to_string(), members, index })
    }

    /// True when it was there, and unused.
    pub async fn drop_join_token(&self, call: &Call, id: Digest16) -> Result<(bool, u64), Failure> {
        let (answer, index) = self.commit(call, Intent::DropJoinToken { id }).await?;
        self.applied_past(index.saturating_sub(1), call.deadline).await;
        Ok((answer == Answer::Count(1), index))
    }

    pub async fn join_tokens(&self, call: &Call, page: NumberPage) -> Result<JoinTokenList, Failure> {
        let view = self.read(call).await?;
        let first = usize::try_from(page.after.unwrap_or(0)).unwrap_or(usize::MAX);
        let mut items: Vec<_> = view.state.join_tokens().skip(first).take(page.per_page + 1).collect();
        let next_token = (items.len() > page.per_page).then(|| page.token((first + page.per_page) as u64));
        items.truncate(page.per_page);
        let items = items.into_iter().map(|token| JoinTokenBody::new(token)).collect();
        let simulation = view.state.meta().mode == Mode::Simulation;
        Ok(JoinTokenList { items, next_token, simulation, read: freshness(&view) })
    }
}
