//! Versions whose files are encrypted in the store: they open on a node that has the key, as what they are and
//! as a whole, or not at all.

use super::*;
use crate::sealed::{MAGIC, PrivateKey};

struct Sealed {
    w: World,
    key: [u8; crate::sealed::PRIVATE],
    manifest: Manifest,
}

impl Sealed {
    async fn new() -> Self {
        let (w, key) = (world(), PrivateKey::generate().unwrap());
        let draft = Draft { encrypt_to: Some(key.public().clone()), ..draft() };
        let manifest = publish(&w.store, &w.root.join("in"), draft).await.unwrap();
        Self { key: *key.as_bytes(), w, manifest }
    }

    fn key(&self) -> PrivateKey {
        PrivateKey::from_bytes(self.key.into()).unwrap()
    }

    async fn fetch(&self) -> Result<(), String> {
        let store = self.w.store.clone().with_key(Some(self.key()));
        self.w.cache.fetch(&store, &self.manifest, None).await.map(drop).map_err(|e| e.to_string())
    }
}

#[tokio::test]
async fn what_is_encrypted_in_the_store_is_plain_on_the_node_that_has_the_key() {
    let sealed = Sealed::new().await;
    let stored = fs::read(sealed.w.stored("model.onnx")).unwrap();
    assert!(stored.starts_with(MAGIC) && stored.len() > 3 << 20);
    assert!(!stored.windows(16).any(|bytes| bytes == [7; 16]), "nothing of it is there to be read");
    let plain = Checksum::of(&vec![7; 3 << 20]);
    assert_eq!(sealed.manifest.main().unwrap().sha256, plain, "the manifest says what it is once it is open");
    assert_eq!(sealed.manifest.encrypted_to, Some(Checksum(sealed.key().public().id())));

    sealed.fetch().await.unwrap();
    let into = sealed.w.root.join("replica");
    sealed.w.cache.lay_out(&sealed.manifest, &into).await.unwrap();
    assert!(fs::read(into.join("model.onnx")).unwrap() == vec![7; 3 << 20]);
    assert_eq!(fs::read(into.join("sub/config.json")).unwrap(), b"{}");
    assert_eq!(sealed.w.cached(), 2, "what came encrypted does not stay");

    let (model, version) = model();
    let to = sealed.w.root.join("pulled");
    let store = sealed.w.store.clone().with_key(Some(sealed.key()));
    pull(&store, &model, &version, &to).await.unwrap();
    assert!(fs::read(to.join("model.onnx")).unwrap() == vec![7; 3 << 20]);
    let there: Vec<_> = fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(there.len(), 3, "{there:?}");

    let again = Draft { encrypt_to: Some(sealed.key().public().clone()), ..draft() };
    publish(&sealed.w.store, &sealed.w.root.join("in"), again).await.unwrap();
    assert_eq!(fs::read(sealed.w.stored("model.onnx")).unwrap(), stored, "publishing the same again changes nothing");
}

#[tokio::test]
async fn without_the_key_or_with_another_nothing_is_brought() {
    let sealed = Sealed::new().await;
    let id = Checksum(sealed.key().public().id()).to_string();
    let other = PrivateKey::generate().unwrap();
    let other_id = Checksum(other.public().id()).to_string();
    for (key, says) in
        [(None, "set NF_ARTEFACT_KEY".to_owned()), (Some(other), format!("NF_ARTEFACT_KEY is {other_id}"))]
    {
        let store = sealed.w.store.clone().with_key(key);
        let error = sealed.w.cache.fetch(&store, &sealed.manifest, None).await.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.reason(), Reason::ConfigInvalid, "a setting, and nothing about the bytes");
        assert!(text.contains("m1/v1") && text.contains(&id) && text.contains(&says), "{text}");
        assert_eq!(sealed.w.cached(), 0);
        let (to, (model, version)) = (sealed.w.root.join("pulled"), model());
        assert_eq!(pull(&store, &model, &version, &to).await.unwrap_err().reason(), Reason::ConfigInvalid);
        assert!(!to.exists(), "a refused pull leaves nothing behind, not even an empty directory");
    }
}

