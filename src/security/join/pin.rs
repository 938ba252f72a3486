//! The side of a machine that joins: it knows the authority's public key by its digest, and
//! no more. A member that another authority vouches for is left before it is told anything.

use crate::pqc::{Policy, Side};
use crate::security::tls::{self, Error};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;

/// TLS to a member that the authority of this digest vouches for.
///
/// # Errors
/// When TLS can't be set up.
pub fn client(authority: [u8; 32], policy: Policy) -> Result<Arc<ClientConfig>, Error> {
    let provider = policy.provider(Side::Group);
    let verifier = Arc::new(Pinned { authority, provider: provider.clone() });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![super::JOIN.to_vec()];
    // Nobody on the way needs to know whom we hope to meet.
    config.enable_sni = false;
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Pinned {
    authority: [u8; 32],
    provider: Arc<CryptoProvider>,
}

fn refused(text: impl std::fmt::Display) -> rustls::Error {
    rustls::Error::General(text.to_string())
}

/// Whether a certificate names some member of some group.
fn names_a_member(leaf: &webpki::EndEntityCert<'_>) -> bool {
    let is_member = |dns: &str| matches!(dns.split('.').collect::<Vec<_>>()[..], [_, "server", _, "nf"]);
    leaf.valid_dns_names().any(is_member)
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = rest.iter().find(|cert| tls::key_digest(cert) == Some(self.authority)).ok_or_else(|| {
            refused("the group at this address has another authority than the join token names: nothing was sent to it")
        })?;
        let anchor = webpki::anchor_from_trusted_cert(pinned).map_err(refused)?;
        let leaf = webpki::EndEntityCert::try_from(end_entity).map_err(refused)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        // Nobody between: what the authority lets others sign serves nobody.
        let usage = webpki::KeyUsage::server_auth();
        leaf.verify_for_usage(algorithms, &[anchor], &[], now, usage, None, None).map_err(refused)?;
        match names_a_member(&leaf) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(refused("the certificate at this address is not a member's")),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(refused("TLS 1.3 alone is spoken here"))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
