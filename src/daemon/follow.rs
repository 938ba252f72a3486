//! What a process follows while it runs: its certificate, key and authorities, the keys of
//! tokens, and the end of the audit trail, which it writes down signed. Whatever is of no use
//! leaves the old in place and raises an alarm. It does not judge keys.

use super::identity::Me;
use crate::config::{Error as ConfigError, Mode, Settings};
use crate::pqc;
use crate::raft::Replica;
use crate::security::audit;
use crate::security::checkpoint::Sign;
use crate::security::jwt::{Keys, Remote, Times, Verifier, Watch};
use crate::security::notary::Notary;
use crate::security::public::PublicTls;
use crate::security::reload::{Files, Look, PERIOD};
use crate::security::tls;
use crate::telemetry::Metrics;
use anyhow::Result;
use nf_core::reason::Refusal;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Kinds of alarms.
const CERTIFICATE: &str = "certificate";
const PUBLIC: &str = "public_certificate";
const TOKEN_KEYS: &str = "token_keys";

/// A signed end of the trail is written after so many entries, or so long after the first of them.
const EVERY_ENTRIES: u64 = 1000;
const EVERY: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_secs(5);
/// A file of them is put aside at this length; one older one is kept.
const MAX_FILE: u64 = 4 << 20;

/// Takes new files of this process' certificate as they come.
///
/// # Errors
/// When the present ones can't be read.
pub fn certificates(me: &Me, metrics: Metrics) -> Result<()> {
    follow(Files::new(&me.keys, me.tls.clone())?, CERTIFICATE, "certificate, key and authorities", metrics);
    Ok(())
}

/// The TLS of the public port, if it has any, with new files of its certificate as they come.
///
/// # Errors
/// When the present ones can't be used.
pub fn public(settings: &Settings, metrics: &Metrics) -> Result<Option<PublicTls>> {
    let (Some(cert), Some(key)) = (&settings.public_cert.value, &settings.public_key.value) else { return Ok(None) };
    let clash = |e: tls::Error| ConfigError::Clash(format!("NF_PUBLIC_CERT, NF_PUBLIC_KEY: {e}"));
    let tls = PublicTls::open(cert, key, settings.key_exchange()).map_err(clash)?;
    let files = Files::public(cert, key, tls.clone()).map_err(clash)?;
    follow(files, PUBLIC, "the public port's certificate and key", metrics.clone());
    Ok(Some(tls))
}

fn follow(mut files: Files, kind: &'static str, what: &'static str, metrics: Metrics) {
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let looked = tokio::task::spawn_blocking(move || {
                let look = files.look();
                (files, look)
            });
            let Ok((back, look)) = looked.await else { return };
            files = back;
            match look {
                Look::Same => {}
                Look::Replaced => {
                    tracing::info!("{what} replaced; connections from now on use them");
                    metrics.alarms.clear(kind);
                }
                Look::Bad(text) => metrics.alarms.raise(kind, &text),
            }
        }
    });
}

/// Who verifies tokens, following the keys where `NF_JWKS` says; None when nobody is asked.
///
/// # Errors
/// A file that cannot be used, a URL that may not be, or cryptography that does not work.
pub fn tokens(settings: &Settings, metrics: &Metrics) -> Result<Option<Arc<Verifier>>> {
    let Some(place) = &settings.jwks.value else { return Ok(None) };
    Verifier::self_test().map_err(|e| anyhow::anyhow!("token verification does not work in this build: {e}"))?;
    let clash = |refusal: Refusal| ConfigError::Clash(format!("NF_JWKS: {refusal}"));
    // What can't be taken back has no place where it matters.
    let (issuer, production) = (settings.token_issuer.value.clone(), settings.mode() == Mode::Production);
    let alarms = metrics.clone();
    let tell = move |wrong: Option<&str>| match wrong {
        Some(text) => alarms.alarms.raise(TOKEN_KEYS, text),
        None => alarms.alarms.clear(TOKEN_KEYS),
    };
    let path = place.strip_prefix("file://").unwrap_or(place);
    if !path.contains("://") {
        let watch = Watch::open(Path::new(path), issuer, production).map_err(clash)?;
        let verifier = watch.verifier();
        tokio::spawn(watch.run(tell));
        return Ok(Some(verifier));
    }
    let read = |path: &PathBuf| {
        let wrong = |e| ConfigError::Clash(format!("NF_JWKS_CA: {}: {e}", path.display()));
        std::fs::read_to_string(path).map_err(wrong)
    };
    let authorities = settings.jwks_ca.value.as_ref().map(read).transpose()?;
    let remote = Remote::new(place, authorities.as_deref(), production, Times::default(), settings.key_exchange())
        .map_err(clash)?;
    // Nobody counts until the issuer has answered; a member may start while the issuer is away.
    let verifier = Verifier::new(Keys::none(), issuer);
    let verifier = Arc::new(if production { verifier.wanting_ids() } else { verifier });
    tokio::spawn(remote.run(verifier.clone(), tell));
    Ok(Some(verifier))
}

