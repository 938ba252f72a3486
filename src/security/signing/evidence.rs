//! What signature files look like: recognised by their own shape, never by trial.
//! A file has one shape or is refused; nothing inside it is trusted yet, and no
//! payload is parsed. It does not know keys or artefacts.

use super::content::Hash;
use super::encoding::{base64, base64_either, base64_url};
use super::refusal::{invalid, shown, unsupported};
use super::{MAX_EVIDENCE, json};
use nf_core::reason::{Reason, Refusal};
use serde::Deserialize;
use serde_json::Value;

const MEDIA_TYPES: [(&str, Format); 4] = [
    ("application/vnd.dev.sigstore.bundle+json;version=0.1", Format::Bundle01),
    ("application/vnd.dev.sigstore.bundle+json;version=0.2", Format::Bundle02),
    ("application/vnd.dev.sigstore.bundle.v0.3+json", Format::Bundle03),
    // How 0.3 was first written.
    ("application/vnd.dev.sigstore.bundle+json;version=0.3", Format::Bundle03),
];
const SHAPES: &str = "supported are a cosign .sig, a cosign bundle, a Sigstore bundle 0.1 to 0.3, a DSSE envelope, \
                      a vault:vN: signature, and a raw ML-DSA-65 or -87 signature";
/// The most signatures of one envelope.
const MAX_SIGNATURES: usize = 8;
/// The most certificates that are read from one bundle.
const MAX_CERTIFICATES: usize = 16;

/// The shape of a signature file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Detached,
    Legacy,
    Bundle01,
    Bundle02,
    Bundle03,
    Dsse,
    Vault,
    Raw,
}

impl Format {
    pub fn name(self) -> &'static str {
        match self {
            Format::Detached => "cosign detached signature",
            Format::Legacy => "cosign bundle (legacy)",
            Format::Bundle01 => "Sigstore bundle 0.1",
            Format::Bundle02 => "Sigstore bundle 0.2",
            Format::Bundle03 => "Sigstore bundle 0.3",
            Format::Dsse => "DSSE envelope",
            Format::Vault => "Vault transit signature",
            Format::Raw => "raw ML-DSA signature",
        }
    }
}

/// Who a bundle says has signed it: a hint to choose a configured key, or a chain to judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signer {
    Unnamed,
    Hint(String),
    Chain(Vec<Vec<u8>>),
}

/// A DSSE envelope with its decoded payload, which nobody has parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub payload: Vec<u8>,
    pub payload_type: String,
    /// keyid ("" when absent) and signature.
    pub signatures: Vec<(String, Vec<u8>)>,
}

