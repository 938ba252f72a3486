//! A cache that is full: what was used last stays, what runs stays always.

use super::*;
use nf_core::reason::Reason;
use std::time::{Duration, SystemTime};

/// Publishes a version with one file of 100 bytes of its own.
async fn version(w: &World, name: &str) -> Manifest {
    let dir = w.root.join(name);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("w.onnx"), &name.repeat(100).as_bytes()[..100]).unwrap();
    let (model_id, version) = (ModelId::new("m1").unwrap(), VersionId::new(name).unwrap());
    let draft = Draft { model_id, version, runtime: Launch::Simulated {}, ..draft() };
    publish(&w.store, &dir, draft).await.unwrap()
}

fn here(w: &World, manifest: &Manifest) -> bool {
    w.root.join("cache/sha256").join(manifest.files[0].sha256.to_string()).exists()
}

/// As if the version had been used so many seconds ago.
fn used(w: &World, manifest: &Manifest, ago: u64) {
    let path = w.root.join("cache/sha256").join(manifest.files[0].sha256.to_string());
    fs::File::open(path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(ago)).unwrap();
}

#[tokio::test]
async fn what_was_not_used_for_the_longest_goes_first() {
    let w = world();
    let cache = Cache::open(&w.root.join("cache"), 250).unwrap();
    let (a, b, c, d) = (version(&w, "a").await, version(&w, "b").await, version(&w, "c").await, version(&w, "d").await);
    cache.fetch(&w.store, &a, None).await.unwrap();
    cache.fetch(&w.store, &b, None).await.unwrap();
    used(&w, &a, 100);
    used(&w, &b, 50);
    cache.lay_out(&a, &w.root.join("ra")).await.unwrap();
    fs::remove_dir_all(w.root.join("ra")).unwrap();
    cache.fetch(&w.store, &c, None).await.unwrap();
    assert_eq!((here(&w, &a), here(&w, &b), here(&w, &c)), (true, false, true), "a was used after b");
    // What runs stays, however long ago it was started.
    cache.lay_out(&a, &w.root.join("ra")).await.unwrap();
    used(&w, &a, 1000);
    cache.fetch(&w.store, &d, None).await.unwrap();
    assert_eq!((here(&w, &a), here(&w, &c), here(&w, &d)), (true, false, true));
    assert!(!w.root.join("cache/fetched").join(c.files[0].sha256.to_string()).exists());
    // And what is about to run, too.
    let pin = cache.pin(&d);
    let error = cache.fetch(&w.store, &b, None).await.unwrap_err();
    assert_eq!(error.reason(), Reason::NoCapacity, "{error}");
    drop(pin);
    cache.fetch(&w.store, &b, None).await.unwrap();
    assert_eq!((here(&w, &a), here(&w, &d), here(&w, &b)), (true, false, true));
}

#[tokio::test]
async fn a_version_larger_than_the_cache_evicts_nothing() {
    let w = world();
    let cache = Cache::open(&w.root.join("cache"), 150).unwrap();
    let a = version(&w, "a").await;
    cache.fetch(&w.store, &a, None).await.unwrap();
    let big = w.publish().await;
    let error = cache.fetch(&w.store, &big, None).await.unwrap_err();
    // Another node may have room: a reason for which the replica is not given up.
    assert_eq!(error.reason(), Reason::NoCapacity, "{error}");
    assert!(here(&w, &a) && error.to_string().contains("NF_MODEL_CACHE"), "{error}");
}
