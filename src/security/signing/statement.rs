//! What a signed payload says: an in-toto statement with one of the predicates
//! that count as permission to run a model. It is parsed only after its signature
//! was verified. It does not know keys.

use super::artefact::{self, Digest, Listed};
use super::encoding::{sha256_hex, to_hex};
use super::json;
use super::refusal::{invalid, shown, unsupported};
use nf_core::floor;
use nf_core::id::{ModelId, TenantId, VersionId};
use nf_core::reason::Refusal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The payload type of in-toto statements in DSSE.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Our own predicate: this tenant may run exactly these files as this version of this model, as one manifest says.
pub const DEPLOY: &str = "nf/deploy/v1";
/// OpenSSF Model Signing v1.
pub const MODEL_SIGNING: &str = "https://model_signing/signature/v1.0";
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// What cosign itself attaches to a blob or an image that somebody signs; other
/// attestations (a scan, a bill of materials) say something *about* it and permit nothing.
const COSIGN: [&str; 2] = ["https://cosign.sigstore.dev/attestation/v1", "https://sigstore.dev/cosign/sign/v1"];
const STATEMENT_01: &str = "https://in-toto.io/Statement/v0.1";
const MAX_SUBJECTS: usize = 1000;

#[derive(Deserialize)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    #[serde(default)]
    predicate: Value,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(default)]
    name: String,
    digest: BTreeMap<String, String>,
}

