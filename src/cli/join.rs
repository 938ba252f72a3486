//! `nf cluster join --token`: this machine becomes a worker of a group that it knows by the
//! token alone. Its private key is made here and stays here.

use super::exit::{self, Exit, fail};
use super::output;
use super::{Global, say};
use crate::daemon::join::{self, Admitted, Refused};
use crate::pqc;
use crate::security::join::{Applicant, Token};
use crate::security::tls::{self, Role};
use anyhow::{Context as _, Result};
use nf_core::command::Mode;
use serde_json::json;
use std::path::{Path, PathBuf};

/// What is asked for.
pub struct Joining {
    pub token: String,
    pub to: Vec<String>,
    pub name: String,
    pub dir: PathBuf,
    pub pqc_mode: pqc::Mode,
}

impl Joining {
    pub async fn run(self, global: &Global) -> Result<()> {
        let Self { token, to, name, dir, pqc_mode } = self;
        if pqc_mode == pqc::Mode::Off {
            let text = "joining with a token needs TLS, and PQC_MODE is off; nf tls cert create --role node makes keys by hand";
            return Err(fail(Exit::Usage, text));
        }
        let token = Token::parse(&token).map_err(|text| fail(Exit::Usage, format!("--token: {text}")))?;
        // Any group's name will do: it is the node's that is judged here, before a token is spent on it.
        tls::name_of("a", &name, Role::Client).map_err(|e| fail(Exit::Usage, format!("--name: {e}")))?;
        let home = std::path::absolute(&dir)?;
        let keys = home.join("tls");
        if keys.join("member.key").exists() {
            let text = format!("{} holds keys already: choose another --dir", keys.display());
            return Err(fail(Exit::Conflict, text));
        }
        // A token is spent once: where its certificate goes has to be there before.
        std::fs::create_dir_all(&keys).with_context(|| keys.display().to_string())?;
        let (admitted, credentials) = join::join(&token, &name, &to, &keys, pqc_mode.into()).await.map_err(told)?;
        credentials.write_certificates(&keys)?;
        let config = write_config(&home, &name, &admitted, pqc_mode)?;
        // Until here the same command does it all again.
        Applicant::settle(&keys)?;
        let command = format!("nf serve --config {}", config.display());
        let dns = tls::name_of(&admitted.cluster, &name, Role::Client)?;
        let value = json!({ "dir": home.display().to_string(), "name": dns, "cluster": admitted.cluster,
            "members": admitted.members, "commands": [command] });
        output::put(&output::object(global.style(), &value, &name, || format!("{command}\n"))?);
        say(format!("{name} is a worker of group {}; start it with the line above", admitted.cluster));
        Ok(())
    }
}

/// The exit that fits, and what to do.
fn told(error: anyhow::Error) -> anyhow::Error {
    if let Some(Refused { status, reason, .. }) = error.downcast_ref::<Refused>() {
        return fail(exit::exit_of(*status, reason), format!("{error:#}"));
    }
    let exit = if join::is_distrust(&error) { Exit::Denied } else { Exit::Unreachable };
    let hint = "--to names a member's peer address, as nf join-token create printed it";
    fail(exit, format!("{error:#}\n  try: {hint}"))
}

/// What `nf serve` needs. The public port of a worker answers how it does, on this machine alone.
fn write_config(home: &Path, name: &str, admitted: &Admitted, pqc_mode: pqc::Mode) -> Result<PathBuf> {
    let mode = match admitted.mode() {
        Mode::Production => "production",
        Mode::Simulation => "simulation",
    };
    let texts = [
        ("role", "worker".to_owned()),
        ("cluster", admitted.cluster.clone()),
        ("node_name", name.to_owned()),
        ("members", admitted.members()),
        ("neural_fabric_mode", mode.to_owned()),
        ("pqc_mode", pqc_mode.to_string()),
        ("data_dir", home.join("data").display().to_string()),
        ("tls_dir", home.join("tls").display().to_string()),
    ];
    let mut config = toml::Table::new();
    config.extend(texts.into_iter().map(|(key, value)| (key.to_owned(), toml::Value::String(value))));
    let path = home.join("nf.toml");
    std::fs::write(&path, toml::to_string(&config)?).with_context(|| path.display().to_string())?;
    Ok(path)
}
