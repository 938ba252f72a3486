//! Order, origins, refusals, and the example file against the table.

use super::*;

fn load(flags: &[(&str, &str)], env: &[(&str, &str)], file: Option<&str>) -> Result<Settings, Error> {
    let own = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let flags: BTreeMap<_, _> = own(flags).into_iter().collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nf.toml");
    let file = file.map(|text| {
        std::fs::write(&path, text).unwrap();
        path.clone()
    });
    Settings::load(&Sources { flags: &flags, environment: own(env).into_iter().collect(), file })
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let file = Some("scheduler_port = 3\nmax_tenant_gpus = 9\nlog = \"warn\"\n");
    let settings =
        load(&[("scheduler_port", "1")], &[("SCHEDULER_PORT", "2"), ("MAX_TENANT_GPUs", "8")], file).unwrap();
    assert_eq!(
        (*settings.scheduler_port, settings.scheduler_port.origin.to_string()),
        (1, "flag --scheduler-port".into())
    );
    assert_eq!(*settings.max_tenant_gpus, 8000);
    assert_eq!(settings.max_tenant_gpus.origin, Origin::Environment("MAX_TENANT_GPUs".into()));
    assert!(matches!(settings.log.origin, Origin::File(_)), "{:?}", settings.log);
    assert_eq!(settings.beat.origin, Origin::Default);
}

#[test]
fn a_value_that_cannot_be_parsed_names_its_variable_and_origin() {
    for (name, bad) in [
        ("SCHEDULER_PORT", "99999"),
        ("SIMULATION_MODE", "maybe"),
        ("NEURAL_FABRIC_MODE", "prod"),
        ("PQC_MODE", "strong"),
        ("MAX_TENANT_GPUs", "NaN"),
        ("GPU_NODES", "../x"),
        ("MODEL_STORE_URL", "nowhere"),
    ] {
        let error = load(&[], &[(name, bad)], None).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name} (environment {name})")), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let error = load(&[], &[], Some("scheduler_port = 99999")).unwrap_err().to_string();
    assert!(error.contains("SCHEDULER_PORT (file ") && error.contains("nf.toml"), "{error}");
    let error = load(&[], &[], Some("sheduler_port = 1")).unwrap_err().to_string();
    assert!(error.contains("sheduler_port is not a setting"), "{error}");
    let error = load(&[], &[], Some("log = [1")).unwrap_err().to_string();
    assert!(error.contains("nf.toml"), "{error}");
}

#[test]
fn a_secret_shows_in_no_view_and_no_error() {
    let env = [("OPENAI_KEY", "sk-hidden"), ("PROM_URL", "http://me:hidden@prom:9090/x")];
    let settings = load(&[], &env, None).unwrap();
    let view: String = settings.view().iter().map(|(row, value, _)| format!("{}={value}\n", row.key)).collect();
    assert!(!view.contains("hidden"), "{view}");
    assert!(
        view.contains("openai_key=<REDACTED>") && view.contains("prom_url=http://<REDACTED>@prom:9090/x"),
        "{view}"
    );
    assert!(!format!("{settings:?}").contains("hidden"), "{settings:?}");
    // Of a type that shows nothing, and kept nowhere else.
    let every =
        [&settings.vault_token, &settings.token, &settings.postgres_dsn, &settings.redis_url, &settings.openai_key];
    let secrets = every.map(|setting| (&setting.value, setting.text.as_str()));
    let set: Vec<_> = secrets.iter().filter_map(|(value, text)| Some((value.as_ref()?.reveal(), *text))).collect();
    assert_eq!(set, [("sk-hidden", "<REDACTED>")]);
    assert_eq!(TABLE.iter().filter(|row| row.secret).count(), every.len(), "a new one is of that type, too");
    let error = load(&[], &[("REDIS_URL", "hidden")], None).unwrap_err().to_string();
    assert!(error.starts_with("REDIS_URL") && !error.contains("hidden"), "{error}");
}

#[test]
fn settings_without_effect_are_marked_in_flag_and_words() {
    let unused: Vec<_> = TABLE.iter().filter(|row| row.unused).map(|row| row.env).collect();
    assert_eq!(unused, ["POSTGRES_DSN", "REDIS_URL", "KUBECONFIG", "OPENAI_KEY"]);
    for row in TABLE {
        assert_eq!(row.unused, row.doc.ends_with("not used by this build"), "{}", row.key);
    }
    let secret: Vec<_> = TABLE.iter().filter(|row| row.secret).map(|row| row.env).collect();
    assert_eq!(secret, ["VAULT_TOKEN", "NF_TOKEN", "POSTGRES_DSN", "REDIS_URL", "OPENAI_KEY"]);
}

#[test]
fn both_spellings_may_agree_but_not_differ() {
    let both = |a, b| load(&[], &[("MAX_TENANT_GPUs", a), ("MAX_TENANT_GPUS", b)], None);
    assert_eq!(*both("3", "3").unwrap().max_tenant_gpus, 3000);
    assert!(both("3", "4").unwrap_err().to_string().contains("MAX_TENANT_GPUS"));
    assert_eq!(*load(&[], &[("MAX_TENANT_GPUS", "5")], None).unwrap().max_tenant_gpus, 5000);
    assert_eq!(*load(&[], &[("MAX_TENANT_GPUs", "")], None).unwrap().max_tenant_gpus, 2000, "empty is unset");
}

