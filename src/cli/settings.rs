//! `nf serve` and `nf config`: commands that read the settings of a server.

use super::exit::{Exit, fail};
use super::output::{self, at, col};
use super::{Global, say};
use crate::config::{Error, Flags, Settings, Sources};
use clap::{Args, Subcommand};
use serde_json::json;

#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    flags: Flags,
    /// Write the public address here once the member answers
    #[arg(long, value_name = "FILE")]
    ready_file: Option<std::path::PathBuf>,
    /// End when the parent process does (nf dev starts its members so)
    #[arg(long, hide = true)]
    stop_with_parent: bool,
}

impl Serve {
    pub fn run(self) -> anyhow::Result<()> {
        let settings = Settings::load(&Sources::process(&self.flags))?;
        settings.can_serve()?;
        let (ready_file, stop_with_parent) = (self.ready_file, self.stop_with_parent);
        crate::daemon::run(settings, crate::daemon::Extras { ready_file, stop_with_parent })
    }
}

#[derive(Debug, Args)]
pub struct Config {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Show each setting with its value and origin
    #[command(after_help = "Examples:\n  nf config view\n  nf config view --config nf.toml -o json")]
    View(Flags),
    /// Check the settings and say whether a member would start with them
    #[command(
        after_help = "Examples:\n  nf config validate --config nf.toml\n  nf config validate --simulation-mode false"
    )]
    Validate(Flags),
}

impl Config {
    pub fn run(self, global: &Global) -> anyhow::Result<()> {
        match self.command {
            ConfigCommand::View(flags) => view(global, &Settings::load(&Sources::process(&flags))?),
            ConfigCommand::Validate(flags) => validate(global, &flags),
        }
    }
}

fn view(global: &Global, settings: &Settings) -> anyhow::Result<()> {
    let item = |(row, value, origin): (&crate::config::Row, String, &crate::config::Origin)| json!({ "key": row.key, "value": value, "origin": origin.to_string(), "variable": row.env, "meaning": row.doc, "used": !row.unused });
    let items: Vec<_> = settings.view().into_iter().map(item).collect();
    let columns = [
        col("SETTING", |v| at(v, "key")),
        col("VALUE", |v| match at(v, "value") {
            empty if empty.is_empty() => "-".to_owned(),
            value if at(v, "used") == "false" => format!("{value} (not used by this build)"),
            value => value,
        }),
        col("ORIGIN", |v| at(v, "origin")),
        output::wide("VARIABLE", |v| at(v, "variable")),
        output::wide("MEANING", |v| at(v, "meaning")),
    ];
    output::put(&output::list(global.style(), &items, &columns, |v| at(v, "key"))?);
    let missing = settings.missing();
    say(format!("mode: {}", settings.mode().name()));
    if !missing.is_empty() {
        say(format!("production would also need: {}", missing.join(", ")));
    }
    Ok(())
}

fn validate(global: &Global, flags: &Flags) -> anyhow::Result<()> {
    let checked: Result<Settings, Error> = Settings::load(&Sources::process(flags));
    let checked = checked.and_then(|settings| settings.can_serve().map(|()| settings));
    match checked {
        Ok(settings) => {
            let value = json!({ "valid": true, "mode": settings.mode().name(), "missing": settings.missing() });
            let people = || format!("valid: a member would start in {} mode\n", settings.mode().name());
            output::put(&output::object(global.style(), &value, "valid", people)?);
            Ok(())
        }
        Err(error) => Err(fail(Exit::Usage, error.to_string())),
    }
}
