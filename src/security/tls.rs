//! Mutual TLS between members: the group's own authority, member certificates, and the two
//! rustls configurations made of them.
//!
//! Links between members speak TLS 1.3, with the key exchange that [`crate::pqc`] says, and nothing else.
//! It does not know who listens where.

mod files;

pub(super) use files::{move_file, put_file, read_file, write_file};

use std::io;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints, date_time_ymd,
};
use rustls::server::{ClientHello, NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SigningKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Secret;
use super::join::{self, Door};
use super::notary::{self, Notary};
use crate::pqc::{Links, Policy, Side};

/// How long an authority is valid, in years.
const AUTHORITY_YEARS: i32 = 10;
/// How long a member's certificate is valid, in years.
const MEMBER_YEARS: i32 = 2;
/// Beside `ca.key`.
const ML_DSA_FILE: &str = "ca-ml-dsa.key";

/// Why keys or certificates could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    File {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("\"{0}\" is no DNS label: 1 to 63 of a-z, 0-9 and -, not beginning or ending with -")]
    Name(String),
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("reading {what}: {detail}")]
    Pem { what: &'static str, detail: String },
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the certificate is not one for {0}; make one with `nf tls cert`")]
    WrongName(String),
    #[error(
        "the certificate is for a {found}, and this process began as a {began}; \
         make one with `nf tls cert create --role {began}`, or restart it as what it shall be"
    )]
    WrongRole { found: &'static str, began: &'static str },
    #[error("the certificate lacks the extended key usage {0}, which peers ask for; make one with `nf tls cert`")]
    Usage(&'static str),
}

/// The group's certificate authority, as PEM. The keys belong on no running member.
#[derive(Clone)]
pub struct Authority {
    /// The certificate, and after it the ML-DSA public key where there is one.
    pub cert: String,
    pub key: String,
    /// Vouches for members' notaries; an authority of earlier versions has none.
    ml_dsa: Option<Secret>,
}

/// One member's certificate and key with the authority's certificate, as PEM.
#[derive(Clone)]
pub struct Credentials {
    pub authority: String,
    pub cert: String,
    pub key: String,
}

/// What the holder of a certificate may be in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A member: it serves, and speaks Raft.
    Server,
    /// A worker, or who plays workers: it calls members and has no say in the group.
    Client,
}

impl Role {
    fn label(self) -> &'static str {
        match self {
            Role::Server => "server",
            Role::Client => "client",
        }
    }

    /// As `nf tls cert create --role` has it.
    fn option(self) -> &'static str {
        match self {
            Role::Server => "server",
            Role::Client => "node",
        }
    }

    /// What peers ask of the holder's certificate: members also call one another.
    fn usages(self) -> &'static [(&'static str, webpki::KeyUsage)] {
        const CALLS: (&str, webpki::KeyUsage) = ("clientAuth", webpki::KeyUsage::client_auth());
        const SERVES: (&str, webpki::KeyUsage) = ("serverAuth", webpki::KeyUsage::server_auth());
        match self {
            Role::Server => &[CALLS, SERVES],
            Role::Client => &[CALLS],
        }
    }
}

/// The name a member's certificate carries.
///
/// # Errors
/// When `cluster` or `name` is no DNS label.
pub fn dns_name(cluster: &str, name: &str) -> Result<String, Error> {
    name_of(cluster, name, Role::Server)
}

/// The name that a certificate carries.
///
/// # Errors
/// When `cluster` or `name` is no DNS label.
pub fn name_of(cluster: &str, name: &str, role: Role) -> Result<String, Error> {
    for label in [cluster, name] {
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let edges = label.starts_with('-') || label.ends_with('-');
        if label.is_empty() || label.len() > 63 || edges || !label.chars().all(fine) {
            return Err(Error::Name(label.to_owned()));
        }
    }
    Ok(format!("{name}.{}.{cluster}.nf", role.label()))
}