#[test]
fn the_mode_follows_the_table() {
    assert_eq!(load(&[], &[], None).unwrap().mode(), Mode::Simulation);
    let all = [("MODEL_STORE_URL", "file:///m"), ("COSIGN_KEY_PATH", "/k"), ("NF_JWKS", "/j"), ("NF_TLS_DIR", "/t")];
    let full = load(&[], &all, None).unwrap();
    assert_eq!((full.mode(), full.can_serve()), (Mode::Production, Ok(())));
    let forced = load(&[], &[("NEURAL_FABRIC_MODE", "production")], None).unwrap();
    let text = forced.can_serve().unwrap_err().to_string();
    assert!(["MODEL_STORE_URL", "COSIGN_KEY_PATH", "NF_JWKS", "NF_TLS_DIR"].iter().all(|n| text.contains(n)), "{text}");
    let won = load(&[], &[("NEURAL_FABRIC_MODE", "production"), ("SIMULATION_MODE", "1")], None).unwrap();
    assert_eq!((won.mode(), won.can_serve()), (Mode::Simulation, Ok(())));
}

#[test]
fn key_exchange_that_cannot_be_is_refused() {
    for (env, words) in [
        (
            vec![("PQC_MODE", "off"), ("NF_PEER_LISTEN", "0.0.0.0:8601")],
            "NF_PEER_LISTEN (0.0.0.0:8601) is not: set hybrid",
        ),
        (vec![("PQC_MODE", "off"), ("NF_PUBLIC_CERT", "/c"), ("NF_PUBLIC_KEY", "/k")], "unset one of them"),
        (vec![("PQC_MODE", "classical"), ("PQC_STRICT", "1")], "PQC_STRICT wants X25519MLKEM768 everywhere"),
        (vec![("NF_PUBLIC_CERT", "/c")], "set NF_PUBLIC_KEY"),
        (vec![("NF_PUBLIC_KEY", "/k")], "set NF_PUBLIC_CERT"),
        (vec![("NF_LISTEN", "0.0.0.0:8600")], "set NF_PUBLIC_CERT"),
    ] {
        let error = load(&[], &env, None).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let public = [("NF_LISTEN", "0.0.0.0:8600"), ("NF_PUBLIC_CERT", "/c"), ("NF_PUBLIC_KEY", "/k")];
    assert!(load(&[], &public, None).is_ok(), "with a certificate it may listen anywhere");
    let all = [("MODEL_STORE_URL", "file:///m"), ("COSIGN_KEY_PATH", "/k"), ("NF_JWKS", "/j"), ("NF_TLS_DIR", "/t")];
    let production = |mode| load(&[], &[&all[..], &[("PQC_MODE", mode)]].concat(), None).unwrap().can_serve();
    assert!(production("off").unwrap_err().to_string().contains("PQC_MODE=off is for simulation"));
    assert_eq!((production("hybrid"), production("classical")), (Ok(()), Ok(())));
}

#[test]
fn values_that_do_not_fit_together_are_refused() {
    for (env, word) in [
        (vec![("NF_LISTEN", "0.0.0.0:8600")], "NF_LISTEN"),
        (vec![("NF_DOWN_AFTER", "50s")], "NF_DOWN_AFTER"),
        (vec![("NF_LEASE", "30s")], "NF_LEASE"),
        (vec![("NF_ELECTION_MIN", "1s")], "NF_ELECTION_MIN"),
        (vec![("NF_ROLE", "worker")], "NF_JOIN"),
        (vec![("NF_MEMBERS", "a=h:1")], "NF_NODE_NAME"),
        (vec![("NF_MEMBERS", "a=h:1"), ("NF_NODE_NAME", "b")], "NF_MEMBERS"),
    ] {
        let error = load(&[], &env, None).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn the_example_file_has_every_setting_with_its_default() {
    let example = include_str!("../../cluster/config/config.example.toml");
    for row in TABLE {
        let line = example.lines().find(|l| l.trim_start_matches("# ").starts_with(&format!("{} = ", row.key)));
        let line = line.unwrap_or_else(|| panic!("{} is not in the example", row.key));
        assert!(row.default.is_empty() || line.contains(row.default), "{line} against {:?}", row.default);
        assert!(example.contains(row.env), "{} is not named", row.env);
    }
    let uncommented: String = example
        .lines()
        .map(|line| {
            line.strip_prefix("# ")
                .filter(|rest| TABLE.iter().any(|r| rest.starts_with(&format!("{} = ", r.key))))
                .unwrap_or(line)
        })
        .filter(|line| {
            !line.starts_with("members") && !line.starts_with("join") && !line.starts_with("neural_fabric_mode")
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let settings = load(&[], &[], Some(&uncommented)).unwrap_or_else(|e| panic!("{e}\n{uncommented}"));
    assert!(settings.view().iter().filter(|(_, _, origin)| matches!(origin, Origin::File(_))).count() > 30);
}
