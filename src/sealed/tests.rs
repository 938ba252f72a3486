//! What is sealed opens, for its reader alone and as a whole; and everything else is told apart.

use super::*;
use proptest::prelude::*;
use std::sync::LazyLock;

static KEY: LazyLock<PrivateKey> = LazyLock::new(|| PrivateKey::generate().unwrap());

fn sealed(plain: &[u8], context: &str) -> Vec<u8> {
    let mut to = Sealing::new(KEY.public(), context, Vec::new()).unwrap();
    to.write_all(plain).unwrap();
    to.finish().unwrap()
}

fn opened(stored: &[u8], context: &str) -> Result<Vec<u8>, Error> {
    let ours = |e: io::Error| e.get_ref().and_then(|e| e.downcast_ref::<Error>()).expect("one of ours").clone();
    let mut out = Vec::new();
    Opening::new(&KEY, context, stored).map_err(ours)?.read_to_end(&mut out).map_err(ours)?;
    Ok(out)
}

fn plain(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 / 7) as u8).collect()
}

/// The bytes of a chunk, as it stands in the file.
fn chunk(n: usize) -> std::ops::Range<usize> {
    HEADER + n * (CHUNK + TAG)..HEADER + (n + 1) * (CHUNK + TAG)
}

#[test]
fn files_of_every_length_come_back() {
    for length in [0, 1, 15, 16, 17, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 5] {
        let stored = sealed(&plain(length), "m");
        assert_eq!(stored.len() as u64, sealed_size(length as u64), "{length}");
        assert!(opened(&stored, "m").unwrap() == plain(length), "{length}");
        let mut read = Vec::new();
        Sealed::new(KEY.public(), "m", &plain(length)[..]).unwrap().read_to_end(&mut read).unwrap();
        assert!(read.len() == stored.len() && opened(&read, "m").unwrap() == plain(length), "{length}, as it is read");
    }
    assert_ne!(sealed(b"x", "m"), sealed(b"x", "m"), "each has a key of its own");
}

#[test]
fn chunks_that_are_cut_moved_doubled_or_of_another_file_are_found() {
    let (one, other) = (sealed(&plain(3 * CHUNK), "m"), sealed(&plain(3 * CHUNK), "m"));
    assert_eq!(opened(&one[..chunk(2).start], "m"), Err(Error::Cut(2 * CHUNK as u64)));
    assert_eq!(opened(&one[..HEADER], "m"), Err(Error::Changed(0)));
    assert_eq!(opened(&one[..one.len() - 1], "m"), Err(Error::Changed(2)));
    assert_eq!(opened(&one[..HEADER - 1], "m"), Err(Error::Cut(0)));
    let swapped = [&one[..HEADER], &one[chunk(1)], &one[chunk(0)], &one[chunk(2)]].concat();
    assert_eq!(opened(&swapped, "m"), Err(Error::Changed(0)));
    let left_out = [&one[..HEADER], &one[chunk(0)], &one[chunk(2)]].concat();
    assert_eq!(opened(&left_out, "m"), Err(Error::Changed(1)));
    let doubled = [&one[..HEADER], &one[chunk(0)], &one[chunk(0)], &one[chunk(1)], &one[chunk(2)]].concat();
    assert_eq!(opened(&doubled, "m"), Err(Error::Changed(1)));
    let of_another = [&one[..chunk(1).start], &other[chunk(1)], &one[chunk(2)]].concat();
    assert_eq!(opened(&of_another, "m"), Err(Error::Changed(1)));
    assert_eq!(opened(&[&one[..], &one[chunk(2)]].concat(), "m"), Err(Error::Longer));
    assert_eq!(opened(&[&one[..], b"x"].concat(), "m"), Err(Error::Longer));
}

#[test]
fn another_key_another_name_and_what_is_plain_are_told_apart() {
    let stored = sealed(b"weights", "m/v1/model.onnx");
    assert_eq!(opened(&stored, "m/v1/other.onnx"), Err(Error::Header));
    let other = PrivateKey::generate().unwrap();
    let error = Opening::new(&other, "m/v1/model.onnx", &stored[..]).err().unwrap().to_string();
    assert!(error.contains(&hex(&KEY.public().id())) && error.contains(&hex(&other.public().id())), "{error}");
    // Its number replaced by ours, it still is not for us.
    let forged = [&stored[..MAGIC.len()], &other.public().id(), &stored[MAGIC.len() + ID..]].concat();
    assert!(Opening::new(&other, "m/v1/model.onnx", &forged[..]).err().unwrap().to_string().contains("header"));
    for not in [&b""[..], b"GGUF", &stored[1..]] {
        assert_eq!(opened(not, "m"), Err(Error::Plain));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn one_flipped_bit_is_always_found(length in 0usize..3000, at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut stored = sealed(&plain(length), "m");
        let at = at.index(stored.len());
        stored[at] ^= 1 << bit;
        prop_assert!(opened(&stored, "m").is_err());
    }

    #[test]
    fn a_cut_at_any_byte_is_always_found(length in 0usize..3000, at in any::<prop::sample::Index>()) {
        let stored = sealed(&plain(length), "m");
        prop_assert!(opened(&stored[..at.index(stored.len())], "m").is_err());
    }

    #[test]
    fn what_somebody_made_up_neither_opens_nor_panics(mut made_up in prop::collection::vec(any::<u8>(), 0..4000), begun in any::<bool>()) {
        if begun {
            made_up.splice(..0, MAGIC.iter().copied().chain(KEY.public().id()));
        }
        prop_assert!(opened(&made_up, "m").is_err());
    }

    #[test]
    fn pieces_of_any_size_make_the_same_file(length in 0usize..200_000, pieces in prop::collection::vec(1usize..70_000, 1..9)) {
        let plain = plain(length);
        let mut to = Sealing::new(KEY.public(), "m", Vec::new()).unwrap();
        let mut rest = &plain[..];
        for piece in pieces.iter().cycle() {
            let (now, later) = rest.split_at(rest.len().min(*piece));
            to.write_all(now).unwrap();
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert!(opened(&to.finish().unwrap(), "m").unwrap() == plain);
    }
}
