//! Identifiers. Dense numbers are handed out by counters in the state and are
//! cheap keys; names come from callers and are validated here, once, so that a
//! value of these types is always safe in a path, a log line or a DNS label.
//! It does not know what the things named are.

use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::sync::Arc;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub $inner);
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

number!(/// A job, in the order in which the group accepted them.
    JobNo(u64), "j");
number!(/// A node (member or worker).
    NodeNo(u32), "n");
number!(/// A tenant.
    TenantNo(u32), "t");
number!(/// A voting or learning member of the Raft group. Never reused.
    MemberId(u64), "m");
number!(/// Counts the launches of one replica; an agent refuses an older one.
    Generation(u32), "g");
number!(/// Counts the versions that a job ran, each rollout being one more.
    Revision(u32), "r");
number!(/// Counts a node's starts; a message of an older incarnation is void.
    Incarnation(u64), "i");

/// First 16 bytes of a SHA-256 over a length-prefixed list of parts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest16(pub [u8; 16]);

impl Digest16 {
    /// Hashes `parts`; lengths are hashed too, so ("ab","c") differs from ("a","bc").
    pub fn of(parts: &[&[u8]]) -> Self {
        use sha2::{Digest, Sha256};
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        let mut out = [0; 16];
        out.copy_from_slice(&hasher.finalize()[..16]);
        Self(out)
    }
}

impl fmt::Debug for Digest16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Display for Digest16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a name was refused. The text says which characters are allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {shown} is not valid: {rule}")]
pub struct NameError {
    pub kind: &'static str,
    pub shown: String,
    pub rule: &'static str,
}

/// What a kind of name may look like.
struct Rule {
    kind: &'static str,
    max: usize,
    text: &'static str,
    first: fn(u8) -> bool,
    rest: fn(u8) -> bool,
}

fn lower_or_digit(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn check(rule: &Rule, text: &str) -> Result<(), NameError> {
    let bytes = text.as_bytes();
    let fits = !bytes.is_empty()
        && bytes.len() <= rule.max
        && (rule.first)(bytes[0])
        && bytes[1..].iter().all(|b| (rule.rest)(*b))
        // No name may climb out of a directory it becomes part of.
        && !text.contains("..");
    if fits {
        return Ok(());
    }
    let shown = crate::reason::printable(text, 40);
    Err(NameError { kind: rule.kind, shown: format!("\"{shown}\""), rule: rule.text })
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $rule:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub struct $name(Arc<str>);
        impl $name {
            /// Validates `text`.
            ///
            /// # Errors
            /// [`NameError`] with the rule that it breaks.
            pub fn new(text: &str) -> Result<Self, NameError> {
                check(&$rule, text)?;
                Ok(Self(text.into()))
            }
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
        impl std::str::FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// Whose work it is.
    TenantId,
    Rule {
        kind: "tenant_id",
        max: 63,
        text: "1 to 63 of a-z 0-9 _ -, starting with a letter or digit",
        first: lower_or_digit,
        rest: |b| lower_or_digit(b) || b == b'_' || b == b'-',
    }
);
name!(
    /// A model's name.
    ModelId,
    Rule {
        kind: "model_id",
        max: 128,
        text: "1 to 128 of a-z 0-9 . _ -, starting with a letter or digit, without '..'",
        first: lower_or_digit,
        rest: |b| lower_or_digit(b) || b"._-".contains(&b),
    }
);
name!(
    /// A model version's name.
    VersionId,
    Rule {
        kind: "model_version",
        max: 64,
        text: "1 to 64 of A-Z a-z 0-9 . _ + -, starting with a letter or digit, without '..'",
        first: |b| b.is_ascii_alphanumeric(),
        rest: |b| b.is_ascii_alphanumeric() || b"._+-".contains(&b),
    }
);
name!(
    /// A job's public id, minted by the first member that took the call or chosen by the client.
    RequestId,
    Rule {
        kind: "request_id",
        max: 64,
        text: "1 to 64 of A-Z a-z 0-9 . _ -, starting with a letter or digit, without '..'",
        first: |b| b.is_ascii_alphanumeric(),
        rest: |b| b.is_ascii_alphanumeric() || b"._-".contains(&b),
    }
);
name!(
    /// A node's name; also the name in its certificate.
    NodeName,
    Rule {
        kind: "node_id",
        max: 63,
        text: "1 to 63 of a-z 0-9 . _ -, starting with a letter or digit, without '..'",
        first: lower_or_digit,
        rest: |b| lower_or_digit(b) || b"._-".contains(&b),
    }
);
name!(
    /// A kind of device, such as `H100-80G`. Compared without regard to case by callers who fold it first.
    DeviceType,
    Rule {
        kind: "device_type",
        max: 64,
        text: "1 to 64 of A-Z a-z 0-9 . _ + -, starting with a letter or digit, without '..'",
        first: |b| b.is_ascii_alphanumeric(),
        rest: |b| b.is_ascii_alphanumeric() || b"._+-".contains(&b),
    }
);
name!(
    /// A region, zone, rack, label key or label value.
    Label,
    Rule {
        kind: "label",
        max: 128,
        text: "1 to 128 of A-Z a-z 0-9 . _ / : + -, starting with a letter or digit, without '..'",
        first: |b| b.is_ascii_alphanumeric(),
        rest: |b| b.is_ascii_alphanumeric() || b"._/:+-".contains(&b),
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_climb_or_inject_are_refused() {
        for bad in ["", "../x", "a/../../b", "%2e", "a\0b", "-x", "a b", "..", "a..b", "é", &"a".repeat(4096)] {
            assert!(ModelId::new(bad).is_err(), "{bad}");
            assert!(RequestId::new(bad).is_err(), "{bad}");
            assert!(NodeName::new(bad).is_err(), "{bad}");
        }
        for good in ["llama-8b", "m1", "a.b_c-d"] {
            assert_eq!(ModelId::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn an_error_names_the_kind_and_shortens_the_value() {
        let error = TenantId::new(&"A".repeat(500)).unwrap_err().to_string();
        assert!(error.starts_with("tenant_id \"AAA") && error.len() < 200, "{error}");
    }

    #[test]
    fn digests_separate_their_parts() {
        assert_ne!(Digest16::of(&[b"ab", b"c"]), Digest16::of(&[b"a", b"bc"]));
    }
}
