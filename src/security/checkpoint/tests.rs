//! What counts as a member's word for where a trail ends, and that half a word does not.

use super::*;
use crate::security::tls::{Authority, Credentials};
use nf_core::audit::{Action, Chain};
use nf_core::testing;
use std::time::Duration;
use tempfile::TempDir;

fn checkpoint() -> Checkpoint {
    let mut chain = Chain::default();
    for n in 0..5 {
        chain.append(testing::record("ada", Action::JobStop, format!("job/{n}"), n));
    }
    chain.checkpoint("blue")
}

/// Keys of somebody of the group `blue`, in a directory that is theirs.
fn keys(authority: &Authority, name: &str, role: Role) -> (TempDir, Sign) {
    let dir = tempfile::tempdir().unwrap();
    let made: Credentials = authority.issue_as("blue", name, role).unwrap();
    authority.notary("blue", name).unwrap().unwrap().write(dir.path()).unwrap();
    let sign = signer(PeerTls::new(&made, "blue", name).unwrap(), dir.path());
    (dir, sign)
}

fn lab() -> (Authority, Signed, Authorities) {
    let authority = Authority::create("blue").unwrap();
    let signed = keys(&authority, "n1", Role::Server).1(&checkpoint()).unwrap();
    let roots = Authorities::read(&authority.cert).unwrap();
    (authority, signed, roots)
}

fn judge(signed: &Signed, roots: &Authorities) -> Result<(String, Halves), String> {
    verify(signed, &checkpoint(), roots, UnixTime::now()).map(|by| (by.member, by.halves))
}

/// A checkpoint whose second half was changed.
fn other(signed: &Signed, change: impl FnOnce(&mut Half)) -> Signed {
    let mut changed = signed.clone();
    change(changed.ml_dsa.as_mut().unwrap());
    changed
}

#[test]
fn a_checkpoint_counts_by_the_word_of_a_member_alone() {
    let (authority, signed, roots) = lab();
    let at = checkpoint();
    assert_eq!(judge(&signed, &roots), Ok(("n1".to_owned(), Halves::Both)));
    assert_eq!(read(&signed.note), Ok(at.clone()));
    let refused = |signed: &Signed, at: &Checkpoint| verify(signed, at, &roots, UnixTime::now()).unwrap_err();
    for other in [
        Checkpoint { size: 6, ..at.clone() },
        Checkpoint { head: Hash([1; 32]), ..at.clone() },
        Checkpoint { root: Hash([1; 32]), ..at.clone() },
        Checkpoint { origin: "green".into(), ..at.clone() },
    ] {
        assert!(refused(&signed, &other).contains("not this checkpoint"));
    }
    let (_dir, eve) = keys(&Authority::create("blue").unwrap(), "n1", Role::Server);
    assert!(refused(&eve(&at).unwrap(), &at).contains("does not count"), "another authority");
    let (_dir, worker) = keys(&authority, "n1", Role::Client);
    assert!(refused(&worker(&at).unwrap(), &at).contains("does not count"), "a worker has no say");
    let (_dir, n2) = keys(&authority, "n2", Role::Server);
    let n2 = n2(&at).unwrap();
    let mixed = Signed { certificate: n2.certificate.clone(), ..signed.clone() };
    assert!(refused(&mixed, &at).contains("another key"));
    let renamed = Signed { note: signed.note.replace("\u{2014} n1", "\u{2014} n2"), ..signed.clone() };
    assert!(refused(&renamed, &at).contains("not that of member n2"));
    let late = UnixTime::since_unix_epoch(Duration::from_secs(1 << 33));
    assert!(verify(&signed, &at, &roots, late).is_err(), "an expired certificate");
}

#[test]
fn one_half_of_a_checkpoint_is_no_word_of_a_member() {
    let (authority, signed, roots) = lab();
    let at = checkpoint();
    let bare = Signed { ml_dsa: None, ..signed.clone() };
    assert!(judge(&bare, &roots).unwrap_err().contains("--classical"), "it was taken away");
    let (_dir, n2) = keys(&authority, "n2", Role::Server);
    let n2 = n2(&at).unwrap();
    let theirs = Signed { ml_dsa: n2.ml_dsa.clone(), ..signed.clone() };
    assert!(judge(&theirs, &roots).unwrap_err().contains("n2"), "two members, half a word each");
    let (_dir, eve) = keys(&Authority::create("blue").unwrap(), "n1", Role::Server);
    let eve = eve(&at).unwrap();
    let broken = Signed { ml_dsa: eve.ml_dsa.clone(), ..signed.clone() };
    assert!(judge(&broken, &roots).unwrap_err().contains("no authority that you hold"));
    let mixed = other(&signed, |half| half.note.clone_from(&n2.ml_dsa.as_ref().unwrap().note));
    assert!(judge(&mixed, &roots).unwrap_err().contains("another key"));
    let half = other(&signed, |half| half.note = half.note.replace("\n5\n", "\n6\n"));
    assert!(judge(&half, &roots).unwrap_err().contains("not this checkpoint"), "of another end");
    let half = other(&signed, |half| half.certificate = half.certificate.replace("until 2", "until 3"));
    assert!(judge(&half, &roots).unwrap_err().contains("does not verify"), "its life was made longer");
    // The certificate of TLS lasts as long; with one that does not, the key's own end counts.
    let over = Duration::from_secs(UnixTime::now().as_secs() + 3 * 366 * 86_400);
    let (half, text) = (signed.ml_dsa.unwrap(), text(&at));
    let late = notary::verify(&half, &text, "blue", "n1", &roots.ml_dsa, UnixTime::since_unix_epoch(over));
    assert!(late.unwrap_err().contains("ended at"));
}

