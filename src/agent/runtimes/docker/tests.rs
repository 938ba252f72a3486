//! Which containers are ours, and which of ours have a record; without an engine.

use super::*;
use crate::agent::record::Launch;
use nf_core::id::{NodeName, RequestId};

fn record(dir: &Path) -> Record {
    let id = ReplicaId { job: JobNo(7), replica: 2 };
    let request = RequestId::new("r1").unwrap();
    let launch =
        Launch { request, id, generation: Generation(3), host: "h".into(), port: None, devices: None, uuids: vec![] };
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
fn the_containers_user_can_read_the_model_and_nothing_is_written() {
    let tmp = tempfile::tempdir().unwrap();
    let model = tmp.path().join("model");
    fs::create_dir_all(model.join("sub")).unwrap();
    fs::write(model.join("sub/file"), "x").unwrap();
    fs::set_permissions(model.join("sub/file"), Permissions::from_mode(0o444)).unwrap();
    fs::set_permissions(model.join("sub"), Permissions::from_mode(0o700)).unwrap();
    readable(&model).unwrap();
    let mode = |path: &str| fs::metadata(model.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("."), mode("sub"), mode("sub/file")), (0o755, 0o755, 0o444));
}