/// Who a certificate of the cluster says its holder is.
pub fn holder(cert: &CertificateDer<'_>, cluster: &str) -> Option<(String, Role)> {
    let parsed = webpki::EndEntityCert::try_from(cert).ok()?;
    let names: Vec<&str> = parsed.valid_dns_names().collect();
    [Role::Server, Role::Client].into_iter().find_map(|role| {
        let suffix = format!(".{}.{cluster}.nf", role.label());
        names.iter().find_map(|dns| Some((dns.strip_suffix(suffix.as_str())?.to_owned(), role)))
    })
}

/// Of today, in UTC.
fn year_and_month() -> (i32, u8) {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    (i32::from(today.year()), today.month().unsigned_abs())
}

fn validity(params: &mut CertificateParams, years: i32) {
    let (year, month) = year_and_month();
    // From the first of the month, which also covers members whose clock is behind; the days are
    // few enough to exist in each month.
    params.not_before = date_time_ymd(year, month, 1);
    params.not_after = date_time_ymd(year + years, month, 28);
}

impl Authority {
    /// A new authority for a cluster.
    pub fn create(cluster: &str) -> Result<Self, Error> {
        dns_name(cluster, "a")?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        let name = format!("Neural Fabric cluster {cluster}");
        params.distinguished_name.push(DnType::CommonName, name);
        // Below it are members, and the keys by which members certify workers.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, AUTHORITY_YEARS);
        let made = Self { cert: params.self_signed(&key)?.pem(), key: key.serialize_pem(), ml_dsa: None };
        made.with_ml_dsa()
    }

    fn with_ml_dsa(mut self) -> Result<Self, Error> {
        let (key, public) = notary::authority()?;
        self.cert.push_str(&public);
        self.ml_dsa = Some(key);
        Ok(self)
    }

    /// With a key that vouches for notaries: an authority of earlier versions has none, and is given one in `dir`.
    ///
    /// # Errors
    /// With the file, or when the system has no randomness.
    pub fn completed(self, dir: &Path) -> Result<Self, Error> {
        if self.ml_dsa.is_some() {
            return Ok(self);
        }
        let made = self.with_ml_dsa()?;
        // The public half first: an anchor without its key does no harm.
        put_file(&dir.join("ca.pem"), &made.cert, 0o644)?;
        if let Some(key) = &made.ml_dsa {
            put_file(&dir.join(ML_DSA_FILE), key.reveal(), 0o600)?;
        }
        Ok(made)
    }

    /// A key by which member `name` signs ends of the audit trail beside its certificate's; None without a key that vouches for it.
    ///
    /// # Errors
    /// When `cluster` or `name` is no DNS label, or the authority's key is of no use.
    pub fn notary(&self, cluster: &str, name: &str) -> Result<Option<Notary>, Error> {
        let (year, month) = year_and_month();
        let until = format!("{:04}-{month:02}-28T00:00:00Z", year + MEMBER_YEARS);
        self.ml_dsa.as_ref().map(|above| Notary::certified(above, cluster, name, until)).transpose()
    }

