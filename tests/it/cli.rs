//! The binary as a person meets it: exit codes and texts, without a group.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

/// Runs `nf` with nothing of this machine's settings, and a home of its own.
fn nf(home: &Path, env: &[(&str, &str)], args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nf"));
    command.env_clear().env("HOME", home).env("NO_COLOR", "1").envs(env.iter().copied()).args(args);
    command.output().unwrap()
}

fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_setting_that_does_not_hold_refuses_with_one_line_that_names_it() {
    let home = tempfile::tempdir().unwrap();
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[("SCHEDULER_PORT", "99999")], "SCHEDULER_PORT"),
        (&[("MAX_TENANT_GPUs", "3"), ("MAX_TENANT_GPUS", "4")], "MAX_TENANT_GPUS"),
        (&[("NEURAL_FABRIC_MODE", "production")], "MODEL_STORE_URL"),
        (&[("SIMULATION_MODE", "perhaps")], "SIMULATION_MODE"),
        (&[("NF_LISTEN", "0.0.0.0:0"), ("PQC_MODE", "off")], "PQC_MODE"),
        (&[("NF_CONFIG", "/nonexistent/nf.toml")], "/nonexistent/nf.toml"),
    ];
    for (env, name) in cases {
        let (code, out, err) = told(&nf(home.path(), env, &["serve"]));
        assert_eq!(code, 2, "{name}: {err}");
        assert!(out.is_empty() && err.contains(name), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}

#[test]
fn production_does_not_start_on_settings_that_lead_nowhere() {
    let home = tempfile::tempdir().unwrap();
    let env = [("MODEL_STORE_URL", "file:///m"), ("COSIGN_KEY_PATH", "/k"), ("NF_JWKS", "/j"), ("NF_TLS_DIR", "/t")];
    let (code, _, err) = told(&nf(home.path(), &env, &["serve"]));
    assert_eq!(code, 2);
    let last = err.lines().last().unwrap_or_default();
    assert!(last.starts_with("nf: NF_JWKS: ConfigInvalid"), "{err}");
}

#[test]
fn a_taken_port_says_which_and_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port().to_string();
    let (code, _, err) = told(&nf(home.path(), &[("SCHEDULER_PORT", &port)], &["serve"]));
    assert_eq!(code, 1, "{err}");
    assert!(err.contains(&format!("port {port} is taken")) && err.contains("--listen"), "{err}");
}

#[test]
fn nobody_there_is_exit_seven_with_the_next_command() {
    let home = tempfile::tempdir().unwrap();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = format!("http://{}", held.local_addr().unwrap());
    drop(held);
    for args in [&["get", "jobs"][..], &["run", "m", "--gpus", "1"], &["cluster", "members"]] {
        let (code, out, err) = told(&nf(home.path(), &[("NF_ADDR", &addr)], args));
        assert_eq!((code, out.as_str()), (7, ""), "{args:?}: {err}");
        assert!(err.contains(&addr) && err.contains("try: nf dev"), "{err}");
    }
    let (code, _, err) = told(&nf(home.path(), &[], &["dev", "status"]));
    assert_eq!(code, 4, "{err}");
}

#[test]
fn usage_is_exit_two() {
    let home = tempfile::tempdir().unwrap();
    for args in
        [&["frobnicate"][..], &["get", "llamas"], &["run"], &["run", "-f", "/nonexistent"], &["context", "use", "../x"]]
    {
        let (code, out, err) = told(&nf(home.path(), &[], args));
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
    }
}

#[test]
fn version_settings_and_completion_go_to_stdout() {
    let home = tempfile::tempdir().unwrap();
    let (code, out, _) = told(&nf(home.path(), &[], &["version", "-o", "json"]));
    let version: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, version["phase"].as_str()), (0, Some("H.2")));
    let secret = [("OPENAI_KEY", "sk-hidden"), ("SCHEDULER_PORT", "9")];
    let (code, out, err) = told(&nf(home.path(), &secret, &["config", "view"]));
    assert!(code == 0 && out.contains("<REDACTED>") && !out.contains("hidden"), "{out}");
    assert!(out.contains("environment SCHEDULER_PORT") && err.contains("mode: simulation"), "{out}\n{err}");
    let (code, out, _) = told(&nf(home.path(), &[], &["completion", "bash"]));
    assert!(code == 0 && out.contains("_nf"));
}

