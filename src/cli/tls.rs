//! `nf tls`: the group's authority, and certificates under it, as files. It asks no
//! group: whoever holds the authority's key may make any of them.

use super::exit::{Exit, fail};
use super::output;
use super::{Global, say};
use crate::config::parse;
use crate::security::tls::{Authority, Error, Role};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct Tls {
    #[command(subcommand)]
    command: TlsCommand,
}

#[derive(Debug, Subcommand)]
enum TlsCommand {
    /// The group's certificate authority
    #[command(
        after_help = "Examples:\n  nf tls ca create --dir ./lab/ca\n  nf tls ca create --dir ./lab/ca --cluster lab -o json"
    )]
    Ca {
        #[command(subcommand)]
        command: CaCommand,
    },
    /// Certificates of members and workers
    #[command(
        after_help = "Examples:\n  nf tls cert create --ca ./lab/ca --role node --name gpu-7 --dir ./gpu-7/tls\n  nf tls cert create --ca ./lab/ca --role server --name node-4 --dir ./node-4/tls"
    )]
    Cert {
        #[command(subcommand)]
        command: CertCommand,
    },
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Make an authority; one that is there is not replaced
    #[command(
        after_help = "Examples:\n  nf tls ca create --dir ./lab/ca\n  nf tls ca create --dir ./lab/ca --cluster lab -o json"
    )]
    Create {
        /// Where ca.pem and ca.key are written
        #[arg(long)]
        dir: PathBuf,
        /// The group's name
        #[arg(long, default_value = "neural-fabric", value_parser = parse::cluster)]
        cluster: String,
    },
}

#[derive(Debug, Subcommand)]
enum CertCommand {
    /// Make a key and its certificate: ca.pem, member.pem and member.key, as NF_TLS_DIR wants them
    #[command(
        after_help = "Examples:\n  nf tls cert create --ca ./lab/ca --role node --name gpu-7 --dir ./gpu-7/tls\n  nf tls cert create --ca ./lab/ca --role issuer --dir ./node-1/tls"
    )]
    Create(CertCreate),
}

/// What the holder may be: a certificate of a node opens nothing that is a member's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Holder {
    /// A member: it serves, and speaks Raft
    Server,
    /// A worker, of this name and no other
    Node,
    /// No process: a member's key to certify workers that join by token
    Issuer,
    /// No process: the ML-DSA key by which a member of this name signs checkpoints of the audit trail
    Notary,
}

#[derive(Debug, Args)]
struct CertCreate {
    /// The directory with ca.pem and ca.key
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    #[arg(long, value_enum)]
    role: Holder,
    /// The member's or node's name
    #[arg(long, required_if_eq_any([("role", "server"), ("role", "node"), ("role", "notary")]))]
    name: Option<String>,
    /// Where the three files are written; an issuer's two, and a notary's, belong into a member's NF_TLS_DIR
    #[arg(long)]
    dir: PathBuf,
    /// The group's name
    #[arg(long, default_value = "neural-fabric", value_parser = parse::cluster)]
    cluster: String,
}

fn not_there(path: &Path) -> anyhow::Result<()> {
    match path.exists() {
        true => Err(fail(Exit::Conflict, format!("{} is there already; choose another --dir", path.display()))),
        false => Ok(()),
    }
}

impl Tls {
    pub fn run(self, global: &Global) -> anyhow::Result<()> {
        let wrong = |e: Error| fail(Exit::Usage, e.to_string());
        match self.command {
            TlsCommand::Ca { command: CaCommand::Create { dir, cluster } } => {
                not_there(&dir.join("ca.key"))?;
                Authority::create(&cluster).and_then(|authority| authority.write(&dir)).map_err(wrong)?;
                let (shown, files) =
                    (dir.display().to_string(), ["ca.pem", "ca.key", "ca-ml-dsa.key"].map(|name| dir.join(name)));
                let value = json!({ "dir": shown, "cluster": cluster, "files": files });
                output::put(&output::object(global.style(), &value, &shown, || format!("{shown}\n"))?);
                say(
                    "ca.key makes certificates of any member, and ca-ml-dsa.key their notaries: keep both off all of them",
                );
            }
            TlsCommand::Cert { command: CertCommand::Create(wanted) } => wanted.run(global)?,
        }
        Ok(())
    }
}

/// Nothing where the authority has no key that vouches for it.
fn write_notary(authority: &Authority, cluster: &str, name: &str, dir: &Path) -> Result<(), Error> {
    authority.notary(cluster, name)?.map_or(Ok(()), |notary| notary.write(dir))
}

impl CertCreate {
    fn run(self, global: &Global) -> anyhow::Result<()> {
        let wrong = |e: Error| fail(Exit::Usage, e.to_string());
        let authority = Authority::read(&self.ca).map_err(wrong)?;
        let shown = self.dir.display().to_string();
        let name = self.name.unwrap_or_default();
        let role = match self.role {
            Holder::Server => Role::Server,
            Holder::Node => Role::Client,
            Holder::Notary => {
                not_there(&self.dir.join("notary.key"))?;
                let authority = authority.completed(&self.ca).map_err(wrong)?;
                write_notary(&authority, &self.cluster, &name, &self.dir).map_err(wrong)?;
                let files = ["notary.pem", "notary.key"].map(|name| self.dir.join(name));
                let value = json!({ "dir": shown, "files": files });
                output::put(&output::object(global.style(), &value, &shown, || format!("notary in {shown}\n"))?);
                say("who checks the audit trail wants the ca.pem of today: it has the ML-DSA half of the authority");
                return Ok(());
            }
            Holder::Issuer => {
                not_there(&self.dir.join("issuer.key"))?;
                authority.issuer(&self.cluster).and_then(|made| made.write(&self.dir)).map_err(wrong)?;
                let files = ["issuer.pem", "issuer.key"].map(|name| self.dir.join(name));
                let value = json!({ "dir": shown, "files": files });
                output::put(&output::object(global.style(), &value, &shown, || format!("issuer in {shown}\n"))?);
                return Ok(());
            }
        };
        not_there(&self.dir.join("member.key"))?;
        authority.issue_as(&self.cluster, &name, role).and_then(|made| made.write(&self.dir)).map_err(wrong)?;
        if role == Role::Server {
            write_notary(&authority, &self.cluster, &name, &self.dir).map_err(wrong)?;
        }
        let dns = crate::security::tls::name_of(&self.cluster, &name, role).map_err(wrong)?;
        let value = json!({ "dir": shown, "name": dns });
        output::put(&output::object(global.style(), &value, &dns, || format!("{dns} in {shown}\n"))?);
        Ok(())
    }
}
