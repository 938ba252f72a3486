//! A request for a certificate (PKCS #10) from both sides: whoever makes it keeps its private
//! key; whoever reads it learns a public key and that the other one holds its private half.
//! The names that a request asks for count for nothing.

use crate::security::tls::{self, Error};
use rcgen::{CertificateParams, CertificateSigningRequestParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rcgen::{PublicKey, PublicKeyData};
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::path::Path;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Longer texts are no request.
const MAX_TEXT: usize = 8 << 10;
/// An uncompressed point of P-256.
const POINT: usize = 65;
/// The key of who has asked and may not have heard the answer.
const JOINING: &str = "joining.key";

/// Who wants a certificate.
pub struct Applicant(KeyPair);

impl Applicant {
    /// With a new key.
    ///
    /// # Errors
    /// When none can be made.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    /// With the key that it has.
    ///
    /// # Errors
    /// When that is none of ours.
    pub fn with_key(pem: &str) -> Result<Self, Error> {
        Ok(Self(KeyPair::from_pem_and_sign_algo(pem, &PKCS_ECDSA_P256_SHA256)?))
    }

    /// With the key that an earlier try left in `dir`, or a new one that is left there: a token is for
    /// one key, so whoever didn't hear the answer has to ask with the same.
    ///
    /// # Errors
    /// With the file.
    pub fn kept(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(JOINING);
        if path.exists() {
            return Self::with_key(&tls::read_file(&path)?);
        }
        let made = Self::generate()?;
        tls::put_file(&path, &made.key(), 0o600)?;
        Ok(made)
    }

    /// Makes the kept key the process' own. The last step: its certificate lies there already.
    ///
    /// # Errors
    /// With the file.
    pub fn settle(dir: &Path) -> Result<(), Error> {
        tls::move_file(&dir.join(JOINING), &dir.join("member.key"))
    }

    /// The request, as PEM.
    ///
    /// # Errors
    /// When it can't be signed.
    pub fn request(&self) -> Result<String, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&self.0)?.pem()?)
    }

    /// The private key, as PEM: for a file of the applicant's own, and for nobody else.
    pub fn key(&self) -> String {
        self.0.serialize_pem()
    }
}

/// What a request says, checked.
#[derive(Debug)]
pub struct Wish(PublicKey);

impl Wish {
    /// # Errors
    /// What is wrong with it.
    pub fn read(pem: &str) -> Result<Self, String> {
        if pem.len() > MAX_TEXT {
            return Err(format!("at most {MAX_TEXT} bytes"));
        }
        let read = CertificateSigningRequestParams::from_pem(pem).map_err(|e| format!("no request: {e}"))?;
        let key = read.public_key;
        // The kind is told by the signature: the length of the key says whether it is so.
        let ours = *key.algorithm() == PKCS_ECDSA_P256_SHA256 && key.der_bytes().len() == POINT;
        if ours { Ok(Self(key)) } else { Err("the key must be ECDSA P-256".into()) }
    }

    pub(super) fn key(&self) -> &PublicKey {
        &self.0
    }

    /// Whether it is for the key that a certificate is for.
    pub fn is_for(&self, cert: &CertificateDer<'_>) -> bool {
        let read = X509Certificate::from_der(cert);
        read.is_ok_and(|(_, read)| *read.public_key().subject_public_key.data == *self.0.der_bytes())
    }

    /// SHA-256 of the public key.
    pub fn key_digest(&self) -> [u8; 32] {
        Sha256::digest(self.0.der_bytes()).into()
    }
}
