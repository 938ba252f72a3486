//! What an executor has before it runs anything: its node for itself, users for replicas, and a word of what
//! the machine does not give.

use super::ExecutorConfig;
use crate::agent::lock;
use crate::agent::logs::keeper;
use crate::agent::post::Places;
use crate::agent::runtimes::cgroup::Cgroups;
use crate::agent::runtimes::users::{self, Giver, Users};
use nf_core::id::NodeName;
use std::fs::File;
use std::io;

/// Users for replicas, with the way to their directories.
pub(super) fn open_users(config: &ExecutorConfig, places: &Places) -> io::Result<Result<Giver, String>> {
    let paved = |giver| {
        users::pave(&config.users.home, &config.data_dir, &places.replicas).map(|()| giver).map_err(|e| e.to_string())
    };
    match Giver::find(&config.users).and_then(paved) {
        Err(why) if config.users.required => Err(io::Error::new(io::ErrorKind::PermissionDenied, Users::refusal(&why))),
        found => Ok(found),
    }
}

/// What holds replicas' programs within bounds here, said once at start.
pub(super) fn tell_limits(node: &NodeName, cgroups: &Result<Cgroups, String>, users: &Result<Giver, String>) {
    match users {
        Ok(_) => tracing::info!(%node, "each replica runs as a user of its own"),
        Err(why) => tracing::info!(%node, why, "replicas run as this process' user; see nf doctor"),
    }
    match cgroups {
        Ok(groups) if groups.missing().is_empty() => tracing::info!(%node, "replicas get control groups"),
        Ok(groups) => {
            let missing = groups.missing().join(", ");
            tracing::info!(%node, missing, "replicas get control groups without these limits; see nf doctor");
        }
        Err(why) => tracing::info!(%node, why, "replicas get no control groups; see nf doctor"),
    }
}

/// What one agent of a node has, and no other.
pub(in crate::agent) struct Sole {
    _records: File,
    /// None where a keeper of logs hangs.
    _logs: Option<File>,
}

/// Makes this agent the node's own, and bounds the logs that grew while none was there, before anything else is done.
///
/// # Errors
/// Another one is there.
pub(super) fn take_hold(places: &Places) -> io::Result<Sole> {
    let path = places.records.join("lock");
    let other =
        || io::Error::new(io::ErrorKind::ResourceBusy, format!("{}: another agent of this node runs", path.display()));
    let records = lock::take(&path)?.ok_or_else(other)?;
    let logs = keeper::take_over(&places.logs);
    let logs = logs.inspect_err(|error| tracing::warn!(%error, "logs are cut by this agent all the same")).ok();
    keeper::cut(&places.logs)?;
    Ok(Sole { _records: records, _logs: logs })
}
