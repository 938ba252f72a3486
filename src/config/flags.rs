//! One flag per setting, made of the table, for every command that reads settings.

use super::TABLE;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Settings given on the command line, not yet parsed.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// By setting key.
    pub values: BTreeMap<String, String>,
    pub config: Option<PathBuf>,
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config").long("config").value_name("FILE");
        let file = file.value_parser(clap::value_parser!(PathBuf)).help("config file (environment: NF_CONFIG)");
        TABLE.iter().fold(command.arg(file), |command, row| {
            let default = if row.default.is_empty() { String::new() } else { format!(", default {}", row.default) };
            let help = format!("{} (environment: {}{default})", row.doc, row.env);
            command.arg(
                Arg::new(row.key)
                    .long(row.flag())
                    .value_name("VALUE")
                    .help(help)
                    .hide_short_help(HIDDEN.contains(&row.key))
                    .help_heading("Settings"),
            )
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.config = matches.get_one::<PathBuf>("config").cloned();
        for row in TABLE {
            if let Some(value) = matches.get_one::<String>(row.key) {
                self.values.insert(row.key.to_owned(), value.clone());
            }
        }
        Ok(())
    }
}

/// Rarely touched; `--help` shows them, `-h` does not.
const HIDDEN: &[&str] = &[
    "heartbeat",
    "election_min",
    "election_max",
    "beat",
    "suspect_after",
    "unknown_after",
    "lease",
    "kill_budget",
    "down_after",
    "scale_every",
    "scale_settle",
    "defrag_every",
    "network_fault_percent",
    "network_fault_down_after",
    "stop_grace",
    "calls_hold",
    "calls_held",
    "calls_of_tenant",
    "kill_after",
    "mps_pipe_directory",
    "prom_url",
    "otlp_endpoint",
    "postgres_dsn",
    "redis_url",
    "kubeconfig",
    "openai_key",
    "neural_fabric_url",
    "vault_addr",
    "vault_token",
    "vault_token_file",
    "vault_key",
    "vault_mount",
    "vault_ca",
    "store_hosts",
    "store_ca",
    "model_cache",
    "jwks",
    "jwks_ca",
    "cosign_key_path",
    "tenant_keys",
    "signers",
    "consent_keys",
];
