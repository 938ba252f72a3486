//! Looks now and then for containers that nothing here tells of. Those that are this node's and have no record are
//! removed: a crash left them, or they are of a data directory that was lost. Those that may be this node's, and can't be
//! proven to be, are left alone and told of: they may hold devices that nobody sees in use by anybody known.

use super::container::remove;
use super::order;
use crate::agent::engine;
use crate::agent::executor::Shared;
use crate::agent::record;
use crate::agent::troubles::CONTAINER_UNKNOWN;
use crate::models::Container;
use bollard::models::ContainerSummary;
use bollard::query_parameters::ListContainersOptions;
use nf_core::id::{Generation, JobNo};
use nf_core::reconcile::ReplicaId;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Of a container's id, as much as people are shown.
const SHORT: usize = 12;

/// For as long as the executor is.
pub(in crate::agent) fn sweep(shared: &Arc<Shared>) {
    if shared.engine.config.socket.is_none() {
        return;
    }
    let shared_again = Arc::downgrade(shared);
    shared.runtime.spawn(async move {
        let mut told = BTreeSet::new();
        while let Some(pause) = once(&shared_again, &mut told).await {
            tokio::time::sleep(pause).await;
        }
    });
}

/// One look; `told` are those of whom an alarm tells. None: the executor is no more.
async fn once(shared: &Weak<Shared>, told: &mut BTreeSet<String>) -> Option<Duration> {
    let shared = shared.upgrade()?;
    // Nothing is removed once another agent may be at work here.
    let _lock = shared.lock()?;
    let patience = shared.engine.config.patience;
    let Ok(owner) = shared.engine.owner(&shared.places.records).await else { return Some(patience.sweep) };
    let Ok((docker, _)) = shared.engine.reach().await else { return Some(patience.again) };
    let filters = Some(HashMap::from([("label".to_owned(), vec![order::OWNER.to_owned()])]));
    let options = ListContainersOptions { all: true, filters, ..ListContainersOptions::default() };
    let Ok(found) = docker.list_containers(Some(options)).await else { return Some(patience.again) };
    let mut unknown = BTreeSet::new();
    for container in found {
        let Some(id) = container.id.clone() else { continue };
        let (here, owner) = (shared.clone(), owner.to_owned());
        let whose = tokio::task::spawn_blocking(move || unrecorded(&here, &owner, &container)).await;
        let left = match whose.unwrap_or(Whose::Strange) {
            Whose::Strange => continue,
            Whose::Ours => "a container of ours that has no record is removed",
            Whose::OfOurPlace if sees_our_place(&shared).await => {
                "a container that an earlier agent left, whose records are lost, is removed"
            }
            Whose::OfOurPlace | Whose::OfOurName => {
                unknown.insert(id);
                continue;
            }
        };
        tracing::warn!(container = id, "{left}");
        // Once: one that stays keeps nobody from the others, and nothing from being told. The next sweep finds it again.
        remove(docker, &id, shared.config.kill_after, Some(1)).await;
    }
    tell(&shared, told, unknown);
    Some(patience.sweep)
}

/// Whether what the engine calls our directory is ours.
async fn sees_our_place(shared: &Shared) -> bool {
    match &shared.engine.config.socket {
        Some(socket) => engine::sees(socket, &shared.places.replicas).await,
        None => false,
    }
}

/// Raises and ends alarms, one for each container.
fn tell(shared: &Shared, told: &mut BTreeSet<String>, unknown: BTreeSet<String>) {
    let (node, group) = (&shared.config.node, &shared.engine.config.group);
    let who = |id: &str| format!("{node} container {id}");
    for id in unknown.difference(told) {
        let short = id.get(..SHORT).unwrap_or(id);
        let text = format!(
            "container {short} carries the name of node {node} in group {group} and the number of an agent that is not known here; it is left alone and may hold devices. It is of a data directory that this node had elsewhere, or another group's of the same name: if nobody misses it, docker rm -f {short}"
        );
        shared.config.troubles.raise(CONTAINER_UNKNOWN, &who(id), &text);
    }
    for id in told.difference(&unknown) {
        shared.config.troubles.clear(CONTAINER_UNKNOWN, &who(id));
    }
    *told = unknown;
}

/// Whose it is, by what is written on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// It has our number.
    Ours,
    /// It has another number, and its model lies where only an agent of this node's data directory puts one. Only one
    /// works there at a time, and that is this one.
    OfOurPlace,
    /// Its node and group have our names, which others may have, too.
    OfOurName,
    /// Nothing is done about it here.
    Strange,
}

/// The same of one that no record tells of; of another it is nobody's question. Blocks for a moment.
fn unrecorded(shared: &Shared, owner: &str, container: &ContainerSummary) -> Whose {
    let names = (shared.config.node.as_str(), &*shared.engine.config.group);
    let whose = whose(container, owner, names, &shared.places.replicas);
    let recorded = |labels: &_| is_recorded(&shared.places.records, labels);
    match whose != Whose::Strange && container.labels.as_ref().is_some_and(recorded) {
        true => Whose::Strange,
        false => whose,
    }
}

