//! What a container is given, without an engine.

use super::*;

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

#[test]
fn only_what_speaks_of_the_cpus_is_a_refusal_of_them() {
    let name = "nf-n1-cpuset-cpus-7.0.g1";
    let of = |why, text: &str| denies_cpus(&Fault { why, text: text.into() }, name);
    for refused in [
        "Requested CPUs are not available - requested 0-3, available: 0-1",
        "OCI runtime create failed: failed to write \"0-3\": write /sys/fs/cgroup/nf/cpuset.cpus: numerical result out of range",
        "crun: write to `cpuset.cpus`: Permission denied: OCI permission denied",
        "Your kernel does not support cgroup cpuset",
        "controller `cpuset` is not available under /sys/fs/cgroup/machine.slice/cgroup.controllers",
    ] {
        assert!(of(Reason::RuntimeFailed, refused), "{refused}");
    }
    for other in [
        "Conflict. The container name \"/nf-n1-cpuset-cpus-7.0.g1\" is already in use by container 0f3a",
        "mount /data/replicas/n1/cpus/model: no such file or directory",
        "mount /data/replicas/n1/r-cpu.j1.g1/cpuset: no such file or directory",
        "pull access denied for registry.example/cpu-models",
        "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler",
        "range of CPU is from 0.01 to 2.00, as there are only 2 of them available",
    ] {
        assert!(!of(Reason::RuntimeFailed, other), "{other}");
    }
    assert!(!of(Reason::EngineUnavailable, "the engine does not answer: cpuset"), "it may have begun");
}
