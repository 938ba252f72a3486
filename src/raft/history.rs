//! What is on disk and not in the state: past events, the audit trail, finished jobs. Read on this member alone;
//! what can't be read is an error, since nothing and "it is not there" mean different things to who asks.

use nf_core::event::Event;
use nf_core::id::{RequestId, TenantId};
use nf_core::job::Job;
use nf_core::rows::{self, Table};

use super::{Error, Replica};
use crate::storage::frame::invalid;
use crate::storage::state_db::StateDb;
use crate::storage::tables::Tables;

impl Replica {
    /// Events from `seq` on, at most `limit`, oldest first, as far as they are kept.
    pub async fn events(&self, seq: u64, limit: usize) -> Result<Vec<Event>, Error> {
        self.on_disk(move |tables| {
            let rows = tables.scan(Table::Event as u8, &seq.to_be_bytes(), limit)?;
            let events = rows.iter().map(|row| rows::read_event(&row.value).map_err(damaged));
            events.collect()
        })
        .await
    }

    /// At most `limit` entries of the audit trail from `seq` on.
    pub async fn audit(&self, seq: u64, limit: usize) -> Result<Vec<nf_core::audit::Entry>, Error> {
        self.on_disk(move |tables| {
            let rows = tables.scan(Table::AuditEntry as u8, &seq.to_be_bytes(), limit)?;
            rows.iter().map(|row| rows::read_audit(&row.value).map_err(damaged)).collect()
        })
        .await
    }

    /// The tenant's finished job of that request; of several the newest.
    pub async fn finished(&self, tenant: &TenantId, request: &RequestId) -> Result<Option<Job>, Error> {
        let key = rows::history_key(tenant, request);
        self.on_disk(move |tables| {
            let Some(position) = tables.get(Table::HistoryOf as u8, &key)? else {
                return Ok(None);
            };
            let value = tables.get(Table::History as u8, &position)?;
            value.map(|value| rows::read_history(&value).map_err(damaged)).transpose()
        })
        .await
    }

    /// Tenants that have a finished job of that name, at most `limit`.
    pub async fn finished_owners(&self, request: &RequestId, limit: usize) -> Result<Vec<TenantId>, Error> {
        let prefix = rows::history_prefix(request);
        self.on_disk(move |tables| {
            let rows = tables.scan(Table::HistoryOf as u8, &prefix, limit)?;
            let own = rows.iter().take_while(|row| row.key.starts_with(&prefix));
            own.map(|row| rows::history_owner(&row.key).ok_or_else(|| invalid("a key of the history"))).collect()
        })
        .await
    }

    /// Finished jobs, newest first, below history position `before` (None: from the newest).
    pub async fn finished_list(&self, before: Option<u64>, limit: usize) -> Result<Vec<(u64, Job)>, Error> {
        self.on_disk(move |tables| {
            let before = before.map(u64::to_be_bytes);
            let before = before.as_ref().map(<[u8; 8]>::as_slice);
            let rows = tables.scan_back(Table::History as u8, before, limit)?;
            rows.iter()
                .map(|row| {
                    let key = row.key.as_slice().try_into();
                    let key = key.map_err(|_| invalid("a key of the history"))?;
                    let job = rows::read_history(&row.value).map_err(damaged)?;
                    Ok((u64::from_be_bytes(key), job))
                })
                .collect()
        })
        .await
    }

    /// Reads rows on a blocking thread.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&StateDb) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let tables = self.shared.tables.clone();
        let read = self.runtime.spawn_blocking(move || work(&tables)).await.map_err(|_| Error::Stopping)?;
        read.map_err(|error| {
            tracing::error!(%error, "reading stored rows");
            Error::Unreadable
        })
    }
}

fn damaged(error: rows::Error) -> std::io::Error {
    invalid(error.to_string())
}
