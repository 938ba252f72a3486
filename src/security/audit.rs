//! The audit trail as a file: one JSON line for each entry with its hash, and a
//! checkpoint as the last line. Anybody can check it with SHA-256 and a JSON reader;
//! docs/examples/audit_verify.py does. It does not know where the trail comes from.

use super::checkpoint::Signed;
use super::json;
use super::notary::Half;
use nf_core::audit::{Auditor, Checkpoint, Entry, Fault, Hash, Receipt};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, Read};

/// The longest line; entries are far shorter.
const MAX_LINE: u64 = 64 << 10;

/// Why an export does not hold.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the export cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("line {line}: {text}")]
    Line { line: u64, text: String },
    #[error("line {line}: {fault}")]
    Fault { line: u64, fault: Fault },
    #[error("the export ends after seq {seq} without a checkpoint, so it was cut there or is not complete")]
    NoCheckpoint { seq: u64 },
}

impl Error {
    /// The first bad place, where it has a number.
    pub fn seq(&self) -> Option<u64> {
        match self {
            Error::Fault { fault, .. } => Some(fault.seq()),
            Error::NoCheckpoint { seq } => Some(seq + 1),
            Error::Io(_) | Error::Line { .. } => None,
        }
    }
}

/// What holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub checkpoint: Checkpoint,
    /// The checkpoint as a member signed it; whose word that is, is for the reader to ask.
    pub signed: Option<Signed>,
    /// Receipts and checkpoints from elsewhere that were met on the way.
    pub receipts: usize,
    pub checkpoints: usize,
}

/// An entry's line, with its line feed.
pub fn line(entry: &Entry) -> String {
    // The canonical bytes are text already; they are put in as they are.
    let canonical = String::from_utf8(entry.canonical()).expect("canonical JSON is UTF-8");
    format!("{{\"entry\":{canonical},\"hash\":\"{}\"}}\n", entry.hash())
}

/// A checkpoint's line, with its line feed, and with the signed note where there is one.
pub fn last_line(checkpoint: &Checkpoint, signed: Option<&Signed>) -> String {
    let Checkpoint { origin, size, head, root } = checkpoint;
    let mut value = json!({
        "checkpoint": { "head": head.to_string(), "origin": origin, "root": root.to_string(), "size": size },
    });
    if let Some(Signed { note, certificate, ml_dsa }) = signed {
        value["note"] = json!(note);
        value["certificate"] = json!(certificate);
        // Beside the first half and not in its note, so that who checks that one alone still can.
        if let Some(Half { note, certificate }) = ml_dsa {
            value["ml_dsa"] = json!({ "note": note, "certificate": certificate });
        }
    }
    format!("{value}\n")
}

/// Reads a checkpoint that was kept: the last line of an older export.
///
/// # Errors
/// What it is instead.
pub fn read_checkpoint(text: &str) -> Result<(Checkpoint, Option<Signed>), String> {
    let value = json::parse(text.trim_end().as_bytes())?;
    let found = checkpoint(&value).ok_or("no checkpoint: the last line of an export is wanted")?;
    Ok((found, signed(&value)))
}

/// The notes beside a checkpoint.
fn signed(value: &Value) -> Option<Signed> {
    let of = |value: &Value| {
        let text = |name: &str| Some(value.get(name)?.as_str()?.to_owned());
        Some((text("note")?, text("certificate")?))
    };
    let (note, certificate) = of(value)?;
    let ml_dsa = value.get("ml_dsa").and_then(of).map(|(note, certificate)| Half { note, certificate });
    Some(Signed { note, certificate, ml_dsa })
}

fn hash(value: &Value, name: &str) -> Option<Hash> {
    Hash::parse(value.get(name)?.as_str()?)
}

fn checkpoint(value: &Value) -> Option<Checkpoint> {
    let it = value.get("checkpoint")?;
    let (origin, size) = (it.get("origin")?.as_str()?.into(), it.get("size")?.as_u64()?);
    Some(Checkpoint { origin, size, head: hash(it, "head")?, root: hash(it, "root")? })
}