fn whose(container: &ContainerSummary, owner: &str, (node, group): (&str, &str), replicas: &Path) -> Whose {
    let label = |name: &str| container.labels.as_ref().and_then(|labels| labels.get(name)).map(String::as_str);
    let of_node = label(order::NODE) == Some(node);
    let mounts = container.mounts.iter().flatten();
    let model = mounts.filter(|mount| mount.destination.as_deref() == Some(Container::MODEL)).find_map(|mount| {
        let source = Path::new(mount.source.as_deref()?);
        // Below the launch's own directory, which is below that of all.
        source.parent()?.parent()
    });
    match () {
        () if label(order::OWNER) == Some(owner) => Whose::Ours,
        () if of_node && model.is_some() && model == std::path::absolute(replicas).ok().as_deref() => Whose::OfOurPlace,
        () if of_node && label(order::GROUP) == Some(group) => Whose::OfOurName,
        () => Whose::Strange,
    }
}

/// Whether a record tells of the container with these labels. One that can't be read counts: it needs a person.
fn is_recorded(records: &Path, labels: &HashMap<String, String>) -> bool {
    let number = |label: &str| labels.get(label).and_then(|text| text.parse::<u64>().ok());
    let known = || {
        let replica = u16::try_from(number(order::REPLICA)?).ok()?;
        let generation = Generation(u32::try_from(number(order::GENERATION)?).ok()?);
        let id = ReplicaId { job: JobNo(number(order::JOB)?), replica };
        let path = record::path(records, id, generation);
        if path.with_extension("bad").exists() {
            return Some(true);
        }
        match record::load(records, id, generation) {
            Some(record) => Some(Some(&record.key) == labels.get(order::KEY)),
            None => Some(path.exists()),
        }
    };
    known().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::record::{Launch, Record};
    use nf_core::id::{NodeName, RequestId};
    use serde_json::json;
    use std::fs;

    fn record(dir: &Path) -> Record {
        let id = ReplicaId { job: JobNo(7), replica: 2 };
        let request = RequestId::new("r1").unwrap();
        let generation = Generation(3);
        let launch = Launch { request, id, generation, host: "h".into(), port: None, devices: None, uuids: vec![] };
        let record = Record::new(NodeName::new("n1").unwrap(), launch, "boot".into(), "/health".into(), 30);
        record.save(dir).unwrap();
        record
    }

    fn labels(of: &[(&str, &str)]) -> HashMap<String, String> {
        of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn only_what_no_record_tells_of_is_swept_up() {
        let tmp = tempfile::tempdir().unwrap();
        let record = record(tmp.path());
        let of = |job, replica, generation, key: &str| {
            let of = [(order::JOB, job), (order::REPLICA, replica), (order::GENERATION, generation), (order::KEY, key)];
            is_recorded(tmp.path(), &labels(&of))
        };
        assert!(of("7", "2", "3", &record.key));
        assert!(!of("7", "2", "3", "another start of the same generation"));
        assert!(!of("7", "2", "4", &record.key) && !of("8", "2", "3", &record.key));
        assert!(!of("x", "2", "3", &record.key) && !of("7", "99999", "3", &record.key), "labels are anybody's words");
        assert!(!is_recorded(tmp.path(), &labels(&[])));
        // What can't be read needs a person, and so does its container.
        let path = record::path(tmp.path(), record.launch.id, Generation(3));
        fs::write(&path, "{").unwrap();
        assert!(of("7", "2", "3", &record.key));
        fs::rename(&path, path.with_extension("bad")).unwrap();
        assert!(of("7", "2", "3", &record.key));
    }

    #[test]
    fn whose_a_container_is_is_told_by_its_number_its_place_and_its_names() {
        let of = |owner: &str, node: &str, group: &str, source: &str| {
            let found = json!({
                "Labels": { order::OWNER: owner, order::NODE: node, order::GROUP: group },
                "Mounts": [
                    { "Source": "/data/replicas/n1/other", "Destination": "/elsewhere" },
                    { "Source": source, "Destination": "/model" },
                ],
            });
            whose(&serde_json::from_value(found).unwrap(), "me", ("n1", "g"), Path::new("/data/replicas/n1"))
        };
        let place = "/data/replicas/n1/r1.0.j1.g1/model";
        assert_eq!(of("me", "n1", "g", place), Whose::Ours);
        assert_eq!(of("me", "renamed", "h", "/moved/replicas/n1/r1.0.j1.g1/model"), Whose::Ours);
        assert_eq!(of("lost", "n1", "h", place), Whose::OfOurPlace);
        assert_eq!(of("lost", "n2", "g", place), Whose::Strange, "another node's");
        assert_eq!(of("lost", "n1", "g", "/old/replicas/n1/r1.0.j1.g1/model"), Whose::OfOurName);
        assert_eq!(of("lost", "n1", "g", "/data/replicas/n1/deeper/r1.0.j1.g1/model"), Whose::OfOurName);
        assert_eq!(of("lost", "n1", "h", "/old/replicas/n1/r1.0.j1.g1/model"), Whose::Strange);
        let bare = serde_json::from_value(json!({ "Labels": { order::OWNER: "lost" } })).unwrap();
        assert_eq!(whose(&bare, "me", ("n1", "g"), Path::new("/data/replicas/n1")), Whose::Strange);
    }
}
