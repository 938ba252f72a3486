//! TLS to servers outside the group: TLS 1.2 and 1.3, the key exchange that `pqc` says, and the
//! authorities of the system or of one file. Members speak otherwise, see `security::tls`.

use super::Options;
use crate::pqc::Side;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where distributions keep the authorities that they trust: Debian, Red Hat, Alpine and SUSE.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

fn system() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
    named.or_else(|| SYSTEM.iter().map(PathBuf::from).find(|path| path.is_file()))
}

fn roots(path: &Path) -> Result<RootCertStore, String> {
    let wrong = |text: String| format!("{}: {text}", path.display());
    let pem = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(&pem) {
        // Bundles of the system hold some that webpki does not take; the others count.
        let _ = roots.add(cert.map_err(|e| wrong(e.to_string()))?);
    }
    if roots.is_empty() { Err(wrong("holds no certificate of an authority".into())) } else { Ok(roots) }
}

/// # Errors
/// A sentence that names the file.
pub fn client(options: &Options) -> Result<Arc<ClientConfig>, String> {
    let roots = match (&options.authorities, system()) {
        (Some(path), _) => roots(path)?,
        (None, Some(path)) => roots(&path)?,
        // Without any, https servers are refused one by one; plain ones need none.
        (None, None) => RootCertStore::empty(),
    };
    let config = ClientConfig::builder_with_provider(options.policy.provider(Side::World))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