/// Checks an export from its first entry to its checkpoint, and that the receipts
/// and checkpoints that were kept elsewhere are of this trail.
///
/// # Errors
/// The first line that does not hold.
pub fn verify(mut export: impl BufRead, receipts: &[Receipt], kept: &[Checkpoint]) -> Result<Summary, Error> {
    let mut auditor = Auditor::default();
    let mut waiting: BTreeMap<u64, Vec<Hash>> = BTreeMap::new();
    for receipt in receipts {
        waiting.entry(receipt.seq).or_default().push(receipt.hash);
    }
    let (total, mut met) = (receipts.len(), 0);
    let mut text = Vec::new();
    let mut number = 0;
    loop {
        number += 1;
        text.clear();
        export.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut text)?;
        let fault = |fault| Error::Fault { line: number, fault };
        let wrong = |text: &str| Error::Line { line: number, text: text.to_owned() };
        match &text[..] {
            [] => return Err(Error::NoCheckpoint { seq: auditor.seq() }),
            text if text.len() as u64 > MAX_LINE => return Err(wrong("too long for an entry")),
            _ => {}
        }
        let value = json::parse(&text).map_err(|e| wrong(&format!("not an entry of an audit export: {e}")))?;
        if let Some(checkpoint) = checkpoint(&value) {
            auditor.end(&checkpoint).map_err(fault)?;
            if let Some((seq, _)) = waiting.pop_first() {
                return Err(fault(Fault::NoEntry { seq }));
            }
            if let Some(kept) = kept.iter().find(|kept| kept.size > checkpoint.size) {
                return Err(fault(Fault::Cut { found: checkpoint.size, size: kept.size }));
            }
            text.clear();
            if export.by_ref().take(1).read_until(b'\n', &mut text)? > 0 {
                return Err(wrong("something follows the checkpoint, which is the last line"));
            }
            return Ok(Summary { checkpoint, signed: signed(&value), receipts: total, checkpoints: met });
        }
        let receipt = take(&mut auditor, &value).map_err(|e| match e {
            Ok(found) => fault(found),
            Err(text) => wrong(text),
        })?;
        if waiting.remove(&receipt.seq).is_some_and(|hashes| hashes.iter().any(|hash| *hash != receipt.hash)) {
            return Err(fault(Fault::Receipt { seq: receipt.seq }));
        }
        for kept in kept.iter().filter(|kept| kept.size == receipt.seq) {
            auditor.end(kept).map_err(fault)?;
            met += 1;
        }
    }
}

