//! `nf context`: list, choose and show contexts.

use super::output::{self, at, col};
use super::{Global, context, say};
use clap::{Args, Subcommand};
use serde_json::json;

#[derive(Debug, Args)]
pub struct Contexts {
    #[command(subcommand)]
    command: ContextCommand,
}

#[derive(Debug, Subcommand)]
enum ContextCommand {
    /// List the contexts
    #[command(after_help = "Examples:\n  nf context list\n  nf context list -o name")]
    List,
    /// Make a context the selected one; with --to, write it first
    #[command(
        after_help = "Examples:\n  nf context use dev\n  nf context use lab --to http://127.0.0.1:8600,http://127.0.0.1:8610"
    )]
    Use {
        name: String,
        /// Public addresses of the group's members, comma separated
        #[arg(long, value_name = "URLS")]
        to: Option<String>,
    },
    /// Show which group the commands speak to
    #[command(after_help = "Examples:\n  nf context show\n  nf context show -o json")]
    Show,
}

impl Contexts {
    pub fn run(self, global: &Global) -> anyhow::Result<()> {
        match self.command {
            ContextCommand::List => list(global),
            ContextCommand::Use { name, to } => {
                if let Some(to) = to {
                    context::write(&name, &context::resolve(Some(&to), None)?)?;
                }
                context::select(&name)?;
                say(format!("context {name} selected"));
                Ok(())
            }
            ContextCommand::Show => show(global),
        }
    }
}

fn list(global: &Global) -> anyhow::Result<()> {
    let current = context::current();
    let mut items = Vec::new();
    for name in context::names()? {
        let addrs = context::read(&name).map(|c| c.addrs).unwrap_or_default();
        items.push(json!({ "name": name, "current": current.as_deref() == Some(&name), "addrs": addrs }));
    }
    if items.is_empty() {
        say("no contexts yet; nf dev writes one, nf context use NAME --to URL another");
    }
    let columns = [
        col("", |v| if at(v, "current") == "true" { "●".to_owned() } else { String::new() }),
        col("NAME", |v| at(v, "name")),
        col("ADDRS", |v| at(v, "addrs")),
    ];
    output::put(&output::list(global.style(), &items, &columns, |v| at(v, "name"))?);
    Ok(())
}

fn show(global: &Global) -> anyhow::Result<()> {
    let resolved = context::resolve(global.addr.as_deref(), global.context.as_deref())?;
    let name = global.context.clone().or_else(context::current);
    let token = resolved.token.as_ref().map(|_| crate::config::REDACTED);
    let value = json!({ "context": name, "addrs": resolved.addrs, "token": token });
    let people = || format!("context {}\naddrs   {}\n", name.as_deref().unwrap_or("-"), resolved.addrs.join(","));
    output::put(&output::object(global.style(), &value, name.as_deref().unwrap_or("-"), people)?);
    Ok(())
}
