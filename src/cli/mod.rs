//! The command line: argv → one command, its outcome → an exit code. Commands are
//! REST clients of any member, except `serve`, `dev` and `sim`, which start processes.
//! It does not know how the group decides.

mod audit;
mod autoscale;
mod bench;
mod client;
mod cluster;
mod completion;
mod consent;
mod context;
mod contexts;
mod defrag;
mod dev;
mod doctor;
mod exit;
mod get;
mod guard;
mod job;
mod join;
mod join_token;
mod kinds;
mod logs;
mod model;
mod node;
mod output;
mod policy;
mod precheck;
mod report;
mod rollout;
mod scale;
mod settings;
mod signals;
pub mod sim;
mod slo;
mod tenant;
mod tls;
mod token;
mod usage;
pub(crate) mod version;

pub use version::{COMMIT, VERSION};

use clap::{Args, CommandFactory, Parser, Subcommand};
use exit::{Exit, Failure};
use output::{Format, Style};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

/// Distributed GPU scheduler for model serving.
#[derive(Debug, Parser)]
#[command(name = "nf", version = VERSION, max_term_width = 110)]
#[command(after_help = "Examples:\n  nf dev\n  nf run llama-8b --tenant demo --gpus 2 --wait\n  nf get jobs")]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Public addresses of members, comma separated (environment: NF_ADDR)
    #[arg(long, global = true, value_name = "URLS")]
    addr: Option<String>,
    /// Use this context instead of the selected one
    #[arg(long, global = true, value_name = "NAME", env = "NF_CONTEXT")]
    context: Option<String>,
    /// Output format of the data on stdout
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    output: Format,
    /// Omit the headings of tables
    #[arg(long, global = true)]
    no_headers: bool,
}

impl Global {
    fn style(&self) -> Style {
        Style { format: self.output, no_headers: self.no_headers }
    }

    fn client(&self) -> anyhow::Result<client::Client> {
        client::Client::new(&context::resolve(self.addr.as_deref(), self.context.as_deref())?)
    }

