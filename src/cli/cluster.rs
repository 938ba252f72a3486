//! `nf cluster`: forms a group of members and changes it.

use super::client::escape;
use super::exit::{Exit, fail};
use super::join::Joining;
use super::kinds::Kind;
use super::output::{self, at};
use super::{Global, confirm, say, token};
use crate::config::parse::{self, Member};
use crate::pqc;
use crate::sealed::{self, PrivateKey};
use crate::security::jwt::issuer::JWKS_FILE;
use crate::security::tls::Authority;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The private half of the key to which model files are encrypted.
const ARTEFACT_KEY: &str = "artefact.key";

#[derive(Debug, Args)]
pub struct Cluster {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Make keys and one config file for each member of a new group
    #[command(
        after_help = "Examples:\n  nf cluster init --dir ./lab --members node-1=127.0.0.1:8601,node-2=127.0.0.1:8611,node-3=127.0.0.1:8621\n  nf cluster init --dir ./one --members node-1=127.0.0.1:8601 --cluster lab"
    )]
    Init(Init),
    /// Make keys and a config file for one more member; or, with a token, make this machine a worker
    #[command(
        after_help = "Examples:\n  nf cluster join --dir ./lab node-4=127.0.0.1:8631\n  nf cluster join --token nfj1.… --to 10.0.0.1:8601 --name gpu-7 --dir ./gpu-7"
    )]
    Join(Join),
    /// List the members
    #[command(after_help = "Examples:\n  nf cluster members\n  nf cluster members -o wide")]
    Members,
    /// Make a learner a voter
    #[command(after_help = "Examples:\n  nf cluster promote node-4\n  nf cluster promote node-4 -o json")]
    Promote { member: String },
    /// Take a member out of the group
    #[command(after_help = "Examples:\n  nf cluster remove node-3 --dry-run\n  nf cluster remove node-3 --yes")]
    Remove {
        member: String,
        /// Don't ask
        #[arg(short, long)]
        yes: bool,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Take the member that answers out of the group; if it leads, another one leads first
    #[command(
        after_help = "Examples:\n  nf cluster leave --addr http://127.0.0.1:8620 --dry-run\n  nf cluster leave --addr http://127.0.0.1:8620 --yes\n\nMove what runs on it first: nf node drain NODE. Its process goes on outside the group until it is stopped; its data directory is of no further use."
    )]
    Leave {
        /// Don't ask
        #[arg(short, long)]
        yes: bool,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Move leadership, and return once it has moved
    #[command(after_help = "Examples:\n  nf cluster transfer node-2\n  nf cluster transfer node-2 --dry-run")]
    Transfer {
        member: String,
        /// Say whether it could be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Say which feature level the group is at; with --finalize end a rolling upgrade
    #[command(
        after_help = "Examples:\n  nf cluster upgrade\n  nf cluster upgrade --finalize --yes\n\nUntil it is finalized the group writes nothing that the build before can't read, and each member can go back to it."
    )]
    Upgrade {
        /// Go to the highest level that every member runs; there is no way back
        #[arg(long)]
        finalize: bool,
        /// Don't ask
        #[arg(short, long)]
        yes: bool,
        /// Say what it would come to, and do nothing; so it is without --finalize, too
        #[arg(long)]
        dry_run: bool,
    },
    /// Take a Raft snapshot on the member that takes the call
    #[command(after_help = "Examples:\n  nf cluster snapshot\n  nf cluster snapshot --addr http://127.0.0.1:8610")]
    Snapshot,
}

#[derive(Debug, Args)]
struct Init {
    /// Where keys and config files are written
    #[arg(long)]
    dir: PathBuf,
    /// name=host:peer-port of each member, comma separated
    #[arg(long, value_parser = parse::members)]
    members: std::vec::Vec<Member>,
    /// The group's name
    #[arg(long, default_value = "neural-fabric", value_parser = parse::cluster)]
    cluster: String,
    /// Make no keys for tokens: anybody who reaches the port may do anything (simulation only)
    #[arg(long)]
    open: bool,
}

