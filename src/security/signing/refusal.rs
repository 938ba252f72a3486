//! The refusals of evidence, one function for each token, so that each call says
//! the field and the next step. It does not know the formats.

use nf_core::reason::{Reason, Refusal};

/// The signature is wrong, or by nobody who was configured.
pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Refusal {
    Refusal::field(Reason::SignatureInvalid, field, detail)
}

/// A format, key type or serialisation that this build does not know.
pub fn unsupported(field: impl Into<String>, detail: impl Into<String>) -> Refusal {
    Refusal::field(Reason::SignatureUnsupported, field, detail)
}

/// Signed, but for something else.
pub fn elsewhere(field: impl Into<String>, detail: impl Into<String>) -> Refusal {
    Refusal::field(Reason::SignatureBindingMismatch, field, detail)
}

/// The files are not those that were signed.
pub fn mismatch(field: impl Into<String>, detail: impl Into<String>) -> Refusal {
    Refusal::field(Reason::ArtifactMismatch, field, detail)
}

/// A key or root file is not usable.
pub fn config(field: impl Into<String>, detail: impl Into<String>) -> Refusal {
    Refusal::field(Reason::ConfigInvalid, field, detail)
}

/// Text from outside, short enough for a message and without control characters.
pub fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(80).collect::<String>().escape_debug().to_string();
    if text.chars().count() > 80 {
        out.push('…');
    }
    format!("\"{out}\"")
}