    /// A key by which a member certifies workers of `cluster`, and nobody else.
    pub fn issuer(&self, cluster: &str) -> Result<join::Issuer, Error> {
        let workers = name_of(cluster, "a", Role::Client)?.split_off("a.".len());
        let above = Issuer::from_ca_cert_pem(&self.cert, KeyPair::from_pem(&self.key)?)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("Neural Fabric workers of {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let permitted_subtrees = vec![GeneralSubtree::DnsName(workers)];
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
        validity(&mut params, MEMBER_YEARS);
        Ok(join::Issuer::new(params.signed_by(&key, &above)?.pem(), key.serialize_pem()))
    }

    /// A certificate for member `name` of `cluster`.
    pub fn issue(&self, cluster: &str, name: &str) -> Result<Credentials, Error> {
        self.issue_as(cluster, name, Role::Server)
    }

    /// A certificate for `name` of `cluster` in that role.
    pub fn issue_as(&self, cluster: &str, name: &str, role: Role) -> Result<Credentials, Error> {
        let dns = name_of(cluster, name, role)?;
        let issuer = Issuer::from_ca_cert_pem(&self.cert, KeyPair::from_pem(&self.key)?)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![dns.clone()])?;
        params.distinguished_name.push(DnType::CommonName, dns);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match role {
            Role::Server => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            Role::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        validity(&mut params, MEMBER_YEARS);
        Ok(Credentials {
            authority: self.cert.clone(),
            cert: params.signed_by(&key, &issuer)?.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Writes `ca.pem`, and `ca.key` and `ca-ml-dsa.key` (readable by the owner alone).
    pub fn write(&self, dir: &Path) -> Result<(), Error> {
        if let Some(key) = &self.ml_dsa {
            write_file(&dir.join(ML_DSA_FILE), key.reveal(), 0o600)?;
        }
        write_file(&dir.join("ca.pem"), &self.cert, 0o644)?;
        write_file(&dir.join("ca.key"), &self.key, 0o600)
    }

    /// Reads what [`Authority::write`] wrote.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(ML_DSA_FILE);
        let ml_dsa = path.exists().then(|| read_file(&path).map(Secret::new)).transpose()?;
        Ok(Self { cert: read_file(&dir.join("ca.pem"))?, key: read_file(&dir.join("ca.key"))?, ml_dsa })
    }
}

impl Credentials {
    /// Writes `ca.pem`, `member.pem` and `member.key` (readable by the owner alone).
    pub fn write(&self, dir: &Path) -> Result<(), Error> {
        self.write_certificates(dir)?;
        write_file(&dir.join("member.key"), &self.key, 0o600)
    }

    /// All but the key.
    ///
    /// # Errors
    /// With the file.
    pub fn write_certificates(&self, dir: &Path) -> Result<(), Error> {
        write_file(&dir.join("ca.pem"), &self.authority, 0o644)?;
        write_file(&dir.join("member.pem"), &self.cert, 0o644)
    }

    /// Reads what [`Credentials::write`] wrote.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        Ok(Self {
            authority: read_file(&dir.join("ca.pem"))?,
            cert: read_file(&dir.join("member.pem"))?,
            key: read_file(&dir.join("member.key"))?,
        })
    }
}

/// What a member needs to speak with its peers, ready for use. Clones share it, so that
/// keys that are replaced count for each connection that is made afterwards.
#[derive(Clone)]
pub struct PeerTls {
    pub cluster: String,
    pub name: String,
    policy: Policy,
    /// Its connections inside the group.
    links: Links,
    loaded: Arc<ArcSwap<Loaded>>,
}

/// One set of keys.
struct Loaded {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    /// For those who join, and for workers that renew: each at a door of its own.
    join: Arc<ServerConfig>,
    renew: Arc<ServerConfig>,
    renewing: Arc<ClientConfig>,
    /// Digest of the public key of the authority that signed the certificate itself.
    authority: Option<[u8; 32]>,
    role: Role,
    cert: CertificateDer<'static>,
    key: Arc<dyn SigningKey>,
}

fn pem_error(what: &'static str) -> impl Fn(rustls_pki_types::pem::Error) -> Error {
    move |e| Error::Pem { what, detail: e.to_string() }
}

