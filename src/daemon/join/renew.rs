//! Keeps a worker's certificate from running out, where a member gave it: at two thirds of
//! its life another one is asked for, for the same key, and put into its file. Whoever
//! follows the files takes it from there. It may be killed at any line.

use super::super::identity::Me;
use super::{RenewRequest, accept, ask_each};
use crate::pqc::Mode;
use crate::security::join::{Applicant, Life};
use crate::security::tls::{self, Credentials};
use crate::telemetry::Metrics;
use anyhow::{Context as _, Result};
use rustls_pki_types::ServerName;
use std::path::Path;
use std::time::Duration;

/// Looks at the clock come so often, and no more often.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// After a try that failed.
const AGAIN: Duration = Duration::from_secs(5);
const RENEWAL: &str = "certificate_renewal";

/// Runs as long as the process does. `members` are (name, peer address).
pub async fn keep(me: Me, members: Vec<(String, String)>, metrics: Metrics) {
    loop {
        let wait = match turn(&me, &members).await {
            Ok(wait) => {
                metrics.alarms.clear(RENEWAL);
                wait
            }
            Err(error) => {
                let text = format!(
                    "{error:#}; tried again. When the certificate has run out, join again: \
                     nf join-token create --node {}, then nf cluster join",
                    me.name
                );
                metrics.alarms.raise(RENEWAL, &text);
                AGAIN
            }
        };
        tokio::time::sleep(wait.clamp(LOOK.0, LOOK.1)).await;
    }
}

/// Renews if it is time, and says how long there is nothing to do.
async fn turn(me: &Me, members: &[(String, String)]) -> Result<Duration> {
    // Nobody judges certificates on plain links, and nobody gives any.
    if me.tls.policy().mode == Mode::Off {
        return Ok(LOOK.1);
    }
    let dir = me.keys.clone();
    let found = tokio::task::spawn_blocking(move || Credentials::read(&dir)).await??;
    // What somebody made by hand is theirs to replace.
    if tls::certificates(&found.cert, "the certificate")?.len() < 2 {
        return Ok(LOOK.1);
    }
    let now = crate::api::auth::now();
    let due = Life::of(&found.cert)?.renew_at();
    if now < due {
        return Ok(Duration::from_secs(due - now));
    }
    let applicant = Applicant::with_key(&found.key)?;
    let named = |(name, peer): &(String, String)| Some((peer.clone(), me.tls.server_name(name).ok()?));
    let members: Vec<(String, ServerName<'static>)> = members.iter().filter_map(named).collect();
    let body = RenewRequest { request: applicant.request()? };
    // Authorities are the operator's to change: the new certificate has to count under those that are here.
    let take = |admitted| {
        let admitted = super::Admitted { authority: found.authority.clone(), ..admitted };
        accept(&admitted, me.name.as_str(), &applicant, |_| true)
    };
    let renewed = ask_each(&members, me.tls.policy(), || me.tls.renewing(), "/renew", &body, take).await?;
    let (dir, cert) = (me.keys.clone(), renewed.cert);
    tokio::task::spawn_blocking(move || put(&dir, &cert)).await??;
    tracing::info!("the certificate is renewed");
    Ok(LOOK.0)
}

/// In one step: there is always a whole certificate for the key beside it.
fn put(dir: &Path, cert: &str) -> Result<()> {
    crate::storage::replace_file(&dir.join("member.pem"), cert.as_bytes()).context("member.pem")
}