/// One line's entry. The inner error is a fault of the trail or a text about the line.
fn take(auditor: &mut Auditor, value: &Value) -> Result<Receipt, Result<Fault, &'static str>> {
    let entry = value.get("entry").ok_or(Err("neither an entry nor a checkpoint"))?;
    let told = hash(value, "hash").ok_or(Err("its hash is no SHA-256 in hex"))?;
    let seq = entry.get("seq").and_then(Value::as_u64).ok_or(Err("its seq is no number"))?;
    let prev = hash(entry, "prev").ok_or(Err("its prev is no SHA-256 in hex"))?;
    // Hashed as read and not as understood, so that entries of later versions can be checked, too.
    let canonical = json::canonical(entry).ok_or(Err("holds a number that is not whole"))?;
    auditor.take(canonical.as_bytes(), seq, prev, told).map_err(Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::audit::{Action, Chain};
    use nf_core::testing;

    fn export(n: u64) -> (Vec<String>, Chain) {
        let mut chain = Chain::default();
        let record = |n: u64| {
            testing::record("ada \"\u{1}é\" ", Action::ModelApprove, format!("model/m{n}"), 1_795_435_200_000 + n)
        };
        let mut lines: Vec<String> = (1..=n).map(|i| line(&chain.append(record(i)).0)).collect();
        lines.push(last_line(&chain.checkpoint("blue"), None));
        (lines, chain)
    }

    fn check(lines: &[String], receipts: &[Receipt], kept: &[Checkpoint]) -> Result<Summary, Error> {
        verify(lines.concat().as_bytes(), receipts, kept)
    }

    #[test]
    fn an_export_holds_with_what_was_kept_of_it() {
        let (lines, chain) = export(9);
        let summary = check(&lines, &[], &[]).unwrap();
        assert_eq!(summary.checkpoint, chain.checkpoint("blue"));
        let (earlier, older) = export(4);
        let (kept, none) = read_checkpoint(&earlier[4]).unwrap();
        assert_eq!(none, None, "nobody signed it");
        assert_eq!(kept, older.checkpoint("blue"));
        let receipt = Receipt { seq: 4, hash: older.head() };
        let summary = check(&lines, &[receipt, receipt], &[kept]).unwrap();
        assert_eq!((summary.receipts, summary.checkpoints), (2, 1));
    }

    #[test]
    fn one_line_changed_removed_or_swapped_is_named() {
        let (lines, _) = export(9);
        for at in 0..9 {
            let seq = at as u64 + 1;
            let mut changed = lines.clone();
            changed[at] = changed[at].replace("ModelApprove", "ModelRevoke");
            assert_eq!(check(&changed, &[], &[]).unwrap_err().seq(), Some(seq));
            let mut removed = lines.clone();
            removed.remove(at);
            assert_eq!(check(&removed, &[], &[]).unwrap_err().seq(), Some(seq));
            let mut swapped = lines.clone();
            swapped.swap(at, at + 1);
            let error = check(&swapped, &[], &[]).unwrap_err();
            assert_eq!(error.seq(), Some(seq), "{error}");
        }
        for end in 0..9 {
            let error = check(&lines[..end], &[], &[]).unwrap_err();
            assert_eq!(error.seq(), Some(end as u64 + 1), "cut: {error}");
        }
        let more = [&lines[..], &lines[9..]].concat();
        assert!(check(&more, &[], &[]).is_err(), "something after the end");
    }

    #[test]
    fn a_signed_end_travels_with_the_export() {
        let (mut lines, chain) = export(3);
        let half = Half { note: "another\n".into(), certificate: "a word for it\n".into() };
        for ml_dsa in [None, Some(half)] {
            let signed = Signed { note: "a note\n".into(), certificate: "a certificate\n".into(), ml_dsa };
            lines[3] = last_line(&chain.checkpoint("blue"), Some(&signed));
            assert_eq!(check(&lines, &[], &[]).unwrap().signed.as_ref(), Some(&signed));
            assert_eq!(read_checkpoint(&lines[3]).unwrap().1, Some(signed));
        }
    }

    /// The whole trail written anew is consistent in itself; what was kept shows it.
    #[test]
    fn a_rewritten_trail_differs_from_what_was_kept() {
        let (lines, chain) = export(5);
        let receipt = Receipt { seq: 3, hash: Hash([1; 32]) };
        assert_eq!(check(&lines, &[receipt], &[]).unwrap_err().seq(), Some(3));
        let beyond = Receipt { seq: 6, hash: chain.head() };
        assert_eq!(check(&lines, &[beyond], &[]).unwrap_err().seq(), Some(6));
        let mut other = chain.checkpoint("blue");
        other.head = Hash([1; 32]);
        assert_eq!(check(&lines, &[], &[other]).unwrap_err().seq(), Some(5));
        let (_, longer) = export(7);
        assert_eq!(check(&lines, &[], &[longer.checkpoint("blue")]).unwrap_err().seq(), Some(6));
    }

    #[test]
    fn nonsense_is_refused_by_line() {
        let (lines, _) = export(2);
        let long = format!("\"{}\"\n", "x".repeat(70_000));
        for bad in ["", "\n", "{}\n", "[1]\n", "{\"entry\":{}}\n", "{\"a\":1,\"a\":1}\n", long.as_str()] {
            let mut broken = lines.clone();
            broken[1] = bad.to_owned();
            assert!(check(&broken, &[], &[]).is_err(), "{bad:.30}");
        }
        assert!(read_checkpoint("{}").is_err() && read_checkpoint("").is_err());
        assert!(matches!(verify(&b"\xff\xfe"[..], &[], &[]), Err(Error::Line { line: 1, .. })));
    }
}