#[derive(Debug, Args)]
struct Join {
    /// name=host:peer-port of the new member
    #[arg(value_parser = parse::members, required_unless_present = "token", conflicts_with = "token")]
    member: Option<std::vec::Vec<Member>>,
    /// The directory that nf cluster init wrote (it holds the group's authority); with a token, where keys
    /// and a config file are written
    #[arg(long)]
    dir: PathBuf,
    /// The token that nf join-token create printed; a secret, so better set in the environment
    #[arg(long, env = "NF_JOIN_TOKEN", hide_env_values = true, requires = "to", requires = "name")]
    token: Option<String>,
    /// Peer addresses of members (host:port, comma separated), with a token
    #[arg(long, value_delimiter = ',', value_name = "ADDRESSES")]
    to: Vec<String>,
    /// The node's name, with a token
    #[arg(long)]
    name: Option<String>,
    /// The group's name
    #[arg(long, default_value = "neural-fabric", value_parser = parse::cluster)]
    cluster: String,
    /// The group's key exchange, with a token: hybrid or classical
    #[arg(long, value_parser = pqc::Mode::parse, value_name = "MODE", env = "PQC_MODE", default_value_t)]
    pqc_mode: pqc::Mode,
}

impl Cluster {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        match self.command {
            ClusterCommand::Init(init) => init.run(global),
            ClusterCommand::Join(join) => join.run(global).await,
            ClusterCommand::Members => members(global).await,
            ClusterCommand::Promote { member } => {
                let path = format!("/cluster/members/{}/promote", escape(&member));
                change(global, Method::POST, &path, json!({}), &format!("{member} votes")).await
            }
            ClusterCommand::Remove { member, dry_run: true, .. } => {
                let known = global.client()?.list(Kind::Members.path()).await?;
                let fits = |m: &&Value| [at(m, "name"), at(m, "id")].contains(&member);
                let Some(found) = known.iter().find(fits) else {
                    return Err(fail(Exit::NotFound, format!("no member {member}\n  try: nf cluster members")));
                };
                let (name, role) = (at(found, "name"), at(found, "role"));
                say(format!("would take {name} ({role}) out of the group; its data directory stays as it is"));
                Ok(())
            }
            ClusterCommand::Remove { member, yes, .. } => {
                confirm(&format!("take {member} out of the group"), yes)?;
                let path = format!("/cluster/members/{}", escape(&member));
                change(global, Method::DELETE, &path, Value::Null, &format!("{member} is out of the group")).await
            }
            ClusterCommand::Transfer { member, dry_run } => {
                let body = json!({ "member": member, "dry_run": dry_run });
                let done = if dry_run { format!("{member} could lead") } else { format!("{member} leads") };
                change(global, Method::POST, "/failover/promote", body, &done).await
            }
            ClusterCommand::Leave { yes, dry_run } => leave(global, yes, dry_run).await,
            ClusterCommand::Upgrade { finalize, yes, dry_run } => upgrade(global, finalize && !dry_run, yes).await,
            ClusterCommand::Snapshot => {
                change(global, Method::POST, "/cluster/snapshot", json!({}), "snapshot taken").await
            }
        }
    }
}

async fn change(global: &Global, method: Method, path: &str, body: Value, done: &str) -> anyhow::Result<()> {
    let (_, answer) = global.client()?.change(method, path, body).await?;
    output::put(&output::object(global.style(), &answer, done, || format!("{done}\n"))?);
    Ok(())
}

async fn leave(global: &Global, yes: bool, dry_run: bool) -> anyhow::Result<()> {
    let client = global.client()?;
    let name = at(&client.get("/health").await?, "node_id");
    let members = client.list(Kind::Members.path()).await?;
    let leads = members.iter().any(|member| at(member, "name") == name && at(member, "role") == "leader");
    let voters = members.iter().filter(|member| at(member, "role") == "voter");
    // The one that lacks least: leadership goes nowhere else without a wait.
    let heir = voters.max_by_key(|member| member["matched"].as_u64()).map(|member| at(member, "name"));
    let heir = match (leads, heir) {
        (false, _) => None,
        (true, Some(heir)) => Some(heir),
        (true, None) => {
            let text = format!("{name} is the last voter: without it there is no group");
            return Err(fail(Exit::Conflict, text));
        }
    };
    let first = heir.as_ref().map(|heir| format!("make {heir} lead, and ")).unwrap_or_default();
    if dry_run {
        say(format!("would {first}take {name} out of the group; its data directory stays as it is"));
        return Ok(());
    }
    confirm(&format!("{first}take {name} out of the group"), yes)?;
    if let Some(heir) = heir {
        client.change(Method::POST, "/failover/promote", json!({ "member": heir, "dry_run": false })).await?;
    }
    let path = format!("/cluster/members/{}", escape(&name));
    change(global, Method::DELETE, &path, Value::Null, &format!("{name} is out of the group; stop its process")).await
}

