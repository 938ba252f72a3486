//! As much DER (X.690) as keys and signatures need: a cursor over tagged values
//! that takes the one canonical length and nothing else. It does not know which
//! algorithms are acceptable.

/// Tags used here.
pub const SEQUENCE: u8 = 0x30;
pub const INTEGER: u8 = 0x02;
pub const BIT_STRING: u8 = 0x03;
pub const OID: u8 = 0x06;

/// Walks over DER values. Every error is None: the caller says what was expected.
#[derive(Clone, Copy)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The content of the next value, which must have `tag`.
    pub fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let [found, first, rest @ ..] = self.0 else { return None };
        if *found != tag {
            return None;
        }
        let (len, rest) = match *first {
            short @ 0..=0x7f => (usize::from(short), rest),
            // Long forms of one to three bytes; longer keys and signatures do not exist.
            0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
            0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), rest.get(2..)?),
            _ => return None,
        };
        // DER takes the shortest form of a length.
        let shortest = match *first {
            0x81 => len > 0x7f,
            0x82 => len > 0xff,
            _ => true,
        };
        if !shortest || len > rest.len() {
            return None;
        }
        let (content, rest) = rest.split_at(len);
        self.0 = rest;
        Some(content)
    }

    /// A positive integer's magnitude, without the sign byte.
    pub fn positive(&mut self) -> Option<&'a [u8]> {
        match self.take(INTEGER)? {
            [] | [0] => None,
            [0, next, ..] if *next < 0x80 => None,
            [0, magnitude @ ..] => Some(magnitude),
            [first, ..] if *first >= 0x80 => None,
            magnitude => Some(magnitude),
        }
    }

    /// Nothing is left.
    pub fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}

/// The parts of a SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7).
pub struct Spki<'a> {
    pub oid: &'a [u8],
    /// What follows the algorithm's OID: a curve's OID, NULL, or nothing.
    pub parameters: &'a [u8],
    pub key: &'a [u8],
}

/// Reads a SubjectPublicKeyInfo, to its last byte.
pub fn spki(der: &[u8]) -> Option<Spki<'_>> {
    let mut outer = Reader::new(der);
    let mut body = Reader::new(outer.take(SEQUENCE)?);
    outer.end()?;
    let mut algorithm = Reader::new(body.take(SEQUENCE)?);
    let oid = algorithm.take(OID)?;
    let [0, key @ ..] = body.take(BIT_STRING)? else { return None };
    body.end()?;
    Some(Spki { oid, parameters: algorithm.0, key })
}

/// Whether bytes are an ECDSA-Sig-Value with r and s in 1..2^(8·size), in their
/// one DER spelling and with nothing after them (RFC 3279 section 2.2.3).
pub fn is_ecdsa(signature: &[u8], size: usize) -> bool {
    let read = || {
        let mut outer = Reader::new(signature);
        let mut body = Reader::new(outer.take(SEQUENCE)?);
        outer.end()?;
        let (r, s) = (body.positive()?, body.positive()?);
        body.end()?;
        (r.len() <= size && s.len() <= size).then_some(())
    };
    read().is_some()
}

/// r‖s of fixed length (JWS) as an ECDSA-Sig-Value.
pub fn ecdsa_of_fixed(fixed: &[u8]) -> Vec<u8> {
    let (r, s) = fixed.split_at(fixed.len() / 2);
    let mut body = Vec::with_capacity(fixed.len() + 8);
    for part in [r, s] {
        let magnitude = &part[part.iter().take_while(|b| **b == 0).count()..];
        let mut value = vec![];
        if magnitude.first().is_none_or(|b| *b >= 0x80) {
            value.push(0);
        }
        value.extend_from_slice(magnitude);
        body.extend(tagged(INTEGER, &value));
    }
    tagged(SEQUENCE, &body)
}

/// A value with its tag and length.
pub fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        len @ 0..=0x7f => out.push(len as u8),
        len @ 0x80..=0xff => out.extend([0x81, len as u8]),
        len => {
            // Keys and signatures are far below 64 KiB.
            let len = u16::try_from(len).expect("no key or signature is longer than 64 KiB");
            out.push(0x82);
            out.extend(len.to_be_bytes());
        }
    }
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sig(r: &[u8], s: &[u8]) -> Vec<u8> {
        tagged(SEQUENCE, &[tagged(INTEGER, r), tagged(INTEGER, s)].concat())
    }

    #[test]
    fn an_ecdsa_signature_has_one_spelling() {
        assert!(is_ecdsa(&sig(&[1], &[0x7f]), 32));
        assert!(is_ecdsa(&sig(&[0, 0x80], &[1]), 32));
        let bad = [
            sig(&[0], &[1]),
            sig(&[1], &[0]),
            sig(&[], &[1]),
            sig(&[0x80], &[1]),
            sig(&[0, 1], &[1]),
            sig(&[1; 33], &[1]),
            [sig(&[1], &[1]), vec![0]].concat(),
            tagged(SEQUENCE, &[tagged(INTEGER, &[1]), tagged(INTEGER, &[1]), vec![5, 0]].concat()),
            // A long form where the short one would do.
            vec![0x30, 0x81, 6, 2, 1, 1, 2, 1, 1],
            vec![0x30, 0x80, 2, 1, 1, 2, 1, 1, 0, 0],
            vec![0x30],
            vec![],
        ];
        for (i, bad) in bad.iter().enumerate() {
            assert!(!is_ecdsa(bad, 32), "case {i}");
        }
    }

    #[test]
    fn fixed_signatures_become_der() {
        let mut fixed = [0u8; 64];
        (fixed[31], fixed[32]) = (5, 0x90);
        let der = ecdsa_of_fixed(&fixed);
        assert!(is_ecdsa(&der, 32));
        assert!(!is_ecdsa(&ecdsa_of_fixed(&[0; 64]), 32), "r = s = 0 stays refused");
    }

    #[test]
    fn lengths_are_the_shortest() {
        for len in [0, 1, 127, 128, 255, 256, 5000] {
            let content = vec![7; len];
            let value = tagged(BIT_STRING, &content);
            let mut reader = Reader::new(&value);
            assert_eq!(reader.take(BIT_STRING), Some(&content[..]), "{len}");
            assert!(reader.end().is_some());
            assert!(Reader::new(&value[..value.len() - 1]).take(BIT_STRING).is_none());
        }
    }
}
