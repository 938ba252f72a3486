//! The second net for secrets: whatever looks like one is taken out of a line of the log before it is written. The
//! first are types that show nothing (`secret::Secret`); this one catches what other people's code logs, and what
//! somebody forgot. It knows how tokens, keys and signed addresses look, and nothing of who logs.

use nf_core::reason::REDACTED;
use std::borrow::Cow;
use std::io::{self, Write};
use tracing_subscriber::fmt::MakeWriter;

/// A shorter run of a token's characters is a word.
const LEAST: usize = 8;

/// How a secret begins, in lower case, and how far it goes.
struct Mark {
    begin: &'static str,
    /// The beginning itself says nothing: it stays for the reader.
    stays: bool,
    /// What has to stand before it.
    after: After,
    goes: Goes,
}

#[derive(Clone, Copy, PartialEq)]
enum After {
    Anything,
    /// The middle of a word is none.
    NoWord,
    /// A part of an address's query.
    Query,
}

#[derive(Clone, Copy)]
enum Goes {
    /// As long as a token's characters do.
    Token,
    /// The same, with two dots: header, payload, signature.
    Jwt,
    /// To the end of a part of a query.
    Value,
    /// To the end of the key, or of the line; what is no private key is none.
    Pem,
    /// A name and a password before the host, if there are any.
    User,
}

const fn mark(begin: &'static str, stays: bool, after: After, goes: Goes) -> Mark {
    Mark { begin, stays, after, goes }
}

const MARKS: [Mark; 15] = [
    mark("bearer ", true, After::NoWord, Goes::Token),
    mark("eyj", false, After::NoWord, Goes::Jwt),
    // Vault's, and our own for joining.
    mark("hvs.", false, After::NoWord, Goes::Token),
    mark("hvb.", false, After::NoWord, Goes::Token),
    mark("nfj1.", false, After::NoWord, Goes::Token),
    mark("-----begin ", true, After::Anything, Goes::Pem),
    // Addresses that are signed: S3, Google, Azure, and whoever puts a password there.
    mark("x-amz-signature=", true, After::Query, Goes::Value),
    mark("x-amz-credential=", true, After::Query, Goes::Value),
    mark("x-amz-security-token=", true, After::Query, Goes::Value),
    mark("x-goog-signature=", true, After::Query, Goes::Value),
    mark("sig=", true, After::Query, Goes::Value),
    mark("signature=", true, After::Query, Goes::Value),
    mark("token=", true, After::Query, Goes::Value),
    mark("access_token=", true, After::Query, Goes::Value),
    mark("://", true, After::Anything, Goes::User),
];

fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~+/=".contains(byte)
}

impl Mark {
    /// How many bytes of `rest`, which begins after the mark, are a secret.
    fn length(&self, rest: &str) -> Option<usize> {
        let run = |is: fn(&u8) -> bool| rest.bytes().take_while(is).count();
        match self.goes {
            Goes::Token => Some(run(is_token)).filter(|length| *length >= LEAST),
            Goes::Jwt => {
                let length = run(is_token);
                let dots = rest.as_bytes()[..length].iter().filter(|byte| **byte == b'.').count();
                (dots >= 2 && length >= LEAST).then_some(length)
            }
            Goes::Value => Some(run(|byte| !b"& \t\r\n\"'\\<>,;)".contains(byte))).filter(|length| *length > 0),
            Goes::Pem => {
                let kind = rest.split("-----").next()?;
                let private = kind.to_ascii_lowercase().contains("private key");
                private.then(|| rest.to_ascii_lowercase().find("-----end ").unwrap_or(rest.len()))
            }
            Goes::User => {
                let authority = run(|byte| !b"/?# \t\r\n\"'\\<>".contains(byte));
                let (user, _) = rest[..authority].rsplit_once('@')?;
                user.contains(':').then_some(user.len())
            }
        }
    }

    fn fits(&self, lower: &str, at: usize) -> bool {
        let before = lower.as_bytes()[..at].last();
        lower[at..].starts_with(self.begin)
            && match self.after {
                After::Anything => true,
                After::NoWord => !before.is_some_and(u8::is_ascii_alphanumeric) || ends_a_line(&lower[..at]),
                After::Query => before.is_some_and(|byte| b"?&".contains(byte)),
            }
    }
}

/// Whether an end of line or a tab stands there as JSON writes it, whose letter is no word's.
fn ends_a_line(before: &str) -> bool {
    [r"\n", r"\r", r"\t"].iter().any(|escape| before.ends_with(escape))
}