#[tokio::test]
async fn what_was_cut_changed_swapped_or_replaced_in_the_store_is_refused_with_its_reason() {
    let cases: [(&str, &str, fn(&mut Vec<u8>)); 6] = [
        ("model.onnx", "bytes, the manifest says", |bytes| bytes.truncate(2 << 20)),
        ("model.onnx", "longer than", |bytes| bytes.push(0)),
        ("model.onnx", "chunk 1 does not open", |bytes| bytes[crate::sealed::HEADER + (1 << 20) + 100] ^= 1),
        ("model.onnx", "its header was changed", |bytes| bytes[100] ^= 1),
        ("model.onnx", "encrypted to another key", |bytes| bytes[20] ^= 1),
        ("model.onnx", "is not encrypted", |bytes| bytes.fill(7)),
    ];
    for (file, says, change) in cases {
        let sealed = Sealed::new().await;
        sealed.w.tamper(&sealed.w.stored(file), change);
        let text = sealed.fetch().await.unwrap_err();
        assert!(text.contains(file) && text.contains(says), "{says}: {text}");
        assert_eq!(sealed.w.cached(), 0, "{says}");
    }
    // One file of the version in another's place, of the same length.
    let w = world();
    fs::write(w.root.join("in/other.onnx"), vec![8; 3 << 20]).unwrap();
    let key = PrivateKey::generate().unwrap();
    let draft = Draft { encrypt_to: Some(key.public().clone()), ..draft() };
    let manifest = publish(&w.store, &w.root.join("in"), draft).await.unwrap();
    let other = fs::read(w.stored("other.onnx")).unwrap();
    w.tamper(&w.stored("model.onnx"), |bytes| *bytes = other);
    let error = w.cache.fetch(&w.store.clone().with_key(Some(key)), &manifest, None).await.unwrap_err().to_string();
    assert!(error.contains("as another file"), "{error}");
}

/// The digest is looked at behind the decryption: what was sealed rightly, and is something else, is refused.
#[tokio::test]
async fn whoever_has_the_public_key_alone_makes_no_version_of_other_bytes() {
    let sealed = Sealed::new().await;
    let file = sealed.manifest.main().unwrap();
    let context = format!("m1\nv1\n{}", file.path);
    let mut to = crate::sealed::Sealing::new(sealed.key().public(), &context, Vec::new()).unwrap();
    std::io::Write::write_all(&mut to, &vec![9; 3 << 20]).unwrap();
    let forged = to.finish().unwrap();
    sealed.w.tamper(&sealed.w.stored("model.onnx"), |bytes| *bytes = forged);
    let text = sealed.fetch().await.unwrap_err();
    assert!(text.contains("SHA-256") && text.contains("the manifest says"), "{text}");
}

#[tokio::test]
async fn what_an_earlier_try_left_is_gone_on_from_or_thrown_away() {
    let sealed = Sealed::new().await;
    let stored = fs::read(sealed.w.stored("model.onnx")).unwrap();
    let left = sealed.w.root.join("cache/tmp").join(format!(".sealed-{}", sealed.manifest.main().unwrap().sha256));
    let of_another = Sealed::new().await;
    let other = fs::read(of_another.w.stored("model.onnx")).unwrap();
    for begun in [&stored[..2 << 20], &other[..2 << 20], &stored[..]] {
        fs::write(&left, begun).unwrap();
        sealed.fetch().await.unwrap();
        assert_eq!(sealed.w.cached(), 2);
        fs::remove_file(sealed.w.root.join("cache/sha256").join(sealed.manifest.main().unwrap().sha256.to_string()))
            .unwrap();
    }
}

#[tokio::test]
async fn a_consent_that_ends_takes_what_came_encrypted_too() {
    let sealed = Sealed::new().await;
    let tenant = nf_core::id::TenantId::new("t1").unwrap();
    let store = sealed.w.store.clone().with_key(Some(sealed.key()));
    sealed.w.cache.fetch(&store, &sealed.manifest, Some(&tenant)).await.unwrap();
    let left = sealed.w.root.join("cache/tmp").join(format!(".sealed-{}", sealed.manifest.main().unwrap().sha256));
    fs::write(&left, b"a broken download").unwrap();
    sealed.w.cache.purge(&tenant, sealed.manifest.sha256()).await.unwrap();
    assert_eq!(sealed.w.cached(), 0);
}
