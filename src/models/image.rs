//! A container image by reference. What a digest names is always the same bytes; what a
//! tag names may be other ones tomorrow. It asks no engine and no registry.

use nf_core::reason::printable;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// The longest reference.
const MAX: usize = 512;
const MAX_TAG: usize = 128;
const SHA256: &str = "sha256:";

/// `NAME:TAG`, `NAME@sha256:…`, both, or `sha256:…`, the id of an image that the engine has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Image(String);

impl Image {
    /// # Errors
    /// The rule that the reference breaks.
    pub fn new(text: &str) -> Result<Self, String> {
        match text.len() <= MAX && is_reference(text) {
            true => Ok(Self(text.to_owned())),
            false => Err(format!(
                "\"{}\" is no image: NAME@sha256:DIGEST, NAME:TAG, or sha256:ID, in lower case, at most {MAX} bytes",
                printable(text, 60)
            )),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it can only ever mean the same bytes.
    pub fn is_pinned(&self) -> bool {
        is_digest(&self.0) || self.may_be_pulled()
    }

    /// Whether a registry may be asked for it: pinned, and not by the id of an image that is only here.
    pub fn may_be_pulled(&self) -> bool {
        self.0.contains('@')
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Image {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

fn is_reference(text: &str) -> bool {
    if is_digest(text) {
        return true;
    }
    let (named, digest) = match text.split_once('@') {
        Some((named, digest)) => (named, Some(digest)),
        None => (text, None),
    };
    // A colon before the last slash is that of a registry's port.
    let last = named.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match named[last..].split_once(':') {
        Some((part, tag)) => (&named[..last + part.len()], Some(tag)),
        None => (named, None),
    };
    // Half an id is a slip, and no image of that name.
    let slip = |tag: &str| tag.len() >= 32 && tag.bytes().all(|b| b.is_ascii_hexdigit());
    if name == "sha256" && tag.is_some_and(slip) {
        return false;
    }
    (tag.is_some() || digest.is_some()) && is_name(name) && tag.is_none_or(is_tag) && digest.is_none_or(is_digest)
}

fn is_digest(text: &str) -> bool {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.strip_prefix(SHA256).is_some_and(|digits| digits.len() == 64 && digits.bytes().all(hex))
}

fn is_tag(text: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let rest = |b: u8| letter(b) || b == b'.' || b == b'-';
    (1..=MAX_TAG).contains(&text.len()) && letter(text.as_bytes()[0]) && text.bytes().all(rest)
}

/// Parts of lower case letters, digits and single marks between them; the first may be a registry with a port.
fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let part = |part: &str| {
        let bytes = part.as_bytes();
        let ends = bytes.first().is_some_and(|b| plain(*b)) && bytes.last().is_some_and(|b| plain(*b));
        ends && bytes.iter().all(|b| plain(*b) || b"._-".contains(b))
    };
    let mut parts = text.split('/');
    let Some(first) = parts.next() else { return false };
    let host = match first.split_once(':') {
        // "a:1" alone would be a tag.
        Some((host, port)) => text.contains('/') && part(host) && port.parse::<u16>().is_ok_and(|port| port > 0),
        None => part(first),
    };
    host && parts.all(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digest() -> String {
        format!("sha256:{}", "0a".repeat(32))
    }

    #[test]
    fn what_is_pinned_is_told_from_what_is_not() {
        let facts = |text: &str| Image::new(text).map(|image| (image.is_pinned(), image.may_be_pulled()));
        assert_eq!(facts("nginx:1.27"), Ok((false, false)));
        assert_eq!(facts("registry.test:5000/a/b_c:V1"), Ok((false, false)));
        assert_eq!(facts(&format!("registry.test:5000/a/b@{}", digest())), Ok((true, true)));
        assert_eq!(facts(&format!("a/b:v1@{}", digest())), Ok((true, true)));
        assert_eq!(facts(&digest()), Ok((true, false)));
        assert_eq!(facts("sha256:v1"), Ok((false, false)), "an image may be called so");
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let short = &digest()[..70];
        let upper = digest().to_uppercase();
        let long = format!("{}:v1", "a".repeat(MAX));
        for text in [
            "",
            "nginx",
            ":v1",
            "a:",
            "A:v1",
            "a//b:v1",
            "/a:v1",
            "a/:v1",
            "-a:v1",
            "a:v1:v2",
            "h:x/a:v1",
            "h:0/a:v1",
            "a b:v1",
            "a:v1\n",
            "a:-v",
            "a@v1",
            "../a:v1",
            "http://a/b:v1",
            "a?b:v1",
            "a%2f:v1",
            short,
            &upper,
            &long,
        ] {
            assert!(Image::new(text).is_err(), "{text:?}");
        }
        assert!(Image::new(&format!("a@{short}")).is_err());
        assert!(Image::new(&format!("a@{0}@{0}", digest())).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_judged_and_what_passes_is_safe_in_a_url(text in "[a-zA-Z0-9:@/._ %?#-]{0,80}|.{0,40}") {
            if let Ok(image) = Image::new(&text) {
                prop_assert!(image.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b":@/._-".contains(&b)));
                prop_assert!(!image.as_str().contains("//"));
                prop_assert!(image.is_pinned() || !image.may_be_pulled());
            }
        }
    }
}
