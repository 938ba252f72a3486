//! A tenant's consent (P1) as a signed statement: a DSSE envelope of a payload type of our own,
//! by a key that is the tenant's. It is no permission to run anything, and a deploy statement
//! is no consent: neither payload type is the other's. It does not know where keys are kept,
//! nor whether a consent is on record.

use super::envelope;
use super::refusal::{elsewhere, invalid, shown, unsupported};
use super::sign::{self, PrivateKey};
use super::{Demand, Evidence, Expect, KeyRing, Policy, Roots, incomplete, json};
use jiff::Timestamp;
use nf_core::consent::{MAX_CLASSES, Scope};
use nf_core::id::{Label, ModelId, TenantId, VersionId};
use nf_core::reason::Refusal;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The payload type in DSSE.
pub const PAYLOAD_TYPE: &str = "application/vnd.nf.consent.v1+json";

/// What a tenant says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    pub tenant_id: TenantId,
    /// Each by its name.
    pub data_classes: Vec<Label>,
    /// None: every model of the tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<ModelId>,
    /// None: every version of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_version: Option<VersionId>,
    /// RFC 3339. Two statements that say the same differ by it: one that was taken back stays so.
    pub issued_at: String,
    /// RFC 3339.
    pub expires_at: String,
}

/// A statement that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub scope: Scope,
    /// SHA-256 of the payload: what the consent is known by.
    pub statement: [u8; 32],
    /// Milliseconds since 1970.
    pub until_ms: u64,
    pub key_id: String,
}

fn moment(field: &str, text: &str) -> Result<u64, Refusal> {
    let parsed = text.parse::<Timestamp>().ok().and_then(|at| u64::try_from(at.as_millisecond()).ok());
    let wrong = || invalid(format!("payload.{field}"), "no moment such as 2027-01-31T00:00:00Z");
    parsed.ok_or_else(wrong)
}

impl Statement {
    /// The statement's scope and end, if it keeps its own rules.
    fn check(&self) -> Result<(Scope, u64), Refusal> {
        if self.data_classes.is_empty() || self.data_classes.len() > MAX_CLASSES {
            return Err(invalid("payload.data_classes", format!("1 to {MAX_CLASSES} classes")));
        }
        if self.model_version.is_some() && self.model_id.is_none() {
            return Err(invalid("payload.model_version", "a version without its model"));
        }
        let (issued, until_ms) = (moment("issued_at", &self.issued_at)?, moment("expires_at", &self.expires_at)?);
        if until_ms <= issued {
            return Err(invalid("payload.expires_at", "before it was issued"));
        }
        let mut classes = self.data_classes.clone();
        classes.sort();
        classes.dedup();
        let (tenant, model, version) = (self.tenant_id.clone(), self.model_id.clone(), self.model_version.clone());
        Ok((Scope { tenant, classes, model, version }, until_ms))
    }
}

/// Verifies a statement of `tenant` by the keys of that tenant, and of nobody else.
///
/// # Errors
/// A token of SECURITY's table, as for every other signature.
pub fn verify(tenant: &TenantId, keys: &KeyRing, demand: Demand, bytes: &[u8]) -> Result<Verified, Refusal> {
    let Evidence::Envelope { signer: None, envelope, .. } = Evidence::parse(bytes)? else {
        return Err(unsupported("statement", "not a DSSE envelope; nf consent sign makes one"));
    };
    let (expect, roots) = (Expect::default(), Roots::default());
    let policy = Policy { keys, roots: &roots, demand, expect: &expect, now: 0 };
    let signed = envelope::check(&policy, None, &envelope)?;
    if demand != Demand::Classical && !signed.hybrid() {
        return Err(incomplete(&signed.missing_half()));
    }
    let (statement, scope, until_ms) = read(&envelope.payload_type, &envelope.payload)?;
    if scope.tenant != *tenant {
        let text = format!("signed for {}, not for {tenant}", shown(scope.tenant.as_str()));
        return Err(elsewhere("tenant_id", text));
    }
    let key_id = signed.by.iter().map(|by| by.key_id.as_str()).collect::<Vec<_>>().join(",");
    Ok(Verified { scope, statement, until_ms, key_id })
}

fn read(payload_type: &str, payload: &[u8]) -> Result<([u8; 32], Scope, u64), Refusal> {
    if payload_type != PAYLOAD_TYPE {
        return Err(unsupported("payloadType", format!("{} is no consent; it is {PAYLOAD_TYPE}", shown(payload_type))));
    }
    let said: Statement = json::parse(payload).and_then(json::read).map_err(|e| invalid("payload", e))?;
    let (scope, until_ms) = said.check()?;
    Ok((Sha256::digest(payload).into(), scope, until_ms))
}