    /// Data is for people.
    fn for_people(&self) -> bool {
        matches!(self.output, Format::Table | Format::Wide)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a member of the group (or a worker) in this process
    #[command(
        after_help = "Examples:\n  nf serve\n  nf serve --config /etc/neural-fabric/nf.toml --listen 127.0.0.1:8600"
    )]
    Serve(settings::Serve),
    /// Run a development group of three members on this machine
    #[command(after_help = "Examples:\n  nf dev\n  nf dev --nodes 5 --gpus h100:8,a100:4\n  nf dev kill leader")]
    Dev(dev::Dev),
    /// Schedule a model
    #[command(after_help = "Examples:\n  nf run llama-8b --tenant demo --gpus 2 --wait\n  nf run -f job.json")]
    Run(job::Run),
    /// Show where a model would be placed, and commit nothing
    #[command(after_help = "Examples:\n  nf plan llama-8b --tenant demo --gpus 2\n  nf plan -f job.json -o json")]
    Plan(job::Plan),
    /// List jobs, nodes, GPUs, tenants, services, events, members or versions in quarantine
    #[command(after_help = "Examples:\n  nf get jobs --tenant demo\n  nf get nodes -o wide --watch")]
    Get(get::Get),
    /// Show everything about one object
    #[command(after_help = "Examples:\n  nf describe job 01j8\n  nf describe node node-2")]
    Describe(get::Describe),
    /// Explain why a job runs where it does, or every reason why it waits
    #[command(after_help = "Examples:\n  nf explain 01j8\n  nf explain 01j8 -o json")]
    Explain(job::Explain),
    /// Stop a job
    #[command(after_help = "Examples:\n  nf stop 01j8\n  nf stop 01j8 --yes")]
    Stop(job::Stop),
    /// Set the number of replicas of a job that scales
    #[command(after_help = "Examples:\n  nf scale 01j8 3\n  nf scale 01j8 0")]
    Scale(scale::Scale),
    /// Change the version of a running job: replica by replica, or with a canary first
    #[command(after_help = "Examples:\n  nf rollout start 01j8 v2\n  nf rollout status 01j8")]
    Rollout(rollout::Rollout),
    /// Return a model's jobs to their previous version; the same as nf model rollback
    #[command(
        after_help = "Examples:\n  nf rollback llama-8b --tenant demo\n  nf rollback llama-8b --tenant demo -o json"
    )]
    Rollback(rollout::Rollback),
    /// Show what services promise, and how well they keep it
    #[command(after_help = "Examples:\n  nf slo\n  nf slo demo/llama-8b -o json")]
    Slo(slo::Slo),
    /// Show what the autoscaler decided for each service, and replay its journal
    #[command(
        after_help = "Examples:\n  nf autoscale status\n  nf autoscale replay /var/lib/neural-fabric/autoscale/autoscale.jsonl"
    )]
    Autoscale(autoscale::Autoscale),
    /// Show GPU-hours and money that tenants have used, and their budgets
    #[command(after_help = "Examples:\n  nf usage --window month\n  nf usage --tenant demo --csv")]
    Usage(usage::Usage),
    /// Print a replica's log
    #[command(after_help = "Examples:\n  nf logs 01j8\n  nf logs 01j8 --replica 1 -f")]
    Logs(logs::Logs),
    /// Register, cordon, drain and give up nodes; quarantine and heal their GPUs
    #[command(
        after_help = "Examples:\n  nf node register n1 --gpus 8 --device-type H100-80G\n  nf node cordon n1 --reason 'new fans'"
    )]
    Node(node::Node),
    /// Move a few running replicas to make more of the idle GPUs usable
    #[command(after_help = "Examples:\n  nf defrag --dry-run\n  nf defrag --yes -o json")]
    Defrag(defrag::Defrag),
    /// Create, delete and list tenants
    #[command(after_help = "Examples:\n  nf tenant create demo\n  nf tenant list")]
    Tenant(tenant::Tenant),
    /// Show and set a tenant's quota
    #[command(after_help = "Examples:\n  nf quota get demo\n  nf quota set demo --gpus 16")]
    Quota(tenant::Quota),
    /// Show, compare, try and set the placement policy
    #[command(after_help = "Examples:\n  nf policy get\n  nf policy set best-fit")]
    Policy(policy::Policy),
    /// Form and change the group of members
    #[command(after_help = "Examples:\n  nf cluster members\n  nf cluster transfer node-2")]
    Cluster(cluster::Cluster),
    /// Publish, sign, approve, prefetch and roll back model versions
    #[command(
        after_help = "Examples:\n  nf model publish ./magika --model magika --version v1 --store file:///srv/models\n  nf model pull magika@v1 --store file:///srv/models -o json"
    )]
    Model(model::Model),
    /// Sign, grant, revoke and list consents to keep personal data on nodes
    #[command(after_help = "Examples:\n  nf consent grant consent.json --tenant demo\n  nf consent list --tenant demo")]
    Consent(consent::Consent),
    /// Export the audit trail, and check an export without the group
    #[command(after_help = "Examples:\n  nf audit export --out export.jsonl\n  nf audit verify export.jsonl -o json")]
    Audit(audit::Audit),
    /// Create tokens for callers, and revoke them
    #[command(
        after_help = "Examples:\n  nf token create --keys ./lab/tokens --subject ada --tenant demo --role operator\n  nf token revoke 01939d4c7b5e7c3f8f0a6f1f8b7a9c2d"
    )]
    Token(token::Token),
    /// Create, list and revoke tokens with which machines join as workers
    #[command(after_help = "Examples:\n  nf join-token create --node gpu-7 --ttl 10m\n  nf join-token list")]
    JoinToken(join_token::JoinToken),
    /// Create the group's authority, and certificates for members and workers
    #[command(
        after_help = "Examples:\n  nf tls ca create --dir ./lab/ca\n  nf tls cert create --ca ./lab/ca --role node --name gpu-7 --dir ./gpu-7/tls"
    )]
    Tls(tls::Tls),
    /// Check that everything phase H.2 needs is in place
    #[command(
        after_help = "Examples:\n  nf precheck\n  nf precheck --strict --out reports -o json\n\nExit: 0 for PROCEED and PROCEED_SIMULATION, 1 for BLOCK."
    )]
    Precheck(precheck::Precheck),
    /// Write the phase's reports: a page for each area, and the policy matrix
    #[command(after_help = "Examples:\n  nf report\n  nf report --out reports -o json")]
    Report(report::Report),
    /// Choose which group commands talk to
    #[command(after_help = "Examples:\n  nf context list\n  nf context use dev")]
    Context(contexts::Contexts),
    /// Show and check settings
    #[command(after_help = "Examples:\n  nf config view\n  nf config validate --config nf.toml")]
    Config(settings::Config),
    /// Measure schedule calls per second, or the gap around a failover
    #[command(after_help = "Examples:\n  nf bench --clients 64 --seconds 10\n  nf bench gap --seconds 20 -o json")]
    Bench(bench::Bench),
    /// Play worker nodes, replay the autoscaler, try placement, or ask what more nodes would bring
    #[command(
        after_help = "Examples:\n  nf sim nodes --from nodes.csv\n  nf sim nodes --from nodes.csv --addr http://127.0.0.1:8600"
    )]
    Sim(sim::Sim),
    /// Print a shell's completion script
    #[command(
        after_help = "Examples:\n  nf completion bash > /etc/bash_completion.d/nf\n  nf completion zsh > ~/.zfunc/_nf"
    )]
    Completion(completion::Completion),
    /// Check this machine, and say what is missing
    #[command(after_help = "Examples:\n  nf doctor\n  nf doctor --data-dir /var/lib/neural-fabric -o json")]
    Doctor(doctor::Doctor),
    /// End exclusive replicas when their lease does; started by agents
    #[command(
        hide = true,
        after_help = "Examples:\n  nf guard --dir /var/lib/neural-fabric/nodes/node-1/guard/node-1\n  nf guard --dir ./guard"
    )]
    Guard(guard::Guard),
    /// Bound the logs of replicas while no agent does; started by agents
    #[command(
        hide = true,
        after_help = "Examples:\n  nf keep-logs ./logs --records ./records\n  nf keep-logs /var/lib/neural-fabric/nodes/n1/logs/n1 --records /var/lib/neural-fabric/nodes/n1/records/n1"
    )]
    KeepLogs(guard::KeepLogs),
    /// Print version, commit and phase
    #[command(after_help = "Examples:\n  nf version\n  nf version -o json")]
    Version,
}

