//! Base64, hex and PEM, strictly: one text for one value, because a second
//! spelling is where parsers begin to disagree. It does not know what the bytes mean.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use std::fmt::Write;

/// The most blocks that are read from one PEM file.
const MAX_BLOCKS: usize = 64;

const LENIENT_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new());
const URL_BARE: GeneralPurpose =
    GeneralPurpose::new(&alphabet::URL_SAFE, GeneralPurposeConfig::new().with_encode_padding(false));
const URL: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT_PADDING);

/// RFC 4648 section 4 with its padding; no blanks, no stray bits.
pub fn base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// Either alphabet (never mixed), as DSSE allows.
pub fn base64_either(text: &str) -> Option<Vec<u8>> {
    match text.contains(['-', '_']) {
        true => URL.decode(text).ok(),
        false => STANDARD.decode(text).ok(),
    }
}

/// RFC 4648 section 5, with or without padding.
pub fn base64_url(text: &str) -> Option<Vec<u8>> {
    URL.decode(text).ok()
}

/// RFC 4648 section 5, without padding.
pub fn to_base64_url(bytes: &[u8]) -> String {
    URL_BARE.encode(bytes)
}

/// The standard alphabet with padding.
pub fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// 64 lower-case hex digits.
pub fn sha256_hex(text: &str) -> Option<[u8; 32]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks_exact(2);
    if text.len() != 64 {
        return None;
    }
    let mut out = [0; 32];
    for (to, pair) in out.iter_mut().zip(pairs) {
        *to = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

/// Lower-case hex.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// One block of a PEM file.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    pub label: String,
    pub der: Vec<u8>,
}

/// The blocks of a PEM file (RFC 7468); text between them is a comment.
///
/// # Errors
/// What is wrong, without a byte of the contents: they may be secret.
pub fn pem(text: &str) -> Result<Vec<Block>, String> {
    let mut out: Vec<Block> = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in text.lines().map(str::trim_end) {
        let begin = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----"));
        let end = line.strip_prefix("-----END ").and_then(|rest| rest.strip_suffix("-----"));
        match (&mut open, begin, end) {
            (None, Some(label), _) => open = Some((label.to_owned(), String::new())),
            (None, None, Some(_)) => return Err("a PEM block ends that never began".into()),
            (None, None, None) => {}
            (Some(_), Some(_), _) => return Err("a PEM block begins inside another".into()),
            (Some((label, body)), None, Some(ending)) => {
                if ending != label {
                    return Err("a PEM block ends with another label than it began with".into());
                }
                // Old private keys carry headers (`Proc-Type:`); their label alone says enough.
                let der = base64(body).or(body.contains(':').then(Vec::new));
                let der = der.ok_or("a PEM block is not base64")?;
                out.push(Block { label: label.clone(), der });
                open = None;
                if out.len() > MAX_BLOCKS {
                    return Err(format!("more than {MAX_BLOCKS} PEM blocks"));
                }
            }
            (Some((_, body)), None, None) => body.push_str(line.trim()),
        }
    }
    match open {
        Some(_) => Err("a PEM block has no end".into()),
        None => Ok(out),
    }
}

/// A block as OpenSSL and Python write it: 64 columns, a line feed at the end.
pub fn to_pem(label: &str, der: &[u8]) -> String {
    let body = to_base64(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        out.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_has_one_spelling() {
        assert_eq!(base64("AQID").unwrap(), [1, 2, 3]);
        for bad in ["AQI", "AQID\n", " AQID", "AQ==AQ==", "AR==", "AQ=", "A-_D", "AQID="] {
            assert!(base64(bad).is_none(), "{bad:?}");
        }
        assert_eq!(base64_either("-_-_").unwrap(), base64("+/+/").unwrap());
        assert!(base64_either("-/-/").is_none(), "mixed alphabets");
        assert_eq!(base64_url("AQ").unwrap(), [1]);
    }

    #[test]
    fn pem_goes_there_and_back() {
        let der: Vec<u8> = (0..100).collect();
        let text = to_pem("PUBLIC KEY", &der);
        assert!(text.lines().all(|l| l.len() <= 64) && text.ends_with("-----\n"));
        let blocks = pem(&format!("# mine\n{text}\n{text}")).unwrap();
        assert!(blocks.len() == 2 && blocks[1].der == der && blocks[0].label == "PUBLIC KEY");
        for bad in ["-----BEGIN A-----\nAQID\n", "-----BEGIN A-----\n-----END B-----\n", "-----END A-----\n"] {
            assert!(pem(bad).is_err(), "{bad:?}");
        }
        assert!(pem("-----BEGIN A-----\n!\n-----END A-----\n").is_err());
        assert!(pem(&text.repeat(65)).is_err());
    }

    #[test]
    fn hex_is_lower_case() {
        let hex = "0123456789abcdef".repeat(4);
        assert_eq!(to_hex(&sha256_hex(&hex).unwrap()), hex);
        assert!(sha256_hex(&hex.to_uppercase()).is_none() && sha256_hex(&hex[1..]).is_none());
        assert!(sha256_hex(&"é".repeat(32)).is_none());
    }
}
