//! Follows this process' certificate, key and authorities on disk, so that they are
//! replaced without a restart. Files that cannot be used, or of which only some are new,
//! leave the old ones in place. It does not know who writes them, or who is told.

use super::tls::{Credentials, Error, PeerTls};
use std::path::{Path, PathBuf};
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
    /// What is there is of no use, at two looks already; told once.
    Bad(String),
}

/// Follows the files of one directory.
pub struct Files {
    dir: PathBuf,
    tls: PeerTls,
    good: [String; 3],
    /// What was judged last, and what was wrong with it until it is told.
    seen: [String; 3],
    wrong: Option<String>,
    failed: bool,
}

fn read(dir: &Path) -> Result<(Credentials, [String; 3]), Error> {
    let found = Credentials::read(dir)?;
    let texts = [found.authority.clone(), found.cert.clone(), found.key.clone()];
    Ok((found, texts))
}

impl Files {
    /// `dir` holds what `tls` was made of.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn new(dir: &Path, tls: PeerTls) -> Result<Self, Error> {
        let (_, good) = read(dir)?;
        Ok(Self { dir: dir.to_owned(), tls, seen: good.clone(), good, wrong: None, failed: false })
    }

    /// Looks at the files. Three files are not written in one moment: what is wrong at one look
    /// alone is nobody's trouble.
    pub fn look(&mut self) -> Look {
        match read(&self.dir) {
            Ok((_, texts)) if texts == self.good => self.as_before(),
            Ok((_, texts)) if texts == self.seen => self.still_wrong(),
            Ok((found, texts)) => {
                self.seen = texts;
                match self.tls.replace(&found) {
                    Ok(()) => {
                        (self.good, self.wrong, self.failed) = (self.seen.clone(), None, false);
                        Look::Replaced
                    }
                    Err(error) => self.suspect(error.to_string()),
                }
            }
            Err(error) => {
                let unread = [error.to_string(), String::new(), String::new()];
                if self.seen == unread {
                    return self.still_wrong();
                }
                self.seen = unread;
                self.suspect(error.to_string())
            }
        }
    }

    fn as_before(&mut self) -> Look {
        (self.seen, self.wrong) = (self.good.clone(), None);
        match std::mem::take(&mut self.failed) {
            true => Look::Replaced,
            false => Look::Same,
        }
    }

    fn suspect(&mut self, text: String) -> Look {
        self.wrong = Some(text);
        Look::Same
    }

    fn still_wrong(&mut self) -> Look {
        let Some(text) = self.wrong.take() else { return Look::Same };
        self.failed = true;
        Look::Bad(text)
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
}