/// The line without what looks like a secret.
pub fn scrub(line: &str) -> Cow<'_, str> {
    // Byte for byte as long as the line.
    let lower = line.to_ascii_lowercase();
    let (mut out, mut done, mut at) = (String::new(), 0, 0);
    while at < line.len() {
        let found = if lower.is_char_boundary(at) {
            MARKS.iter().filter(|mark| mark.fits(&lower, at)).find_map(|mark| {
                let begin = at + mark.begin.len();
                Some((if mark.stays { begin } else { at }, begin + mark.length(&line[begin..])?))
            })
        } else {
            None
        };
        match found {
            Some((from, to)) => {
                out.push_str(&line[done..from]);
                out.push_str(REDACTED);
                (done, at) = (to, to);
            }
            None => at += 1,
        }
    }
    match done {
        0 => Cow::Borrowed(line),
        _ => Cow::Owned(out + &line[done..]),
    }
}

/// Standard error, behind the net. A line of the log is one write.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scrubbed;

impl<'a> MakeWriter<'a> for Scrubbed {
    type Writer = Net<io::Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        Net(io::stderr())
    }
}

/// What is written through it is scrubbed.
pub struct Net<W>(pub W);

impl<W: Write> Write for Net<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        self.0.write_all(scrub(&text).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::layer::SubscriberExt;

    const JWT: &str = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJlLWNhbmFyeQ";
    const PEM: &str = "-----BEGIN EC PRIVATE KEY-----\nTUhDQUFRRUVJQ2FuYXJ5\n-----END EC PRIVATE KEY-----";

    #[test]
    fn what_looks_like_a_secret_is_taken_out() {
        let cases = [
            (format!("authorization: Bearer {JWT}"), "authorization: Bearer <REDACTED>".to_owned()),
            (format!("token {JWT}, next"), "token <REDACTED>, next".to_owned()),
            (format!(r"first\nBearer {JWT}\t{JWT}"), r"first\nBearer <REDACTED>\t<REDACTED>".to_owned()),
            ("\"Bearer hvs.canary-secret\"".into(), "\"Bearer <REDACTED>\"".into()),
            ("x-vault-token hvs.canary-secret".into(), "x-vault-token <REDACTED>".into()),
            ("nf cluster join --token nfj1.0193.canarysecret.abcd".into(), "nf cluster join --token <REDACTED>".into()),
            (format!("key {PEM} kept"), "key -----BEGIN <REDACTED>-----END EC PRIVATE KEY----- kept".into()),
            (PEM.replace('\n', "\\n"), "-----BEGIN <REDACTED>-----END EC PRIVATE KEY-----".into()),
            (
                "GET https://s3.test/m?X-Amz-Credential=canary%2Fx&X-Amz-Signature=canary&a=b".into(),
                "GET https://s3.test/m?X-Amz-Credential=<REDACTED>&X-Amz-Signature=<REDACTED>&a=b".into(),
            ),
            ("https://a.blob.test/m?sv=1&sig=canary%3D\"".into(), "https://a.blob.test/m?sv=1&sig=<REDACTED>\"".into()),
            ("postgres://nf:canary@db:5432/nf".into(), "postgres://<REDACTED>@db:5432/nf".into()),
        ];
        for (line, shown) in cases {
            assert_eq!(scrub(&line), shown, "{line}");
        }
        for plain in [
            "bearer of news",
            "signature=ab12 sig=3",
            "http://127.0.0.1:8600/schedule?tenant_id=t1",
            "eyjafjallajökull",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
            "ä://ö",
        ] {
            assert!(matches!(scrub(plain), Cow::Borrowed(_)), "{plain}");
        }
    }

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<u8>>>);

    impl<'a> MakeWriter<'a> for Seen {
        type Writer = Net<Self>;

        fn make_writer(&'a self) -> Net<Self> {
            Net(self.clone())
        }
    }

    impl Write for Seen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_planted_secret_is_in_no_line_of_either_shape_at_trace_level() {
        let seen = Seen::default();
        let (text, json) = (tracing_subscriber::fmt::layer(), tracing_subscriber::fmt::layer().json());
        let both = tracing_subscriber::registry();
        let both = both.with(text.with_writer(seen.clone())).with(json.with_writer(seen.clone()));
        tracing::subscriber::with_default(both, || {
            tracing::trace!(header = %format!("Bearer {JWT}"), key = PEM, "a call");
            tracing::trace!(url = ?"https://u:canary@h/x?sig=canary", "{PEM}");
        });
        let text = String::from_utf8(seen.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches("a call").count(), 2, "{text}");
        for planted in [JWT, "canary", "TUhDQUFRRUVJQ2FuYXJ5"] {
            assert!(!text.contains(planted), "{planted}: {text}");
        }
    }
}