/// One signature file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Over the artefact's bytes, by any configured key.
    Blob { format: Format, signature: Vec<u8> },
    /// Over the artefact's bytes, with the digest that the signer saw.
    Message { format: Format, signer: Signer, hash: Hash, digest: Vec<u8>, signature: Vec<u8> },
    /// Over a payload that says what the artefact is; the signer of a bundle is named outside the envelope.
    Envelope { format: Format, signer: Option<Signer>, envelope: Envelope },
    Vault {
        version: u64,
        signature: Vec<u8>,
        /// As Vault wrote it, to be asked about.
        encoded: String,
    },
    /// ML-DSA, as FIPS 204 writes it.
    Raw { signature: Vec<u8> },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Legacy {
    #[serde(rename = "base64Signature")]
    signature: String,
    #[serde(default)]
    cert: Option<String>,
    /// Transparency is not looked at: whoever trusts an entry must check all of it.
    #[serde(default, rename = "rekorBundle")]
    _rekor: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Bundle {
    #[serde(rename = "mediaType")]
    _media_type: String,
    verification_material: Material,
    #[serde(default)]
    message_signature: Option<MessageSignature>,
    #[serde(default)]
    dsse_envelope: Option<Dsse>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Material {
    #[serde(default)]
    public_key: Option<KeyHint>,
    #[serde(default)]
    certificate: Option<Certificate>,
    #[serde(default)]
    x509_certificate_chain: Option<Chain>,
    #[serde(default, rename = "tlogEntries")]
    _tlog: Option<Vec<Value>>,
    #[serde(default, rename = "timestampVerificationData")]
    _timestamps: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KeyHint {
    #[serde(default)]
    hint: String,
    /// Early Model Signing put the key itself here. A key inside a bundle is never trusted.
    #[serde(default, rename = "rawBytes")]
    _raw: Option<String>,
    #[serde(default, rename = "keyDetails")]
    _details: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Certificate {
    raw_bytes: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Chain {
    certificates: Vec<Certificate>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MessageSignature {
    message_digest: MessageDigest,
    signature: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageDigest {
    algorithm: String,
    digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Dsse {
    payload: String,
    payload_type: String,
    signatures: Vec<DsseSignature>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DsseSignature {
    #[serde(default)]
    keyid: Option<String>,
    sig: String,
}

impl Evidence {
    /// Recognises a signature file.
    ///
    /// # Errors
    /// `SignatureRequired` for an empty file, `SignatureUnsupported` for a shape
    /// that is not known, `SignatureInvalid` for one that breaks its own rules.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() > MAX_EVIDENCE {
            return Err(invalid("signature", format!("longer than {MAX_EVIDENCE} bytes; that is no signature")));
        }
        let Ok(text) = std::str::from_utf8(bytes) else { return raw(bytes) };
        match text.trim_start().chars().next() {
            None => Err(Refusal::field(Reason::SignatureRequired, "signature", "empty; sign the artefact first")),
            Some('{') => structured(bytes),
            Some(_) if text.starts_with("vault:") => vault(one_line(text)),
            Some('-') => Err(unsupported("signature", format!("PEM is no signature; {SHAPES}"))),
            Some(_) => detached(one_line(text)),
        }
    }
}

/// cosign and echo end a line; one line feed is theirs, anything else is not.
fn one_line(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

fn raw(bytes: &[u8]) -> Result<Evidence, Refusal> {
    match bytes.len() {
        3309 | 4627 => Ok(Evidence::Raw { signature: bytes.to_vec() }),
        len => Err(unsupported("signature", format!("{len} bytes of no known shape; {SHAPES}"))),
    }
}

fn detached(text: &str) -> Result<Evidence, Refusal> {
    let signature = base64(text).ok_or_else(|| {
        unsupported("signature", format!("the text is neither JSON nor one line of base64; {SHAPES}"))
    })?;
    Ok(Evidence::Blob { format: Format::Detached, signature })
}

fn vault(text: &str) -> Result<Evidence, Refusal> {
    let wrong = |text: &str| invalid("signature", format!("{text}; Vault writes vault:v<version>:<base64>"));
    let rest = text.strip_prefix("vault:v").ok_or_else(|| wrong("no version"))?;
    let (version, encoded) = rest.split_once(':').ok_or_else(|| wrong("no second colon"))?;
    let canonical = |n: &u64| n.to_string() == version && *n > 0;
    let number = version.parse().ok().filter(canonical).ok_or_else(|| wrong("the version is no number from 1"))?;
    // The JWS form is base64url without padding; each text has one of the two spellings.
    let signature = base64(encoded).or_else(|| base64_url(encoded).filter(|_| !encoded.contains('=')));
    let signature = signature.ok_or_else(|| wrong("not base64"))?;
    Ok(Evidence::Vault { version: number, signature, encoded: encoded.to_owned() })
}

fn structured(bytes: &[u8]) -> Result<Evidence, Refusal> {
    let value = json::parse(bytes).map_err(|e| invalid("signature", format!("broken JSON: {e}")))?;
    let has = |name: &str| value.get(name).is_some();
    if has("mediaType") {
        return bundle(value);
    }
    if has("base64Signature") {
        return legacy(value);
    }
    if has("payloadType") {
        let dsse = json::read::<Dsse>(value).map_err(|e| invalid("signature", format!("DSSE envelope: {e}")))?;
        return Ok(Evidence::Envelope { format: Format::Dsse, signer: None, envelope: envelope(dsse)? });
    }
    if let Some(signature) = value.pointer("/data/signature").and_then(Value::as_str) {
        return vault(signature);
    }
    Err(unsupported("signature", format!("JSON of no known shape; {SHAPES}")))
}

fn legacy(value: Value) -> Result<Evidence, Refusal> {
    let legacy: Legacy = json::read(value).map_err(|e| invalid("signature", format!("cosign bundle: {e}")))?;
    if legacy.cert.is_some_and(|cert| !cert.is_empty()) {
        let text = "the bundle brings a key or certificate of its own, which is never trusted; \
                    sign with a key (cosign sign-blob --key), which leaves it empty";
        return Err(invalid("cert", text));
    }
    let signature = base64(&legacy.signature).ok_or_else(|| invalid("base64Signature", "not base64"))?;
    Ok(Evidence::Blob { format: Format::Legacy, signature })
}

fn bundle(value: Value) -> Result<Evidence, Refusal> {
    let media_type = value.get("mediaType").and_then(Value::as_str).unwrap_or_default().to_owned();
    let Some((_, format)) = MEDIA_TYPES.into_iter().find(|(name, _)| *name == media_type) else {
        let known: Vec<&str> = MEDIA_TYPES.iter().map(|(name, _)| *name).collect();
        return Err(unsupported("mediaType", format!("{}; supported: {}", shown(&media_type), known.join(", "))));
    };
    let bundle: Bundle = json::read(value).map_err(|e| invalid("signature", format!("{}: {e}", format.name())))?;
    let signer = signer(bundle.verification_material)?;
    match (bundle.message_signature, bundle.dsse_envelope) {
        (Some(message), None) => message_signature(format, signer, &message),
        (None, Some(dsse)) => {
            let envelope = envelope(dsse)?;
            if envelope.signatures.len() != 1 {
                let text = format!("{} signatures; a bundle has one", envelope.signatures.len());
                return Err(invalid("dsseEnvelope.signatures", text));
            }
            Ok(Evidence::Envelope { format, signer: Some(signer), envelope })
        }
        _ => Err(invalid("signature", "a bundle holds either messageSignature or dsseEnvelope, and one of them")),
    }
}

fn signer(material: Material) -> Result<Signer, Refusal> {
    let field = "verificationMaterial";
    match (material.public_key, material.certificate, material.x509_certificate_chain) {
        (Some(key), None, None) if key.hint.is_empty() => Ok(Signer::Unnamed),
        (Some(key), None, None) => Ok(Signer::Hint(key.hint)),
        (None, Some(leaf), None) => chain(vec![leaf]),
        (None, None, Some(all)) => chain(all.certificates),
        _ => Err(invalid(field, "one of publicKey, certificate and x509CertificateChain is wanted")),
    }
}

fn chain(certificates: Vec<Certificate>) -> Result<Signer, Refusal> {
    let field = "verificationMaterial.certificate";
    if certificates.len() > MAX_CERTIFICATES {
        return Err(invalid(field, format!("more than {MAX_CERTIFICATES} certificates")));
    }
    let ders: Option<Vec<_>> = certificates.iter().map(|c| base64_either(&c.raw_bytes)).collect();
    Ok(Signer::Chain(ders.ok_or_else(|| invalid(field, "rawBytes is not base64"))?))
}

fn message_signature(format: Format, signer: Signer, message: &MessageSignature) -> Result<Evidence, Refusal> {
    let field = "messageSignature.messageDigest";
    let hash = match message.message_digest.algorithm.as_str() {
        "SHA2_256" => Hash::Sha256,
        "SHA2_384" => Hash::Sha384,
        "SHA2_512" => Hash::Sha512,
        other => {
            let text = format!("{}; supported: SHA2_256, SHA2_384, SHA2_512", shown(other));
            return Err(unsupported(format!("{field}.algorithm"), text));
        }
    };
    let digest = base64_either(&message.message_digest.digest).ok_or_else(|| invalid(field, "not base64"))?;
    let signature =
        base64_either(&message.signature).ok_or_else(|| invalid("messageSignature.signature", "not base64"))?;
    Ok(Evidence::Message { format, signer, hash, digest, signature })
}

fn envelope(dsse: Dsse) -> Result<Envelope, Refusal> {
    let payload = base64_either(&dsse.payload).ok_or_else(|| invalid("payload", "not base64"))?;
    if dsse.signatures.is_empty() || dsse.signatures.len() > MAX_SIGNATURES {
        let text = format!("{} of them; 1 to {MAX_SIGNATURES} are wanted", dsse.signatures.len());
        return Err(invalid("signatures", text));
    }
    let mut signatures = Vec::with_capacity(dsse.signatures.len());
    for (i, signature) in dsse.signatures.into_iter().enumerate() {
        let bytes = base64_either(&signature.sig);
        let bytes = bytes.ok_or_else(|| invalid(format!("signatures[{i}].sig"), "not base64"))?;
        signatures.push((signature.keyid.unwrap_or_default(), bytes));
    }
    Ok(Envelope { payload, payload_type: dsse.payload_type, signatures })
}