async fn upgrade(global: &Global, finalize: bool, yes: bool) -> anyhow::Result<()> {
    if finalize {
        confirm("raise the group's feature level, so that no member can go back to an older build", yes)?;
    }
    let body = json!({ "dry_run": !finalize });
    let (_, answer) = global.client()?.change(Method::POST, "/cluster/upgrade", body).await?;
    let (level, highest) = (at(&answer, "feature_level"), at(&answer, "highest"));
    let text = match answer["finalized"] == true {
        true => {
            format!("the group is at feature level {level}; every member runs up to {highest}: nothing to finalize\n")
        }
        false => format!(
            "the group is at feature level {level}; every member runs up to {highest}\n  next: nf cluster upgrade --finalize\n"
        ),
    };
    output::put(&output::object(global.style(), &answer, &format!("feature level {level}"), || text)?);
    Ok(())
}

async fn members(global: &Global) -> anyhow::Result<()> {
    let list = global.client()?.listing(Kind::Members.path()).await?;
    let (columns, id) = (Kind::Members.columns(), Kind::Members.id());
    output::put(&output::listing(global.style(), &list.envelope, &list.items, columns, id)?);
    Ok(())
}

impl Init {
    fn run(self, global: &Global) -> anyhow::Result<()> {
        let authority_dir = self.dir.join("ca");
        if authority_dir.join("ca.key").exists() {
            let text = format!(
                "{} holds a group's keys already: choose another --dir, or nf cluster join adds a member",
                self.dir.display()
            );
            return Err(fail(Exit::Conflict, text));
        }
        if ![1, 3, 5, 7].contains(&self.members.len()) {
            return Err(fail(
                Exit::Usage,
                format!("1, 3, 5 or 7 members, not {}: an even number adds no safety", self.members.len()),
            ));
        }
        let authority = Authority::create(&self.cluster)?;
        authority.write(&authority_dir)?;
        let list: Vec<_> = self.members.iter().map(|m| format!("{}={}", m.name, m.peer)).collect();
        let tokens = self.dir.join("tokens");
        let first = if self.open { None } else { Some(token::first(&tokens)?) };
        sealed::write(&PrivateKey::generate()?, &self.dir.join(ARTEFACT_KEY), &self.dir.join("artefact.pub"))?;
        let mut files = Vec::new();
        for member in &self.members {
            let mut extra = vec![("members", list.join(","))];
            extra.extend(jwks(&self.dir, member)?.map(|path| ("jwks", path)));
            files.push(member_files(&self.dir, &authority, &self.cluster, member, &extra)?);
        }
        tell(global, &self.dir, &files, first.as_ref())
    }
}

impl Join {
    async fn run(self, global: &Global) -> anyhow::Result<()> {
        if let (Some(token), Some(name)) = (&self.token, &self.name) {
            let (token, name) = (token.clone(), name.clone());
            return Joining { token, to: self.to, name, dir: self.dir, pqc_mode: self.pqc_mode }.run(global).await;
        }
        let [member] = self.member.as_deref().unwrap_or_default() else {
            return Err(fail(Exit::Usage, "one new member as name=host:peer-port"));
        };
        let authority = Authority::read(&self.dir.join("ca"))?;
        let client = global.client()?;
        let mut extra = vec![("join", client.addrs().join(","))];
        extra.extend(jwks(&self.dir, member)?.map(|path| ("jwks", path)));
        let file = member_files(&self.dir, &authority, &self.cluster, member, &extra)?;
        tell(global, &self.dir, &[file], None)
    }
}

