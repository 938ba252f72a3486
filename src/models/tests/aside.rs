//! Bad copies are there for whoever looks into them, within bounds, and go when a tenant's consent ends.

use super::*;
use crate::models::aside::MOST;
use nf_core::id::TenantId;

/// What is kept, in the order in which it came.
fn kept(w: &World) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(w.root.join("cache/quarantine")) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// A cache that says what became of bad copies, with what it said.
fn heard(cache: &Cache) -> (Cache, Arc<Mutex<Vec<Kept>>>) {
    let told: Arc<Mutex<Vec<Kept>>> = Arc::default();
    let to = told.clone();
    (cache.clone().telling(move |found| to.lock().unwrap().push(found.kept.clone())), told)
}

#[tokio::test]
async fn a_bad_copy_is_kept_aside_as_it_was_found_and_said_where() {
    let w = world();
    let manifest = w.publish().await;
    let (cache, told) = heard(&w.cache);
    let digest = manifest.main().unwrap().sha256;
    cache.fetch(&w.store, &manifest, None).await.unwrap();
    w.tamper(&w.root.join("cache/sha256").join(digest.to_string()), |b| b[0] ^= 1);
    cache.lay_out(&manifest, &w.root.join("r1")).await.unwrap_err();
    w.tamper(&w.stored("model.onnx"), |b| b[1] ^= 1);
    cache.fetch(&w.store, &manifest, None).await.unwrap_err();
    w.tamper(&w.stored("model.onnx"), |b| b.push(0));
    cache.fetch(&w.store, &manifest, None).await.unwrap_err();
    let found = kept(&w);
    let told = told.lock().unwrap().clone();
    assert_eq!(told, found.iter().cloned().map(Kept::At).collect::<Vec<_>>());
    let good = fs::read(w.root.join("in/model.onnx")).unwrap();
    let bad = |change: fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    let wanted = [bad(|b| b[0] ^= 1), bad(|b| b[1] ^= 1), bad(|b| (b[1] ^= 1, b.push(0)).0)];
    for (path, wanted) in found.iter().zip(&wanted) {
        assert!(fs::read(path).unwrap() == *wanted, "{}", path.display());
        assert!(path.file_name().unwrap().to_string_lossy().starts_with(&digest.to_string()));
    }
    assert_eq!((found.len(), w.cached()), (3, 1), "and nothing of it is in the cache");
    let mode = fs::metadata(w.root.join("cache/quarantine")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn of_an_encrypted_file_what_came_is_kept_and_nothing_that_was_opened() {
    let w = world();
    let key = crate::sealed::PrivateKey::generate().unwrap();
    let draft = Draft { encrypt_to: Some(key.public().clone()), ..draft() };
    let manifest = publish(&w.store, &w.root.join("in"), draft).await.unwrap();
    let store = w.store.clone().with_key(Some(key));
    w.tamper(&w.stored("model.onnx"), |b| *b.last_mut().unwrap() ^= 1);
    assert!(matches!(w.cache.fetch(&store, &manifest, None).await, Err(Error::Mismatch { .. })));
    let found = kept(&w);
    assert_eq!(found.len(), 1);
    assert!(fs::read(&found[0]).unwrap() == fs::read(w.stored("model.onnx")).unwrap());
    assert_eq!(w.cached(), 0);
}

#[tokio::test]
async fn what_is_kept_has_bounds_and_what_came_first_stays() {
    let w = world();
    let manifest = w.publish().await;
    w.tamper(&w.stored("model.onnx"), |b| b[0] ^= 1);
    let (cache, told) = heard(&w.cache);
    for _ in 0..=MOST {
        cache.fetch(&w.store, &manifest, None).await.unwrap_err();
    }
    let told = told.lock().unwrap().clone();
    let last = told.last().unwrap().to_string();
    assert!(last.contains("not kept") && last.contains("16 files"), "{last}");
    assert_eq!(kept(&w).iter().cloned().map(Kept::At).collect::<Vec<_>>(), told[..MOST]);
    assert_eq!(w.cached(), 0, "what is not kept is removed all the same");
    // A tenth of the cache's limit, in bytes: one such file fits, and two do not.
    fs::remove_dir_all(w.root.join("cache/quarantine")).unwrap();
    let small = Cache::open(&w.root.join("cache"), 10 * (4 << 20)).unwrap();
    for _ in 0..2 {
        small.fetch(&w.store, &manifest, None).await.unwrap_err();
        assert_eq!((kept(&w).len(), w.cached()), (1, 0));
    }
    // A link in the place of a file is taken away, and leads nowhere from there.
    fs::remove_dir_all(w.root.join("cache/quarantine")).unwrap();
    w.tamper(&w.stored("model.onnx"), |b| b[0] ^= 1);
    cache.fetch(&w.store, &manifest, None).await.unwrap();
    let cached = w.root.join("cache/sha256").join(manifest.main().unwrap().sha256.to_string());
    fs::remove_file(&cached).unwrap();
    symlink("/etc/hostname", &cached).unwrap();
    cache.lay_out(&manifest, &w.root.join("r1")).await.unwrap_err();
    assert!(fs::symlink_metadata(&cached).is_err() && kept(&w).is_empty());
}

#[tokio::test]
async fn a_purge_takes_what_was_kept_aside_too() {
    let w = world();
    let (manifest, tenant) = (w.publish().await, TenantId::new("t1").unwrap());
    w.tamper(&w.stored("model.onnx"), |b| b[0] ^= 1);
    w.cache.fetch(&w.store, &manifest, Some(&tenant)).await.unwrap_err();
    assert_eq!(kept(&w).len(), 1);
    w.cache.purge(&tenant, manifest.sha256()).await.unwrap();
    assert_eq!((kept(&w).len(), w.cached()), (0, 0));
}