impl Loaded {
    /// Builds both configurations and checks that the certificate is this process', in whichever role.
    fn new(credentials: &Credentials, cluster: &str, name: &str, policy: Policy) -> Result<Self, Error> {
        let provider = policy.provider(Side::Group);
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(credentials.authority.as_bytes()) {
            roots.add(cert.map_err(pem_error("the authority's certificate"))?)?;
        }
        let roots = Arc::new(roots);
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(credentials.cert.as_bytes()).collect();
        let chain = chain.map_err(pem_error("the member's certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(credentials.key.as_bytes());
        let key = key.map_err(pem_error("the member's key"))?;
        let (server, client) = (name_of(cluster, name, Role::Server)?, name_of(cluster, name, Role::Client)?);
        let (cert, role) = match chain.first() {
            Some(cert) if certifies(cert, &server) => (cert.clone(), Role::Server),
            Some(cert) if certifies(cert, &client) => (cert.clone(), Role::Client),
            _ => return Err(Error::WrongName(server)),
        };
        let versions = &[&rustls::version::TLS13];
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        let signing = provider.key_provider.load_private_key(key.clone_key())?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        // Nobody's certificate is judged again where a session is resumed, so none is.
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        let mut renew = server.clone();
        renew.alpn_protocols = vec![join::RENEW.to_vec()];
        let authorities = certificates(&credentials.authority, "the authorities")?;
        // Who joins knows an authority by its digest alone, so it is shown.
        let mut stranger = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_no_client_auth()
            .with_single_cert([&chain[..], &authorities[..]].concat(), key.clone_key())?;
        stranger.alpn_protocols = vec![join::JOIN.to_vec()];
        stranger.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        let mut renewing = client.clone();
        renewing.alpn_protocols = vec![join::RENEW.to_vec()];
        Ok(Self {
            authority: authorities.iter().find(|authority| signed(authority, &cert)).and_then(key_digest),
            server: Arc::new(server),
            client: Arc::new(client),
            join: Arc::new(stranger),
            renew: Arc::new(renew),
            renewing: Arc::new(renewing),
            role,
            cert,
            key: signing,
        })
    }
}

impl PeerTls {
    /// In mode hybrid.
    ///
    /// # Errors
    /// What of the credentials cannot be used.
    pub fn new(credentials: &Credentials, cluster: &str, name: &str) -> Result<Self, Error> {
        Self::in_mode(credentials, cluster, name, Policy::default())
    }

    /// # Errors
    /// What of the credentials cannot be used.
    pub fn in_mode(credentials: &Credentials, cluster: &str, name: &str, policy: Policy) -> Result<Self, Error> {
        let loaded = Arc::new(ArcSwap::from_pointee(Loaded::new(credentials, cluster, name, policy)?));
        Ok(Self { cluster: cluster.to_owned(), name: name.to_owned(), policy, links: Links::default(), loaded })
    }

    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Its connections inside the group.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Takes other credentials for every connection from now on; those that are open stay.
    ///
    /// # Errors
    /// What of them cannot be used, also that their certificate does not count at `now` under
    /// their own authorities, or for what this process is: then the old ones stay.
    pub fn replace(&self, credentials: &Credentials, now: UnixTime) -> Result<(), Error> {
        let loaded = Loaded::new(credentials, &self.cluster, &self.name, self.policy)?;
        let (found, began) = (loaded.role, self.loaded.load().role);
        if found != began {
            return Err(Error::WrongRole { found: found.option(), began: began.option() });
        }
        counts(credentials, began, now)?;
        self.loaded.store(Arc::new(loaded));
        Ok(())
    }

    /// Whether the certificate that counts here, which is this one, still does.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn lasts(&self, credentials: &Credentials, now: UnixTime) -> Result<(), Error> {
        counts(credentials, self.loaded.load().role, now)
    }

    pub fn server(&self) -> Arc<ServerConfig> {
        self.loaded.load().server.clone()
    }

    pub fn client(&self) -> Arc<ClientConfig> {
        self.loaded.load().client.clone()
    }

    /// For a client that has said so much, and at which door it is.
    pub fn greet(&self, hello: &ClientHello<'_>) -> (Door, Arc<ServerConfig>) {
        let loaded = self.loaded.load();
        let door = Door::of(hello.alpn().into_iter().flatten());
        let config = match door {
            Door::Peer => &loaded.server,
            Door::Join => &loaded.join,
            Door::Renew => &loaded.renew,
        };
        (door, config.clone())
    }

    /// For a worker that has its certificate renewed.
    pub fn renewing(&self) -> Arc<ClientConfig> {
        self.loaded.load().renewing.clone()
    }

    /// This process' certificate.
    pub fn cert(&self) -> CertificateDer<'static> {
        self.loaded.load().cert.clone()
    }