/// The member's copy of the keys that verify tokens, if the group has any.
fn jwks(dir: &Path, member: &Member) -> anyhow::Result<Option<String>> {
    copy(&dir.join("tokens"), member_home(dir, member)?, JWKS_FILE)
}

fn member_home(dir: &Path, member: &Member) -> anyhow::Result<PathBuf> {
    Ok(std::path::absolute(dir.join(&member.name))?)
}

/// A file of the group's for one member, with its rights; None when the group has none.
fn copy(dir: &Path, home: PathBuf, name: &str) -> anyhow::Result<Option<String>> {
    let (from, to) = (dir.join(name), home.join(name));
    if !from.exists() {
        return Ok(None);
    }
    std::fs::create_dir_all(&home).with_context(|| home.display().to_string())?;
    std::fs::copy(&from, &to).with_context(|| to.display().to_string())?;
    Ok(Some(to.display().to_string()))
}

/// Keys and the config file of one member.
fn member_files(
    dir: &Path,
    authority: &Authority,
    cluster: &str,
    member: &Member,
    extra: &[(&str, String)],
) -> anyhow::Result<PathBuf> {
    let home = std::path::absolute(dir.join(&member.name))?;
    authority.issue(cluster, &member.name)?.write(&home.join("tls"))?;
    authority.issuer(cluster)?.write(&home.join("tls"))?;
    if let Some(notary) = authority.notary(cluster, &member.name)? {
        notary.write(&home.join("tls"))?;
    }
    let (host, port) = member.peer.rsplit_once(':').context("a peer address has a port")?;
    let port: u16 = port.parse()?;
    // A name can't be bound: other machines resolve it, this one listens everywhere on that port.
    let peer_listen = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(_) => member.peer.clone(),
        Err(_) if host == "localhost" => member.peer.clone(),
        Err(_) => format!("0.0.0.0:{port}"),
    };
    let mut config = toml::Table::new();
    let texts = [
        ("cluster", cluster.to_owned()),
        ("node_name", member.name.clone()),
        ("listen", format!("127.0.0.1:{}", port.saturating_sub(1))),
        ("peer_listen", peer_listen),
        ("data_dir", home.join("data").display().to_string()),
        ("tls_dir", home.join("tls").display().to_string()),
    ];
    // Where others reach this machine, and the replicas on it. The public port stays on loopback.
    let artefact_key = copy(dir, home.clone(), ARTEFACT_KEY)?.map(|path| ("artefact_key", path));
    let advertise = (!is_loopback(host)).then(|| ("advertise", host.to_owned()));
    let extra = extra.iter().map(|(key, value)| (*key, value.clone())).chain(advertise).chain(artefact_key);
    config.extend(texts.into_iter().chain(extra).map(|(key, value)| (key.to_owned(), toml::Value::String(value))));
    let path = home.join("nf.toml");
    std::fs::write(&path, toml::to_string(&config)?).with_context(|| path.display().to_string())?;
    Ok(path)
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn tell(global: &Global, dir: &Path, files: &[PathBuf], first: Option<&token::Made>) -> anyhow::Result<()> {
    let commands: Vec<_> = files.iter().map(|file| format!("nf serve --config {}", file.display())).collect();
    let mut value = json!({ "dir": dir.display().to_string(), "commands": commands });
    if let Some(made) = first {
        value["admin_token"] = json!(made.token);
    }
    let people = || commands.iter().map(|line| format!("{line}\n")).collect();
    output::put(&output::object(global.style(), &value, &at(&value, "dir"), people)?);
    say(format!("keys are in {}; copy each member's directory to its machine, and keep ca/ off them", dir.display()));
    say("start each member with its line above");
    if let Some(made) = first {
        say(format!("the first admin's token, shown only now, valid for 24 hours:\n  NF_TOKEN={}", made.token));
        say(format!(
            "nf token create --keys {} makes others; keep tokens/ off the members",
            dir.join("tokens").display()
        ));
    }
    Ok(())
}