#[test]
fn a_checkpoint_from_before_there_were_two_halves_still_counts_and_says_so() {
    let (_, signed, roots) = lab();
    let bare = Signed { ml_dsa: None, ..signed.clone() };
    let classical = Ok(("n1".to_owned(), Halves::Classical));
    assert_eq!(judge(&bare, &roots.clone().or_classical()), classical);
    assert_eq!(judge(&signed, &roots.clone().or_classical()), Ok(("n1".to_owned(), Halves::Both)));
    let spoilt = other(&signed, |half| half.note = half.note.replace("\n5\n", "\n6\n"));
    assert!(judge(&spoilt, &roots.clone().or_classical()).is_err(), "what is there has to hold");
    // Who holds a ca.pem from before can judge one half.
    let old = Authorities { ml_dsa: Vec::new(), both: false, ..roots };
    assert_eq!([judge(&bare, &old), judge(&signed, &old)], [classical.clone(), classical]);
}

#[test]
fn no_changed_byte_of_a_note_or_its_certificate_counts() {
    let (_, signed, roots) = lab();
    let changed = |text: &str, place: usize| {
        let mut bytes = text.to_owned().into_bytes();
        bytes[place] ^= 1;
        String::from_utf8(bytes).ok()
    };
    for place in 0..signed.note.len() {
        let Some(note) = changed(&signed.note, place) else { continue };
        assert!(judge(&Signed { note, ..signed.clone() }, &roots).is_err(), "byte {place}");
    }
    for cut in 0..signed.note.len() {
        let Some(note) = signed.note.get(..cut) else { continue };
        assert!(judge(&Signed { note: note.to_owned(), ..signed.clone() }, &roots).is_err());
    }
    let half = signed.ml_dsa.clone().unwrap();
    for place in 0..half.note.len() {
        let Some(note) = changed(&half.note, place) else { continue };
        assert!(judge(&other(&signed, |half| half.note = note), &roots).is_err(), "byte {place} of the second note");
    }
    for place in 0..half.certificate.len() {
        let Some(text) = changed(&half.certificate, place) else { continue };
        let spoilt = other(&signed, |half| half.certificate = text);
        assert!(judge(&spoilt, &roots).is_err(), "byte {place} of its certificate");
    }
    let none = Signed { certificate: String::new(), ..signed };
    assert!(judge(&none, &roots).is_err());
    assert!(Authorities::read("").is_err() && read("").is_err());
}

#[test]
fn a_notarys_key_of_no_use_leaves_the_other_half() {
    let authority = Authority::create("blue").unwrap();
    let (dir, sign) = keys(&authority, "n1", Role::Server);
    let at = checkpoint();
    // Replaced without a restart, and not by another member's.
    authority.notary("blue", "n2").unwrap().unwrap().write(dir.path()).unwrap();
    assert_eq!(sign(&at).unwrap().ml_dsa, None);
    std::fs::write(dir.path().join("notary.key"), "-----BEGIN").unwrap();
    assert_eq!(sign(&at).unwrap().ml_dsa, None);
    authority.notary("green", "n1").unwrap().unwrap().write(dir.path()).unwrap();
    assert_eq!(sign(&at).unwrap().ml_dsa, None, "of another group of the same authority");
    authority.notary("blue", "n1").unwrap().unwrap().write(dir.path()).unwrap();
    assert!(sign(&at).unwrap().ml_dsa.is_some());
    std::fs::remove_file(dir.path().join("notary.key")).unwrap();
    assert_eq!(sign(&at).unwrap().ml_dsa, None);
}

#[test]
fn a_notary_is_replaced_without_a_checkpoint_that_an_auditor_refuses() {
    let authority = Authority::create("blue").unwrap();
    let (dir, sign) = keys(&authority, "n1", Role::Server);
    let roots = Authorities::read(&authority.cert).unwrap();
    let both = || {
        let signed = sign(&checkpoint()).unwrap();
        assert_eq!(judge(&signed, &roots), Ok(("n1".to_owned(), Halves::Both)));
        signed
    };
    let mut used = vec![both()];
    // Whichever file comes first: at no moment is there half a signature.
    for order in [["notary.pem", "notary.key"], ["notary.key", "notary.pem"]] {
        let new = tempfile::tempdir().unwrap();
        authority.notary("blue", "n1").unwrap().unwrap().write(new.path()).unwrap();
        let before = used.last().unwrap().ml_dsa.clone().unwrap().certificate;
        std::fs::copy(new.path().join(order[0]), dir.path().join(order[0])).unwrap();
        assert_eq!(both().ml_dsa.unwrap().certificate, before, "the old one goes on");
        std::fs::copy(new.path().join(order[1]), dir.path().join(order[1])).unwrap();
        used.push(both());
        assert_ne!(used.last().unwrap().ml_dsa.clone().unwrap().certificate, before, "the new one signs");
    }
    // What any of them signed counts as it did.
    for signed in &used {
        assert_eq!(judge(signed, &roots), Ok(("n1".to_owned(), Halves::Both)));
    }
    // Another's key takes nobody's place.
    authority.notary("blue", "n2").unwrap().unwrap().write(dir.path()).unwrap();
    both();
}

#[test]
fn a_checkpoint_of_another_group_is_not_signed() {
    let (_dir, sign) = keys(&Authority::create("blue").unwrap(), "n1", Role::Server);
    assert!(sign(&checkpoint()).is_some());
    assert_eq!(sign(&Checkpoint { origin: "green".into(), ..checkpoint() }), None);
}