/// Runs the process' own command line.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { Exit::Usage as u8 } else { 0 });
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let Cli { global, command } = cli;
    match command {
        Command::Serve(serve) => return serve.run(),
        Command::Config(config) => return config.run(&global),
        Command::Context(contexts) => return contexts.run(&global),
        Command::Tls(tls) => return tls.run(&global),
        Command::Guard(guard) => return guard.run(),
        Command::KeepLogs(keep) => return keep.run(),
        Command::Doctor(doctor) => return doctor.run(&global),
        Command::Completion(completion) => {
            completion.run(&mut Cli::command());
            return Ok(());
        }
        Command::Version => return version::run(&global),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build()?;
    let outcome = runtime.block_on(async {
        match command {
            Command::Dev(dev) => dev.run(&global).await,
            Command::Run(run) => run.run(&global).await,
            Command::Plan(plan) => plan.run(&global).await,
            Command::Get(get) => get.run(&global).await,
            Command::Describe(describe) => describe.run(&global).await,
            Command::Explain(explain) => explain.run(&global).await,
            Command::Stop(stop) => stop.run(&global).await,
            Command::Scale(scale) => scale.run(&global).await,
            Command::Rollout(rollout) => rollout.run(&global).await,
            Command::Rollback(rollback) => rollback.run(&global).await,
            Command::Slo(slo) => slo.run(&global).await,
            Command::Autoscale(autoscale) => autoscale.run(&global).await,
            Command::Usage(usage) => usage.run(&global).await,
            Command::Logs(logs) => logs.run(&global).await,
            Command::Node(node) => node.run(&global).await,
            Command::Defrag(defrag) => defrag.run(&global).await,
            Command::Tenant(tenant) => tenant.run(&global).await,
            Command::Quota(quota) => quota.run(&global).await,
            Command::Policy(policy) => policy.run(&global).await,
            Command::Cluster(cluster) => cluster.run(&global).await,
            Command::Model(model) => model.run(&global).await,
            Command::Consent(consent) => consent.run(&global).await,
            Command::Precheck(precheck) => precheck.run(&global).await,
            Command::Report(report) => report.run(&global).await,
            Command::Token(token) => token.run(&global).await,
            Command::JoinToken(token) => token.run(&global).await,
            Command::Audit(audit) => audit.run(&global).await,
            Command::Bench(bench) => bench.run(&global).await,
            Command::Sim(sim) => sim.run(&global).await,
            Command::Serve(_)
            | Command::Config(_)
            | Command::Context(_)
            | Command::Tls(_)
            | Command::Guard(_)
            | Command::KeepLogs(_)
            | Command::Doctor(_)
            | Command::Completion(_)
            | Command::Version => Ok(()),
        }
    });
    // A task that still waits on a file or a terminal must not hold up the end.
    runtime.shutdown_background();
    outcome
}

