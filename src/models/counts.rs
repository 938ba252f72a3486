//! What this process has fetched and refused since it started, for the metrics. One
//! set for all caches of a process, because a scrape asks the process. It knows no
//! metric library.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why bytes were refused, in the words of `nf_model_verify_failures_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// More or fewer bytes than the manifest says.
    Size,
    Digest,
    /// Listed in the manifest, and not in the store.
    Missing,
    /// A link, or no regular file.
    Link,
    /// A version whose signature is missing or does not count.
    Signature,
    /// Encrypted to another key, cut or changed.
    Sealed,
}

impl Refused {
    pub const ALL: [Refused; 6] =
        [Refused::Size, Refused::Digest, Refused::Missing, Refused::Link, Refused::Signature, Refused::Sealed];

    pub fn name(self) -> &'static str {
        match self {
            Refused::Size => "size",
            Refused::Digest => "digest",
            Refused::Missing => "missing",
            Refused::Link => "link",
            Refused::Signature => "signature",
            Refused::Sealed => "sealed",
        }
    }
}

/// Where bytes came from, in the words of `nf_model_fetch_bytes_total`.
pub const SCHEMES: [&str; 6] = ["file", "http", "https", "s3", "gs", "az"];

static FETCHED: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];
static REFUSED: [AtomicU64; Refused::ALL.len()] = [const { AtomicU64::new(0) }; Refused::ALL.len()];

/// Counts bytes that came from a store of that scheme, whatever became of them.
pub(super) fn fetched(scheme: &str, bytes: u64) {
    if let Some(at) = SCHEMES.iter().position(|known| *known == scheme) {
        FETCHED[at].fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Counts one.
pub fn refused(why: Refused) {
    REFUSED[why as usize].fetch_add(1, Ordering::Relaxed);
}

/// Bytes brought, by scheme.
pub fn fetched_bytes() -> impl Iterator<Item = (&'static str, u64)> {
    SCHEMES.iter().zip(&FETCHED).map(|(scheme, bytes)| (*scheme, bytes.load(Ordering::Relaxed)))
}

/// Files refused for this reason.
pub fn refusals(why: Refused) -> u64 {
    REFUSED[why as usize].load(Ordering::Relaxed)
}