/// Signs a statement; what was signed is read back first.
///
/// # Errors
/// When it breaks its own rules.
pub fn sign(statement: &Statement, keys: &[PrivateKey]) -> Result<(String, [u8; 32]), Refusal> {
    let payload = serde_json::to_vec(statement).map_err(|e| invalid("payload", e.to_string()))?;
    let (id, ..) = read(PAYLOAD_TYPE, &payload)?;
    let (envelope, ring) = sign::envelope(PAYLOAD_TYPE, &payload, keys)?;
    verify(&statement.tenant_id, &ring, Demand::Classical, envelope.as_bytes())?;
    Ok((envelope, id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::signing::Deploy;
    use crate::security::signing::Listed;
    use nf_core::reason::Reason;
    use proptest::prelude::*;

    struct Keys {
        private: Vec<PrivateKey>,
        ring: KeyRing,
    }

    fn keys() -> Keys {
        let made = [PrivateKey::new_ecdsa().unwrap(), PrivateKey::new_ml_dsa().unwrap()];
        let mut ring = KeyRing::default();
        made.iter().for_each(|key| ring.add_file("k", key.public.as_bytes()).unwrap());
        let private = made.iter().map(|key| PrivateKey::from_pem("k", &key.private).unwrap()).collect();
        Keys { private, ring }
    }

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).unwrap()
    }

    fn statement() -> Statement {
        Statement {
            tenant_id: tenant("t1"),
            data_classes: vec![Label::new("personal").unwrap()],
            model_id: Some(ModelId::new("m1").unwrap()),
            model_version: None,
            issued_at: "2026-11-29T00:00:00Z".into(),
            expires_at: "2027-11-29T00:00:00Z".into(),
        }
    }

    fn refused(tenant_id: &str, keys: &KeyRing, demand: Demand, bytes: &[u8]) -> Reason {
        verify(&tenant(tenant_id), keys, demand, bytes).unwrap_err().reason
    }

    #[test]
    fn a_statement_counts_by_its_tenants_keys_alone() {
        let (ours, theirs) = (keys(), keys());
        let (signed, id) = sign(&statement(), &ours.private).unwrap();
        let verified = verify(&tenant("t1"), &ours.ring, Demand::Hybrid, signed.as_bytes()).unwrap();
        assert_eq!((verified.statement, verified.scope.model), (id, statement().model_id));
        assert_eq!(verified.key_id.split(',').count(), 2);
        assert_eq!(refused("t1", &theirs.ring, Demand::Hybrid, signed.as_bytes()), Reason::SignatureInvalid);
        assert_eq!(refused("t2", &ours.ring, Demand::Hybrid, signed.as_bytes()), Reason::SignatureBindingMismatch);
        assert_eq!(refused("t1", &KeyRing::default(), Demand::Hybrid, signed.as_bytes()), Reason::SignatureInvalid);
        let (half, _) = sign(&statement(), &ours.private[..1]).unwrap();
        assert_eq!(refused("t1", &ours.ring, Demand::Hybrid, half.as_bytes()), Reason::HybridSignatureIncomplete);
        assert!(verify(&tenant("t1"), &ours.ring, Demand::Classical, half.as_bytes()).is_ok());
    }

    #[test]
    fn a_deploy_statement_is_no_consent_and_the_other_way_round() {
        let ours = keys();
        let files = vec![Listed { name: "a".into(), size: None, sha256: [7; 32] }];
        let (model, version) = (ModelId::new("m1").unwrap(), VersionId::new("v1").unwrap());
        let deploy = Deploy::new(tenant("t1"), model, version, "onnx".into(), None, files.clone());
        let signed = sign::deploy(&deploy, &ours.private).unwrap();
        assert_eq!(refused("t1", &ours.ring, Demand::Hybrid, signed.as_bytes()), Reason::SignatureUnsupported);
        let (signed, _) = sign(&statement(), &ours.private).unwrap();
        let (expect, roots) = (Expect::default(), Roots::default());
        let policy = Policy { keys: &ours.ring, roots: &roots, demand: Demand::Hybrid, expect: &expect, now: 0 };
        let listing = super::super::Artefact::Listing(&files);
        let refusal = super::super::verify(&policy, &listing, signed.as_bytes()).unwrap_err();
        assert_eq!(refusal.reason, Reason::SignatureUnsupported);
    }

    #[test]
    fn a_statement_that_breaks_its_rules_is_not_signed() {
        let ours = keys();
        let mut wrong = [statement(), statement(), statement(), statement()];
        wrong[0].data_classes.clear();
        (wrong[1].model_id, wrong[1].model_version) = (None, Some(VersionId::new("v1").unwrap()));
        wrong[2].expires_at = "2026-11-28T00:00:00Z".into();
        wrong[3].expires_at = "soon".into();
        for wrong in wrong {
            assert_eq!(sign(&wrong, &ours.private).unwrap_err().reason, Reason::SignatureInvalid, "{wrong:?}");
        }
        for bad in ["", "{}", "{\"tenant_id\":\"t1\",\"tenant_id\":\"t2\"}", "[]"] {
            assert!(read(PAYLOAD_TYPE, bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn changed_or_made_up_bytes_never_count_and_never_panic(at in 0usize..4096, with in any::<u8>(), made in proptest::collection::vec(any::<u8>(), 0..200)) {
            static SIGNED: std::sync::OnceLock<(KeyRing, String)> = std::sync::OnceLock::new();
            let (ring, signed) = SIGNED.get_or_init(|| {
                let ours = keys();
                let (signed, _) = sign(&statement(), &ours.private).unwrap();
                (ours.ring, signed)
            });
            let mut bytes = signed.trim_end().as_bytes().to_vec();
            let at = at % bytes.len();
            // Another spelling of the same base64 or JSON may still say the same.
            if bytes[at] != with {
                bytes[at] = with;
                if let Ok(verified) = verify(&tenant("t1"), ring, Demand::Hybrid, &bytes) {
                    prop_assert_eq!(verified, verify(&tenant("t1"), ring, Demand::Hybrid, signed.as_bytes()).unwrap());
                }
            }
            prop_assert!(verify(&tenant("t1"), ring, Demand::Hybrid, &made).is_err());
            let _ = read(PAYLOAD_TYPE, &made);
        }
    }
}
