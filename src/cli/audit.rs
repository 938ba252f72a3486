//! `nf audit`: checks an export of the audit trail on this machine alone, so that
//! nobody has to trust the group about its own past.

use super::exit::{Exit, fail};
use super::{Global, output, say};
use crate::security::audit;
use crate::security::checkpoint::{self, Authorities, Halves, Signed, Signer};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use nf_core::audit::{Checkpoint, Receipt};
use rustls_pki_types::UnixTime;
use serde_json::json;
use std::fs::File;
use std::io::{BufReader, Write};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Audit {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Check every entry, hash and link of an export
    #[command(
        after_help = "Examples:\n  nf audit verify export.jsonl\n  nf audit verify export.jsonl --receipt 17:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 --checkpoint last-week.json\n  nf audit verify export.jsonl --ca lab/ca/ca.pem\n\nExit: 0 when it holds, 1 with the first bad seq when it does not. Whoever holds a quorum can write a trail\nanew; receipts (the X-NF-Audit of an answer) and checkpoints that were kept elsewhere are what shows it."
    )]
    Verify(Verify),
    /// Read the whole trail from the group, as lines that nf audit verify checks
    #[command(after_help = "Examples:\n  nf audit export --out export.jsonl\n  nf audit export > export.jsonl")]
    Export {
        /// Where to write it; stdout when absent
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct Verify {
    /// The export, one JSON line for each entry
    file: PathBuf,
    /// A receipt that you kept: SEQ:HASH, as in X-NF-Audit
    #[arg(long, value_name = "SEQ:HASH")]
    receipt: Vec<Receipt>,
    /// A checkpoint that you kept: a file with the last line of an older export
    #[arg(long, value_name = "FILE")]
    checkpoint: Vec<PathBuf>,
    /// The group's authority (ca.pem): each checkpoint must be signed by one of its members
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Accept --checkpoint files signed by ECDSA alone, from before ca.pem had an ML-DSA key
    #[arg(long, requires = "ca")]
    classical: bool,
}

impl Audit {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        match self.command {
            AuditCommand::Verify(verify) => verify.run(global),
            AuditCommand::Export { out } => export(global, out).await,
        }
    }
}

/// Page by page, since a trail only grows.
async fn export(global: &Global, out: Option<PathBuf>) -> anyhow::Result<()> {
    let client = global.client()?;
    let name = out.as_ref().map_or("stdout".to_owned(), |path| path.display().to_string());
    let mut to: Box<dyn Write> = match &out {
        Some(path) => Box::new(File::create(path).with_context(|| name.clone())?),
        None => Box::new(std::io::stdout().lock()),
    };
    let (mut from, mut lines) = (Some(1), 0);
    while let Some(first) = from {
        let (text, next) = client.audit_page(first).await?;
        lines += text.lines().count();
        to.write_all(text.as_bytes()).with_context(|| name.clone())?;
        from = next;
    }
    to.flush().with_context(|| name.clone())?;
    say(format!("{} entries; nf audit verify checks them without the group", lines.saturating_sub(1)));
    Ok(())
}

/// A checkpoint, where it is from, and its signature.
type Note = (String, Checkpoint, Option<Signed>);

impl Verify {
    /// Which member signed each, and how; nobody is asked without an authority.
    fn signers(&self, notes: &[Note]) -> anyhow::Result<Vec<Signer>> {
        let Some(path) = &self.ca else { return Ok(Vec::new()) };
        let bad = |e: &dyn std::fmt::Display| fail(Exit::Usage, format!("{}: {e}", path.display()));
        let pem = std::fs::read_to_string(path).map_err(|e| bad(&e))?;
        let authorities = Authorities::read(&pem).map_err(|e| bad(&e))?;
        let older = if self.classical { authorities.clone().or_classical() } else { authorities.clone() };
        let mut out = Vec::new();
        for (i, (name, at, signed)) in notes.iter().enumerate() {
            // The last is the export's own end, which was signed just now: no past excuses it.
            let authorities = if i + 1 < notes.len() { &older } else { &authorities };
            let failed = |why: String| {
                let text = format!("{name}: the checkpoint at seq {} is not signed by a member: {why}", at.size);
                fail(Exit::Failed, format!("{text}\n  try: nf audit export from a member, and its --ca"))
            };
            let signed = signed.as_ref().ok_or_else(|| failed("it has no signature".to_owned()))?;
            out.push(checkpoint::verify(signed, at, authorities, UnixTime::now()).map_err(failed)?);
        }
        Ok(out)
    }

    fn run(self, global: &Global) -> anyhow::Result<()> {
        let bad = |path: &PathBuf, e: &dyn std::fmt::Display| fail(Exit::Usage, format!("{}: {e}", path.display()));
        let file = File::open(&self.file).map_err(|e| bad(&self.file, &e))?;
        let (mut kept, mut notes) = (Vec::new(), Vec::new());
        for path in &self.checkpoint {
            let text = std::fs::read_to_string(path).map_err(|e| bad(path, &e))?;
            let (checkpoint, signed) = audit::read_checkpoint(&text).map_err(|e| bad(path, &e))?;
            notes.push((path.display().to_string(), checkpoint.clone(), signed));
            kept.push(checkpoint);
        }
        let name = self.file.display().to_string();
        let summary = match audit::verify(BufReader::new(file), &self.receipt, &kept) {
            Ok(summary) => summary,
            Err(error) => {
                if !global.for_people() {
                    let value = json!({ "verified": false, "seq": error.seq(), "detail": error.to_string() });
                    output::put(&output::object(global.style(), &value, &name, String::new)?);
                }
                let text = format!("{name}: {error}\n  try: compare it with another member's export");
                return Err(fail(Exit::Failed, text));
            }
        };
        notes.push((name.clone(), summary.checkpoint.clone(), summary.signed.clone()));
        let signers = self.signers(&notes)?;
        let end = &summary.checkpoint;
        // Of those that were kept: the last one is the export's own.
        let kept = &signers[..signers.len().saturating_sub(1)];
        let classical = kept.iter().filter(|by| by.halves == Halves::Classical).count();
        let why_alone = match summary.signed.as_ref().is_some_and(|signed| signed.ml_dsa.is_some()) {
            true => "this ca.pem has no ML-DSA key to check the other half by",
            false => "there is no other half",
        };
        let value = json!({
            "verified": true, "entries": end.size, "origin": end.origin, "head": end.head.to_string(),
            "root": end.root.to_string(), "receipts": summary.receipts, "checkpoints": summary.checkpoints,
            "signed_by": signers.last().map(|by| &by.member), "signature": signers.last().map(|by| by.halves.token()),
            "classical": classical,
        });
        let people = || {
            let signed = match (signers.last(), &summary.signed) {
                (Some(Signer { member, halves: Halves::Both }), _) => {
                    format!("by member {member}, ECDSA and ML-DSA-65")
                }
                (Some(Signer { member, .. }), _) => format!("by member {member}, ECDSA alone: {why_alone}"),
                (None, Some(_)) => "by somebody; --ca ca.pem says whether it was a member".to_owned(),
                (None, None) => "by nobody".to_owned(),
            };
            let alone = if classical == 0 { String::new() } else { format!(", {classical} signed by ECDSA alone") };
            let kept = format!("{} receipts, {} checkpoints{alone}", summary.receipts, summary.checkpoints);
            format!(
                "holds   {} entries of {}\nhead    {}\nroot    {}\nagrees  {kept}\nsigned  {signed}\n",
                end.size, end.origin, end.head, end.root
            )
        };
        output::put(&output::object(global.style(), &value, &name, people)?);
        Ok(())
    }
}
