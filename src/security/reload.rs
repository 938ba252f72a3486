//! Follows this process' certificates, keys and authorities on disk, so that they are
//! replaced without a restart. Files that cannot be used, or of which only some are new,
//! leave the old ones in place. It does not know who writes them, or who is told.

use super::public::{self, PublicTls};
use super::tls::{Credentials, Error, PeerTls};
use rustls_pki_types::UnixTime;
use std::path::Path;
use std::time::Duration;

/// How often the files are looked at.
pub const PERIOD: Duration = Duration::from_secs(2);

/// What a look found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing new.
    Same,
    /// Others count from now on, or those that counted are there again.
    Replaced,
    /// What is there is of no use, at two looks already, or what counts has ended; told once.
    Bad(String),
}

/// What the files hold, one text for each.
type Texts = Vec<String>;

type Read = Box<dyn Fn() -> Result<Texts, Error> + Send>;
type Judge = Box<dyn Fn(&Texts, UnixTime) -> Result<(), Error> + Send>;

/// Follows a few files that belong together.
pub struct Files {
    read: Read,
    /// Makes them count, if they are of use now.
    take: Judge,
    /// Whether those that count are of use still.
    lasts: Judge,
    good: Texts,
    /// What was there at the last look, and what was told of it.
    seen: Texts,
    told: bool,
    failed: bool,
}