/// Once: groups of earlier versions have no such keys, and go on.
fn tell_of_half_signatures(me: &Me) {
    if me.tls.policy().mode == pqc::Mode::Hybrid && matches!(Notary::read(&me.keys), Ok(None)) {
        let dir = me.keys.display();
        tracing::warn!(%dir, "there is no notary.key: this member signs checkpoints of the audit trail by ECDSA alone; \
                             nf tls cert create --role notary makes the ML-DSA half");
    }
}

/// Writes signed ends of the audit trail into the data directory, one line each, for others to
/// take away: what only the members hold, the members could write anew.
pub fn checkpoints(me: &Me, replica: &Replica, sign: Sign, mut ended: watch::Receiver<bool>) {
    tell_of_half_signatures(me);
    let mut written = Written { path: kept(me), size: 0, since: Instant::now() };
    let replica = replica.clone();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                _ = ended.wait_for(|end| *end) => return,
            }
            let state = replica.applied().state;
            if !written.due(state.audit().seq()) {
                continue;
            }
            let checkpoint = state.audit().checkpoint(&state.meta().cluster);
            let line = audit::last_line(&checkpoint, sign(&checkpoint).as_ref());
            let done = tokio::task::spawn_blocking(move || {
                let done = written.write(checkpoint.size, &line);
                (written, done)
            });
            let Ok((back, done)) = done.await else { return };
            written = back;
            if let Err(error) = done {
                let file = written.path.display();
                tracing::warn!(%error, %file, "a checkpoint of the audit trail was not written; tried again in seconds");
            }
        }
    });
}

/// Where they are written to.
pub fn kept(me: &Me) -> PathBuf {
    me.data.join("audit-checkpoints.jsonl")
}

/// The file of checkpoints, and how much of the trail the last of them covers.
struct Written {
    path: PathBuf,
    size: u64,
    /// When there was nothing more to cover.
    since: Instant,
}

impl Written {
    fn due(&mut self, size: u64) -> bool {
        if size <= self.size {
            self.since = Instant::now();
            return false;
        }
        size >= self.size.saturating_add(EVERY_ENTRIES) || self.since.elapsed() >= EVERY
    }

    /// What could not be written is still due.
    fn write(&mut self, size: u64, line: &str) -> std::io::Result<()> {
        append(&self.path, line)?;
        (self.size, self.since) = (size, Instant::now());
        Ok(())
    }
}

fn append(path: &Path, line: &str) -> std::io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|there| there.len() >= MAX_FILE) {
        std::fs::rename(path, path.with_extension("jsonl.1"))?;
    }
    let mut file = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let before = file.metadata()?.len();
    // Half a line would spoil the one that is written when there is room again.
    file.write_all(line.as_bytes()).inspect_err(|_| drop(file.set_len(before)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_checkpoints_has_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.jsonl");
        append(&path, "one\n").unwrap();
        append(&path, "two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(MAX_FILE).unwrap();
        append(&path, "three\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
        assert!(dir.path().join("c.jsonl.1").exists());
    }

    #[test]
    fn a_checkpoint_that_was_not_written_is_still_due() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("full").join("c.jsonl");
        let mut written = Written { path: path.clone(), size: 0, since: Instant::now() };
        assert!(!written.due(EVERY_ENTRIES - 1) && written.due(EVERY_ENTRIES));
        assert!(written.write(EVERY_ENTRIES, "one\n").is_err());
        assert!(written.due(EVERY_ENTRIES), "it is tried again");
        std::fs::create_dir(dir.path().join("full")).unwrap();
        written.write(EVERY_ENTRIES, "one\n").unwrap();
        assert!(!written.due(EVERY_ENTRIES));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\n");
    }
}