/// What a deploy statement permits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deploy {
    pub tenant_id: TenantId,
    pub model_id: ModelId,
    pub version: VersionId,
    /// What the files are, e.g. onnx.
    pub format: String,
    /// SHA-256 of the version's manifest, which says what program runs, how, and on what kinds of data. The
    /// signature lies outside of it. None: signed before it was published; members refuse that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_sha256: Option<Digest>,
    /// The oldest version that may run from now on, so that a signed old one cannot come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_version: Option<VersionId>,
    /// SHA-256 over the files' digests, see [`artefact::root`].
    pub files_root: String,
    /// Sorted by name.
    pub files: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelSigning {
    serialization: Serialization,
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Serialization {
    method: String,
    hash_type: String,
    #[serde(default)]
    allow_symlinks: bool,
    /// What the signer's tool left out. It is not left out here: what is not signed is refused.
    #[serde(default, rename = "ignore_paths")]
    _ignored: Vec<String>,
    /// Only the sharded method has it.
    #[serde(default, rename = "shard_size")]
    _shard_size: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resource {
    name: String,
    algorithm: String,
    digest: String,
}

/// A statement that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    Deploy(Deploy),
    /// Model Signing: the directory's name at signing, and its files.
    Model {
        name: String,
        files: Vec<Listed>,
    },
    /// cosign: the digests of the artefacts that it is for.
    Blob {
        predicate: String,
        digests: Vec<[u8; 32]>,
    },
}

/// Reads a verified payload.
///
/// # Errors
/// `SignatureUnsupported` for predicates and serialisations that are not known,
/// `SignatureInvalid` for a statement that breaks its own rules.
pub fn read(payload_type: &str, payload: &[u8]) -> Result<Meaning, Refusal> {
    if payload_type != PAYLOAD_TYPE {
        return Err(unsupported("payloadType", format!("{}; supported: {PAYLOAD_TYPE}", shown(payload_type))));
    }
    let broken = |e: String| invalid("payload", format!("no in-toto statement: {e}"));
    let statement: Statement = json::parse(payload).and_then(json::read).map_err(broken)?;
    if statement.subject.is_empty() || statement.subject.len() > MAX_SUBJECTS {
        return Err(invalid("payload.subject", format!("{} subjects", statement.subject.len())));
    }
    let old = statement.kind == STATEMENT_01 && COSIGN.contains(&statement.predicate_type.as_str());
    if statement.kind != STATEMENT && !old {
        return Err(unsupported("payload._type", format!("{}; supported: {STATEMENT}", shown(&statement.kind))));
    }
    match statement.predicate_type.as_str() {
        DEPLOY => deploy(statement),
        MODEL_SIGNING => model_signing(statement),
        other if COSIGN.contains(&other) => blob(statement),
        other => {
            let known = format!("supported: {DEPLOY}, {MODEL_SIGNING}, {}", COSIGN.join(", "));
            Err(unsupported("payload.predicateType", format!("{} permits no deploy; {known}", shown(other))))
        }
    }
}

/// The one subject with its one SHA-256.
fn only_subject(statement: &Statement) -> Result<(&str, [u8; 32]), Refusal> {
    let [subject] = &statement.subject[..] else {
        return Err(invalid("payload.subject", format!("{} subjects; one is wanted", statement.subject.len())));
    };
    let digest = subject.digest.get("sha256").filter(|_| subject.digest.len() == 1);
    let digest = digest.and_then(|d| sha256_hex(d));
    let digest = digest.ok_or_else(|| unsupported("payload.subject[0].digest", "one sha256 in hex is supported"))?;
    Ok((&subject.name, digest))
}

fn deploy(statement: Statement) -> Result<Meaning, Refusal> {
    let (name, digest) = only_subject(&statement)?;
    let name = name.to_owned();
    let deploy: Deploy = json::read(statement.predicate).map_err(|e| invalid("payload.predicate", e))?;
    if name != deploy.model_id.as_str() {
        return Err(invalid("payload.subject[0].name", format!("{} is not the predicate's model_id", shown(&name))));
    }
    if let Some(min) = deploy.min_version.as_ref().filter(|min| floor::order(&deploy.version, min).is_lt()) {
        let text = format!("{min} is newer than {}, which it would let nobody run", deploy.version);
        return Err(invalid("payload.predicate.min_version", text));
    }
    artefact::check_list(&deploy.files, "payload.predicate.files")?;
    let root = artefact::root(&deploy.files);
    if digest != root || sha256_hex(&deploy.files_root) != Some(root) {
        return Err(invalid("payload.predicate.files_root", "is not the digest of the files that it lists"));
    }
    Ok(Meaning::Deploy(deploy))
}

fn model_signing(statement: Statement) -> Result<Meaning, Refusal> {
    let (name, digest) = only_subject(&statement)?;
    let name = name.to_owned();
    let field = "payload.predicate";
    // Sharded resources have another shape; say what they are before saying that they do not fit.
    let method = statement.predicate.pointer("/serialization/method").and_then(Value::as_str).unwrap_or_default();
    let method_field = format!("{field}.serialization.method");
    if method != "files" {
        return Err(unsupported(method_field, format!("{}; supported: \"files\"", shown(method))));
    }
    let model: ModelSigning = json::read(statement.predicate).map_err(|e| invalid(field, e))?;
    if model.serialization.method != "files" {
        return Err(unsupported(method_field, "supported: \"files\""));
    }
    if model.serialization.hash_type != "sha256" {
        let text = format!("{}; supported: \"sha256\"", shown(&model.serialization.hash_type));
        return Err(unsupported(format!("{field}.serialization.hash_type"), text));
    }
    if model.serialization.allow_symlinks {
        let text = "true; links are not followed here: copy the files and sign again";
        return Err(unsupported(format!("{field}.serialization.allow_symlinks"), text));
    }
    let mut files = Vec::with_capacity(model.resources.len().min(artefact::MAX_FILES));
    for (i, resource) in model.resources.into_iter().enumerate() {
        if resource.algorithm != "sha256" {
            let text = format!("{}; supported: \"sha256\"", shown(&resource.algorithm));
            return Err(unsupported(format!("{field}.resources[{i}].algorithm"), text));
        }
        let sha256 = sha256_hex(&resource.digest);
        let sha256 = sha256.ok_or_else(|| invalid(format!("{field}.resources[{i}].digest"), "no SHA-256 in hex"))?;
        files.push(Listed { name: resource.name, size: None, sha256 });
    }
    artefact::check_list(&files, &format!("{field}.resources"))?;
    if artefact::root(&files) != digest {
        return Err(invalid("payload.subject[0].digest", "is not the digest of the resources that it lists"));
    }
    Ok(Meaning::Model { name, files })
}

fn blob(statement: Statement) -> Result<Meaning, Refusal> {
    let digests = statement.subject.iter().filter_map(|s| s.digest.get("sha256").and_then(|d| sha256_hex(d)));
    let digests: Vec<_> = digests.collect();
    if digests.is_empty() {
        return Err(unsupported("payload.subject", "no subject has a SHA-256"));
    }
    Ok(Meaning::Blob { predicate: statement.predicate_type, digests })
}

impl Deploy {
    /// A statement for files, which it sorts.
    pub fn new(
        tenant_id: TenantId,
        model_id: ModelId,
        version: VersionId,
        format: String,
        min_version: Option<VersionId>,
        mut files: Vec<Listed>,
    ) -> Self {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let files_root = to_hex(&artefact::root(&files));
        Self { tenant_id, model_id, version, format, manifest_sha256: None, min_version, files_root, files }
    }

    /// The same for one published manifest alone.
    #[must_use]
    pub fn with_manifest(self, sha256: [u8; 32]) -> Self {
        Self { manifest_sha256: Some(Digest(sha256)), ..self }
    }

    /// The payload to sign. It is read back first, so that nothing is signed that would not verify.
    ///
    /// # Errors
    /// When the statement breaks its own rules, as with no files.
    pub fn payload(&self) -> Result<Vec<u8>, Refusal> {
        let statement = json!({
            "_type": STATEMENT,
            "subject": [{ "name": self.model_id, "digest": { "sha256": self.files_root } }],
            "predicateType": DEPLOY,
            "predicate": self,
        });
        let bytes = serde_json::to_vec(&statement).map_err(|e| invalid("payload", e.to_string()))?;
        match read(PAYLOAD_TYPE, &bytes)? {
            Meaning::Deploy(read) if read == *self => Ok(bytes),
            _ => Err(invalid("payload", "does not read back as it was written")),
        }
    }
}