impl Files {
    /// `dir` holds what `tls` was made of.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn new(dir: &Path, tls: PeerTls) -> Result<Self, Error> {
        let dir = dir.to_owned();
        let read = move || {
            let Credentials { authority, cert, key } = Credentials::read(&dir)?;
            Ok(vec![authority, cert, key])
        };
        let of = |texts: &Texts| {
            let [authority, cert, key] = [0, 1, 2].map(|n| texts.get(n).cloned().unwrap_or_default());
            Credentials { authority, cert, key }
        };
        let taking = tls.clone();
        let take = move |texts: &Texts, now| taking.replace(&of(texts), now);
        let lasts = move |texts: &Texts, now| tls.lasts(&of(texts), now);
        Self::of(Box::new(read), Box::new(take), Box::new(lasts))
    }

    /// The certificate of the public port and its key; `tls` was made of them.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn public(cert: &Path, key: &Path, tls: PublicTls) -> Result<Self, Error> {
        let (cert, key) = (cert.to_owned(), key.to_owned());
        let read = move || Ok(public::read(&cert, &key)?.to_vec());
        let of = |texts: &Texts, n: usize| texts.get(n).cloned().unwrap_or_default();
        let take = move |texts: &Texts, now| tls.replace([&of(texts, 0), &of(texts, 1)], now);
        let lasts = move |texts: &Texts, now| public::lasts(&of(texts, 0), now);
        Self::of(Box::new(read), Box::new(take), Box::new(lasts))
    }

    fn of(read: Read, take: Judge, lasts: Judge) -> Result<Self, Error> {
        let good = read()?;
        Ok(Self { read, take, lasts, seen: good.clone(), good, told: true, failed: false })
    }

    /// Looks at the files. Several files are not written in one moment: what is wrong at one look
    /// alone is nobody's trouble.
    pub fn look(&mut self) -> Look {
        self.look_at(UnixTime::now())
    }

    /// Judged anew at each look: a certificate that is not valid yet will be.
    fn look_at(&mut self, now: UnixTime) -> Look {
        let (texts, judged) = match (self.read)() {
            Ok(texts) if texts == self.good => {
                return match (self.lasts)(&texts, now) {
                    Ok(()) => self.as_before(),
                    Err(error) => self.ended(&error),
                };
            }
            Ok(texts) => {
                let judged = (self.take)(&texts, now);
                (texts, judged)
            }
            Err(error) => (vec![error.to_string()], Err(error)),
        };
        match judged {
            Ok(()) => {
                self.good = texts;
                self.as_before();
                Look::Replaced
            }
            Err(error) if self.seen == texts => self.still_wrong(&error),
            Err(_) => {
                (self.seen, self.told) = (texts, false);
                Look::Same
            }
        }
    }

    fn as_before(&mut self) -> Look {
        (self.seen, self.told) = (self.good.clone(), true);
        match std::mem::take(&mut self.failed) {
            true => Look::Replaced,
            false => Look::Same,
        }
    }

    fn ended(&mut self, error: &Error) -> Look {
        match std::mem::replace(&mut self.failed, true) {
            true => Look::Same,
            false => Look::Bad(error.to_string()),
        }
    }

    fn still_wrong(&mut self, error: &Error) -> Look {
        if std::mem::replace(&mut self.told, true) {
            return Look::Same;
        }
        self.failed = true;
        Look::Bad(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::tls::Authority;

    #[test]
    fn new_files_count_and_bad_ones_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (blue, red) = (Authority::create("blue").unwrap(), Authority::create("blue").unwrap());
        let first = blue.issue("blue", "n1").unwrap();
        first.write(dir.path()).unwrap();
        let tls = PeerTls::new(&first, "blue", "n1").unwrap();
        let signs = || tls.sign(b"x").unwrap().0;
        let (mut files, old) = (Files::new(dir.path(), tls.clone()).unwrap(), signs());
        assert_eq!(files.look(), Look::Same);

        let second = blue.issue("blue", "n1").unwrap();
        std::fs::write(dir.path().join("member.pem"), &second.cert).unwrap();
        assert_eq!(files.look(), Look::Same, "the key may be about to follow");
        second.write(dir.path()).unwrap();
        assert_eq!((files.look(), signs() == old), (Look::Replaced, false));

        let now = signs();
        let of_red = red.issue("blue", "n1").unwrap();
        let bad = [
            Credentials { cert: of_red.cert.clone(), key: of_red.key.clone(), ..second.clone() },
            Credentials { key: of_red.key.clone(), ..second.clone() },
            Credentials { authority: String::new(), ..second.clone() },
            blue.issue("blue", "n2").unwrap(),
            Credentials { key: "-----BEGIN".into(), ..second.clone() },
        ];
        for (n, bad) in bad.iter().enumerate() {
            bad.write(dir.path()).unwrap();
            assert_eq!(files.look(), Look::Same, "{n}");
            let Look::Bad(text) = files.look() else { panic!("case {n} is told at the second look") };
            assert!(!text.contains("BEGIN"), "no key in a text: {text}");
            assert_eq!((files.look(), signs() == now), (Look::Same, true), "told once, and the old keys stay: {n}");
        }
        std::fs::remove_file(dir.path().join("member.key")).unwrap();
        assert_eq!(files.look(), Look::Same);
        assert!(matches!(files.look(), Look::Bad(_)));
        second.write(dir.path()).unwrap();
        assert_eq!((files.look(), files.look()), (Look::Replaced, Look::Same), "all is well again");

        let both = Credentials { authority: format!("{}{}", blue.cert, red.cert), ..of_red };
        both.write(dir.path()).unwrap();
        assert_eq!(
            (files.look(), signs() == now),
            (Look::Replaced, false),
            "two authorities, while one replaces the other"
        );
    }

    #[test]
    fn a_certificate_of_tomorrow_counts_tomorrow() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create("blue").unwrap();
        let issue = || authority.issue("blue", "n1").unwrap();
        let first = issue();
        first.write(dir.path()).unwrap();
        let tls = PeerTls::new(&first, "blue", "n1").unwrap();
        let (mut files, old) = (Files::new(dir.path(), tls.clone()).unwrap(), tls.sign(b"x").unwrap().0);
        issue().write(dir.path()).unwrap();
        let before = UnixTime::since_unix_epoch(Duration::from_secs(1));
        assert_eq!(files.look_at(before), Look::Same);
        assert!(matches!(files.look_at(before), Look::Bad(text) if text.contains("NotValidYet")));
        assert_eq!(files.look_at(before), Look::Same, "told once");
        assert_eq!(tls.sign(b"x").unwrap().0, old);
        assert_eq!(files.look(), Look::Replaced, "the same files, later");
        assert_ne!(tls.sign(b"x").unwrap().0, old);
        assert_eq!(files.look(), Look::Same);
    }

    #[test]
    fn what_ends_while_it_counts_is_told_once_and_another_makes_it_good() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let write = |last_year: i32| {
            let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(last_year, 1, 1);
            let made = rcgen::KeyPair::generate().unwrap();
            std::fs::write(&cert, params.self_signed(&made).unwrap().pem()).unwrap();
            std::fs::write(&key, made.serialize_pem()).unwrap();
        };
        // 2040-06-01.
        let later = UnixTime::since_unix_epoch(Duration::from_secs(2_222_208_000));
        write(2040);
        let tls = PublicTls::open(&cert, &key, crate::pqc::Policy::default()).unwrap();
        let mut files = Files::public(&cert, &key, tls).unwrap();
        assert_eq!(files.look(), Look::Same);
        assert!(matches!(files.look_at(later), Look::Bad(text) if text.contains("it ended on")));
        assert_eq!(files.look_at(later), Look::Same, "told once");
        write(2039);
        assert_eq!(files.look_at(later), Look::Same);
        assert!(matches!(files.look_at(later), Look::Bad(_)), "one that has ended replaces nothing");
        write(2041);
        assert_eq!(files.look_at(later), Look::Replaced);
        assert_eq!(files.look_at(later), Look::Same);
    }
}