fn report(error: &anyhow::Error) -> ExitCode {
    let failure = error.downcast_ref::<Failure>();
    let exit = match (failure, error.downcast_ref::<crate::config::Error>()) {
        (Some(failure), _) => failure.exit,
        (None, Some(_)) => Exit::Usage,
        (None, None) => Exit::Failed,
    };
    let mut text = chain(error);
    if let Some(token) = error.chain().find_map(token) {
        text.push_str(&format!(" ({token})"));
    }
    if !text.is_empty() {
        let _ = writeln!(std::io::stderr(), "nf: {text}");
    }
    exit.into()
}

/// The word by which a program tells what kept a process from starting.
fn token(cause: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    // An error of the operating system's kind hides what it was made of.
    let made_of = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let stored = made_of.and_then(|e| e.downcast_ref()).or(cause.downcast_ref::<crate::storage::Error>());
    stored.and_then(crate::storage::Error::token).or(cause.downcast_ref().map(crate::config::Error::token))
}

/// The error and its causes, each said once.
fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Says something that is not data.
fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Asks on a terminal; elsewhere only `--yes` is a yes.
fn confirm(what: &str, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Err(exit::fail(
            Exit::Usage,
            format!("{what} needs --yes when nobody can be asked; --dry-run shows what it would do"),
        ));
    }
    let _ = write!(std::io::stderr(), "{what}? [y/N] ");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    match line.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(exit::fail(Exit::Failed, "nothing done")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(command: &clap::Command, path: &str, seen: &mut Vec<String>) {
        let name = format!("{path} {}", command.get_name()).trim().to_owned();
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples = help.lines().filter(|line| line.starts_with("  nf ")).count();
        assert!(examples >= 2, "{name} has {examples} examples in its help");
        seen.push(name.clone());
        for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
            walk(sub, &name, seen);
        }
    }

    #[test]
    fn every_help_has_two_examples_that_parse() {
        let mut seen = Vec::new();
        let command = Cli::command();
        walk(&command, "", &mut seen);
        assert!(seen.len() > 30, "{seen:?}");
        command.debug_assert();
    }
}