    /// By which digest those who join know this process' authority.
    pub fn authority(&self) -> Option<[u8; 32]> {
        self.loaded.load().authority
    }

    /// Signs a text with this process' key, by ECDSA P-256 and SHA-256: its certificate and the signature.
    /// None for keys of another kind.
    pub fn sign(&self, text: &[u8]) -> Option<(CertificateDer<'static>, Vec<u8>)> {
        let loaded = self.loaded.load();
        let signer = loaded.key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256])?;
        Some((loaded.cert.clone(), signer.sign(text).ok()?))
    }

    /// The name to expect in the certificate of peer `name`.
    pub fn server_name(&self, name: &str) -> Result<ServerName<'static>, Error> {
        let dns = dns_name(&self.cluster, name)?;
        ServerName::try_from(dns.clone()).map_err(|_| Error::Name(dns))
    }
}

/// Whether the certificate chains to the authorities beside it, is valid at `now` and for what a `role`
/// does with it: peers will ask the same.
pub(super) fn counts(credentials: &Credentials, role: Role, now: UnixTime) -> Result<(), Error> {
    let chain = certificates(&credentials.cert, "the member's certificate")?;
    let (Some(leaf), authorities) = (chain.first(), certificates(&credentials.authority, "the authorities")?) else {
        return Err(Error::Pem { what: "the member's certificate", detail: "there is none".to_owned() });
    };
    let bad = |e: webpki::Error| Error::Pem { what: "the member's certificate", detail: e.to_string() };
    let anchors: Result<Vec<_>, _> = authorities.iter().map(|cert| webpki::anchor_from_trusted_cert(cert)).collect();
    let (anchors, algorithms) =
        (anchors.map_err(bad)?, Policy::default().provider(Side::Group).signature_verification_algorithms.all);
    let leaf = webpki::EndEntityCert::try_from(leaf).map_err(bad)?;
    for (name, usage) in role.usages() {
        match leaf.verify_for_usage(algorithms, &anchors, &chain[1..], now, *usage, None, None) {
            Ok(_) => {}
            Err(webpki::Error::RequiredEkuNotFoundContext(_)) => return Err(Error::Usage(name)),
            Err(error) => return Err(bad(error)),
        }
    }
    Ok(())
}

fn signed(authority: &CertificateDer<'_>, cert: &CertificateDer<'_>) -> bool {
    let read = |der| X509Certificate::from_der(der).ok().map(|(_, read)| read);
    let (Some(authority), Some(cert)) = (read(authority), read(cert)) else { return false };
    cert.issuer() == authority.subject() && cert.verify_signature(Some(authority.public_key())).is_ok()
}

/// SHA-256 of a certificate's public key (SubjectPublicKeyInfo).
pub fn key_digest(cert: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let (_, read) = X509Certificate::from_der(cert).ok()?;
    Some(Sha256::digest(read.public_key().raw).into())
}

/// All certificates of a PEM text.
pub fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    read.map_err(pem_error(what))
}

/// Whether a certificate is valid for a DNS name. Its chain was checked in the handshake.
pub fn certifies(cert: &CertificateDer<'_>, dns: &str) -> bool {
    let Ok(name) = ServerName::try_from(dns) else {
        return false;
    };
    webpki::EndEntityCert::try_from(cert).is_ok_and(|cert| cert.verify_is_valid_for_subject_name(&name).is_ok())
}

#[cfg(test)]
mod tests;