#[test]
fn contexts_are_files_that_only_their_owner_reads() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().unwrap();
    let (code, _, err) = told(&nf(home.path(), &[], &["context", "use", "lab", "--to", "http://127.0.0.1:1"]));
    assert_eq!(code, 0, "{err}");
    let file = home.path().join(".config/neural-fabric/contexts/lab.toml");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let (_, out, _) = told(&nf(home.path(), &[], &["context", "show", "-o", "json"]));
    let shown: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((shown["context"].as_str(), shown["addrs"][0].as_str()), (Some("lab"), Some("http://127.0.0.1:1")));
    let (code, ..) = told(&nf(home.path(), &[], &["context", "use", "none"]));
    assert_eq!(code, 4);
}

#[test]
fn keys_for_a_new_group_are_made_once() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("lab");
    let members = "node-1=127.0.0.1:8601,node-2=127.0.0.1:8611,node-3=127.0.0.1:8621";
    let args = ["cluster", "init", "--dir", dir.to_str().unwrap(), "--members", members];
    let (code, out, err) = told(&nf(home.path(), &[], &args));
    assert_eq!(code, 0, "{err}");
    assert_eq!(out.lines().filter(|line| line.starts_with("nf serve --config ")).count(), 3, "{out}");
    let config = dir.join("node-2/nf.toml");
    let (code, _, err) = told(&nf(home.path(), &[], &["config", "validate", "--config", config.to_str().unwrap()]));
    assert_eq!(code, 0, "{err}");
    assert!(
        !std::fs::read_to_string(&config).unwrap().contains("advertise"),
        "on one machine nothing is told to others"
    );
    let (code, ..) = told(&nf(home.path(), &[], &args));
    assert_eq!(code, 5, "a second init must not replace the group's authority");
}

#[test]
fn members_on_machines_of_their_own_are_told_where_others_reach_them() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("far");
    let members = "node-1=10.0.0.1:8601,node-2=gpu-2.example.com:8601,node-3=10.0.0.3:8601";
    let args = ["cluster", "init", "--dir", dir.to_str().unwrap(), "--members", members];
    let (code, _, err) = told(&nf(home.path(), &[], &args));
    assert_eq!(code, 0, "{err}");
    let told_of = |name: &str, key: &str| {
        let config = dir.join(name).join("nf.toml");
        let config = config.to_str().unwrap();
        let (code, _, err) = told(&nf(home.path(), &[], &["config", "validate", "--config", config]));
        assert_eq!(code, 0, "{name}: {err}");
        let (_, out, _) = told(&nf(home.path(), &[], &["config", "view", "--config", config, "-o", "json"]));
        let view: serde_json::Value = serde_json::from_str(&out).unwrap();
        let row = view["items"].as_array().unwrap().iter().find(|row| row["key"] == key).unwrap();
        row["value"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        (told_of("node-1", "advertise"), told_of("node-1", "peer_listen")),
        ("10.0.0.1".into(), "10.0.0.1:8601".into())
    );
    assert_eq!(told_of("node-2", "advertise"), "gpu-2.example.com");
    assert_eq!(told_of("node-2", "peer_listen"), "0.0.0.0:8601");
    assert_eq!(told_of("node-3", "listen"), "127.0.0.1:8600", "no plain text leaves the machine");
}

#[test]
fn the_doctor_works_without_a_group_and_says_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let args = ["doctor", "--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0", "-o", "json"];
    let (code, out, err) = told(&nf(home.path(), &[], &args));
    assert_eq!(code, 0, "{out}{err}");
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    let items = found["items"].as_array().unwrap();
    for check in
        ["kernel", "cgroup v2", "limits", "disk", "clock", "public port", "gpus", "gpu parts", "container engine"]
    {
        let item = items.iter().find(|item| item["check"] == check).unwrap_or_else(|| panic!("{check} in {out}"));
        assert_eq!(item["next"].is_string(), item["verdict"] != "ok", "{item}");
    }
    assert!(!data.exists(), "nothing is made");
    let (code, _, err) = told(&nf(home.path(), &[("NF_DATA_DIR", "/proc/nowhere")], &["doctor"]));
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("1 fault"), "{err}");
}
