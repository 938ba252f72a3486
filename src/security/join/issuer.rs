//! The key by which a member certifies workers: the group's authority made it for that and
//! for nothing else. What it signs can't name a member and can't serve, so a member that is
//! taken over makes workers and no members. The authority's own key stays off them all.

use super::request::{Applicant, Wish};
use crate::security::tls::{self, Credentials, Error, Role};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, PublicKeyData, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::time::Duration;
use x509_parser::prelude::{FromDer, X509Certificate};

const CERT_FILE: &str = "issuer.pem";
const KEY_FILE: &str = "issuer.key";
/// How far a clock may be behind: a certificate counts so long before it is made, or a tenth of its life.
const BEHIND: Duration = Duration::from_secs(300);

/// See the module's text.
pub struct Issuer {
    cert: String,
    key: String,
}

fn unreadable(what: &'static str) -> Error {
    Error::Pem { what, detail: "it is no certificate".into() }
}

impl Issuer {
    pub fn new(cert: String, key: String) -> Self {
        Self { cert, key }
    }

    /// Writes `issuer.pem` and `issuer.key` (readable by the owner alone). Between the two nothing is certified.
    ///
    /// # Errors
    /// With the file.
    pub fn write(&self, dir: &Path) -> Result<(), Error> {
        tls::put_file(&dir.join(CERT_FILE), &self.cert, 0o644)?;
        tls::put_file(&dir.join(KEY_FILE), &self.key, 0o600)
    }

    /// Reads what [`Issuer::write`] wrote; None where there is none.
    ///
    /// # Errors
    /// With the file.
    pub fn read(dir: &Path) -> Result<Option<Self>, Error> {
        match dir.join(KEY_FILE).exists() {
            true => Ok(Some(Self::new(tls::read_file(&dir.join(CERT_FILE))?, tls::read_file(&dir.join(KEY_FILE))?))),
            false => Ok(None),
        }
    }

    /// Whether what it signs counts at `now` under these authorities, shown by a sample that is thrown away.
    ///
    /// # Errors
    /// Files that don't fit one another or the authorities, or are no longer (or not yet) of use.
    pub fn check(&self, authority: &str, cluster: &str, now: u64) -> Result<(), Error> {
        let none = |detail| Error::Pem { what: "the issuer's sample", detail };
        let applicant = Applicant::generate()?;
        let wish = Wish::read(&applicant.request()?).map_err(none)?;
        let cert = self.certify(&wish, cluster, "sample", Duration::from_secs(60), now)?;
        let sample = Credentials { authority: authority.to_owned(), cert, key: applicant.key() };
        tls::counts(&sample, Role::Client, UnixTime::since_unix_epoch(Duration::from_secs(now)))
    }

    /// A certificate for a worker, with this issuer's own after it. It ends no later than that one.
    ///
    /// # Errors
    /// A name that is none, keys of no use, or an issuer whose own time is over.
    pub fn certify(&self, wish: &Wish, cluster: &str, node: &str, life: Duration, now: u64) -> Result<String, Error> {
        let dns = tls::name_of(cluster, node, Role::Client)?;
        let pair = KeyPair::from_pem(&self.key)?;
        let own = tls::certificates(&self.cert, "the issuer's certificate")?;
        if own.first().and_then(tls::key_digest) != Some(Sha256::digest(pair.subject_public_key_info()).into()) {
            let detail = "issuer.key is not its key; make both with nf tls cert create --role issuer".into();
            return Err(Error::Pem { what: "the issuer's certificate", detail });
        }
        let end = Life::of(&self.cert)?.end.min(now.saturating_add(life.as_secs()));
        if end <= now {
            let detail = "its own time is over; make another with nf tls cert create --role issuer".into();
            return Err(Error::Pem { what: "the issuer's certificate", detail });
        }
        let issuer = rcgen::Issuer::from_ca_cert_pem(&self.cert, pair)?;
        let mut params = CertificateParams::new(vec![dns.clone()])?;
        params.distinguished_name.push(DnType::CommonName, dns);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let at = |seconds: u64| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
        params.not_before = at(now.saturating_sub(BEHIND.min(life / 10).as_secs()));
        params.not_after = at(end);
        Ok(format!("{}{}", params.signed_by(wish.key(), &issuer)?.pem(), self.cert))
    }
}

/// From when to when a certificate counts, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    pub begin: u64,
    pub end: u64,
}

impl Life {
    /// The one of the first certificate of a PEM text.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pem: &str) -> Result<Self, Error> {
        const WHAT: &str = "a certificate";
        let chain = tls::certificates(pem, WHAT)?;
        Self::of_cert(chain.first().ok_or_else(|| unreadable(WHAT))?).ok_or_else(|| unreadable(WHAT))
    }

    /// The one of this certificate.
    pub fn of_cert(cert: &CertificateDer<'_>) -> Option<Self> {
        let (_, read) = X509Certificate::from_der(cert).ok()?;
        let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        Some(Self { begin: seconds(read.validity().not_before), end: seconds(read.validity().not_after) })
    }

    /// When two thirds of it are over: a third is left for members that are away.
    pub fn renew_at(self) -> u64 {
        self.begin + self.end.saturating_sub(self.begin) / 3 * 2
    }
}
