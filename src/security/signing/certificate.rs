//! A signer known by certificate: the chain in a bundle counts when it ends in a
//! configured root, is valid now, and its leaf may sign code. Certificates of a
//! public keyless authority are refused, since their root vouches for anybody.
//! It does not know what was signed.

use super::encoding;
use super::key::{Kind, PublicKey};
use super::refusal::{config, invalid, unsupported};
use nf_core::id::TenantId;
use nf_core::reason::Refusal;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use std::collections::BTreeSet;
use std::time::Duration;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The longest chain, and the most roots.
const MAX_CHAIN: usize = 8;
const MAX_ROOTS: usize = 64;
/// 1.3.6.1.5.5.7.3.3
const CODE_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 3];
/// Fulcio's arc, 1.3.6.1.4.1.57264.1: an identity that was proved to a keyless authority.
const KEYLESS: &str = "1.3.6.1.4.1.57264.1.";
const FIELD: &str = "verificationMaterial.certificate";

/// The authorities whose certificates count.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    anchors: Vec<TrustAnchor<'static>>,
    /// For whom their signers may sign models whose format names no tenant.
    tenants: BTreeSet<String>,
}

impl Roots {
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    /// What their signers sign for the tenant counts also where a format names none.
    pub fn give(&mut self, tenant: &TenantId) {
        self.tenants.insert(tenant.to_string());
    }

    /// Adds the certificates of a PEM file.
    ///
    /// # Errors
    /// `ConfigInvalid` with the file's name.
    pub fn add_file(&mut self, name: &str, bytes: &[u8]) -> Result<(), Refusal> {
        let text = std::str::from_utf8(bytes).map_err(|_| config(name, "is not PEM"))?;
        let blocks = encoding::pem(text).map_err(|e| config(name, e))?;
        if blocks.is_empty() || blocks.len() + self.anchors.len() > MAX_ROOTS {
            return Err(config(name, format!("holds {} certificates; 1 to {MAX_ROOTS} are wanted", blocks.len())));
        }
        for block in blocks {
            if block.label != "CERTIFICATE" {
                return Err(config(name, "holds something else than certificates; keys go into --key"));
            }
            let der = CertificateDer::from(block.der);
            let anchor = webpki::anchor_from_trusted_cert(&der).map_err(|e| config(name, format!("no root: {e}")))?;
            self.anchors.push(anchor.to_owned());
        }
        Ok(())
    }
}

/// The leaf's key, when its chain holds. `now` is in seconds since 1970.
///
/// # Errors
/// `SignatureInvalid` with what is wrong with the chain.
pub fn signer(chain: &[Vec<u8>], roots: &Roots, now: u64) -> Result<PublicKey, Refusal> {
    if roots.is_empty() {
        let text = "signed with a certificate, which counts only under a configured root; pass its root with --roots";
        return Err(invalid(FIELD, text));
    }
    if chain.is_empty() || chain.len() > MAX_CHAIN {
        return Err(invalid(FIELD, format!("{} certificates; 1 to {MAX_CHAIN} are wanted", chain.len())));
    }
    let ders: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(&der[..])).collect();
    let bad = |e: webpki::Error| invalid(FIELD, format!("the chain does not hold under the configured roots: {e}"));
    let leaf = EndEntityCert::try_from(&ders[0]).map_err(bad)?;
    leaf.verify_for_usage(
        aws_lc_rs::default_provider().signature_verification_algorithms.all,
        &roots.anchors,
        &ders[1..],
        UnixTime::since_unix_epoch(Duration::from_secs(now)),
        KeyUsage::required(CODE_SIGNING),
        None,
        None,
    )
    .map_err(bad)?;
    may_sign(&chain[0])?;
    let mut key = PublicKey::from_spki(leaf.subject_public_key_info().as_ref()).map_err(|e| unsupported(FIELD, e))?;
    match key.kind {
        Kind::Ecdsa(_) => {
            key.tenants.clone_from(&roots.tenants);
            Ok(key)
        }
        other => Err(unsupported(FIELD, format!("a certificate with a key of {}; ECDSA is supported", other.name()))),
    }
}

/// What webpki leaves to its callers: the key usage bits, and who issued it for what.
fn may_sign(leaf: &[u8]) -> Result<(), Refusal> {
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| invalid(FIELD, "the leaf is not X.509"))?;
    let usage = leaf.key_usage().ok().flatten();
    if !usage.is_some_and(|usage| usage.value.digital_signature()) {
        return Err(invalid(FIELD, "the leaf's key usage does not say digitalSignature"));
    }
    if leaf.extensions().iter().any(|e| e.oid.to_id_string().starts_with(KEYLESS)) {
        let text = "a keyless (Fulcio) certificate: its root vouches for anybody, so it proves nothing here; \
                    sign with a key, or with a certificate of your own authority";
        return Err(unsupported(FIELD, text));
    }
    Ok(())
}
