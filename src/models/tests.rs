//! Manifests, store, cache and publishing, on temporary directories.

use super::*;
use nf_core::id::{ModelId, VersionId};
use proptest::prelude::*;

mod aside;
mod elsewhere;
mod full;
mod sealed;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

pub(super) struct World {
    _tmp: tempfile::TempDir,
    root: PathBuf,
    pub(super) store: Store,
    pub(super) cache: Cache,
}

pub(super) fn world() -> World {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().to_path_buf();
    fs::create_dir(root.join("in")).unwrap();
    fs::write(root.join("in/model.onnx"), vec![7; 3 << 20]).unwrap();
    fs::create_dir(root.join("in/sub")).unwrap();
    fs::write(root.join("in/sub/config.json"), b"{}").unwrap();
    let store = Store::open(&format!("file://{}/store", root.display()), &Default::default()).unwrap();
    let cache = Cache::open(&root.join("cache"), 1 << 30).unwrap();
    World { _tmp: tmp, root, store, cache }
}

fn model() -> (ModelId, VersionId) {
    (ModelId::new("m1").unwrap(), VersionId::new("v1").unwrap())
}

fn draft() -> Draft {
    let (model_id, version) = model();
    let process = Process {
        argv: vec!["{python}".into(), "{model}".into(), "--port={port}".into(), "{file:sub/config.json}".into()],
        env: Default::default(),
        limits_gpu: false,
        ready: Ready::default(),
        live: None,
        drain: None,
        metrics: None,
    };
    let runtime = Launch::Process(process);
    Draft {
        model_id,
        version,
        format: "onnx".into(),
        runtime,
        main: None,
        latency_ms: Some(50),
        memory: None,
        data_classes: vec![],
        encrypt_to: None,
    }
}

impl World {
    pub(super) async fn publish(&self) -> Manifest {
        publish(&self.store, &self.root.join("in"), draft()).await.unwrap()
    }

    fn stored(&self, file: &str) -> PathBuf {
        self.root.join("store/m1/v1").join(file)
    }

    /// Changes a published file, which is read-only.
    fn tamper(&self, path: &std::path::Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub(super) fn cached(&self) -> usize {
        ["sha256", "tmp"].iter().map(|d| fs::read_dir(self.root.join("cache").join(d)).unwrap().count()).sum()
    }
}

#[tokio::test]
async fn what_is_published_is_fetched_and_laid_out() {
    let w = world();
    let manifest = w.publish().await;
    let (model, version) = model();
    let found = w.store.resolve(&model, &version).await.unwrap().unwrap();
    assert_eq!((found.sha256(), found.main().unwrap().path.as_str()), (manifest.sha256(), "model.onnx"));
    assert_eq!(w.publish().await, manifest, "publishing the same again changes nothing");

    w.cache.fetch(&w.store, &found, None).await.unwrap();
    let into = w.root.join("replica");
    w.cache.lay_out(&found, &into).await.unwrap();
    assert_eq!(fs::read(into.join("sub/config.json")).unwrap(), b"{}");
    assert_eq!(fs::metadata(into.join("model.onnx")).unwrap().permissions().mode() & 0o777, 0o444);

    let Launch::Process(process) = &found.runtime else { panic!() };
    let slots = Slots { host: "h", port: Some(80), dir: std::path::Path::new("/d"), python: "py", part: None };
    assert_eq!(found.argv(process, &slots).unwrap(), ["py", "/d/model.onnx", "--port=80", "/d/sub/config.json"]);

    let pulled = pull(&w.store, &model, &version, &w.root.join("out")).await.unwrap();
    assert_eq!(pulled.sha256, found.digest());
    assert_eq!(Checksum::of(&fs::read(pulled.path.join("manifest.json")).unwrap()), found.digest());
    fs::write(w.root.join("in/model.onnx"), b"other").unwrap();
    let again = publish(&w.store, &w.root.join("in"), draft()).await;
    assert!(matches!(again, Err(Error::Exists { .. })), "{again:?}");
}

#[tokio::test]
async fn a_flipped_byte_a_cut_file_and_a_longer_one_are_refused_by_name() {
    let changes: [fn(&mut Vec<u8>); 3] = [|b| b[1 << 20] ^= 1, |b| b.truncate(100), |b| b.push(0)];
    for change in changes {
        let w = world();
        let manifest = w.publish().await;
        w.tamper(&w.stored("model.onnx"), change);
        let error = w.cache.fetch(&w.store, &manifest, None).await.unwrap_err();
        assert!(matches!(&error, Error::Mismatch { file, .. } if file == "model.onnx"), "{error}");
        assert_eq!(error.reason(), nf_core::reason::Reason::ArtifactMismatch);
        assert_eq!(w.cached(), 0, "nothing of it stays behind");
    }
}

#[tokio::test]
async fn a_cached_file_that_changed_is_thrown_out() {
    let w = world();
    let manifest = w.publish().await;
    w.cache.fetch(&w.store, &manifest, None).await.unwrap();
    let cached = w.root.join("cache/sha256").join(manifest.main().unwrap().sha256.to_string());
    w.tamper(&cached, |b| b[0] ^= 1);
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let (to, sha256) = (told.clone(), manifest.main().unwrap().sha256);
    let cache = w.cache.clone().telling(move |found| {
        assert_eq!(found.artifact.sha256, sha256);
        to.lock().unwrap().push(found.error.to_string());
    });
    // As often as it happens, it is no word about the store's bytes.
    for _ in 0..2 {
        let error = cache.lay_out(&manifest, &w.root.join("r1")).await.unwrap_err();
        assert!(matches!(error, Error::Rotted { .. }), "{error}");
        assert_eq!(error.reason(), nf_core::reason::Reason::ModelCopyCorrupt);
        assert!(!cached.exists());
        w.cache.fetch(&w.store, &manifest, None).await.unwrap();
        w.tamper(&cached, |b| b[0] ^= 1);
    }
    assert_eq!(told.lock().unwrap().len(), 2, "{told:?}");
    assert!(cache.lay_out(&manifest, &w.root.join("r1")).await.is_err());
    w.cache.fetch(&w.store, &manifest, None).await.unwrap();
    w.cache.lay_out(&manifest, &w.root.join("r2")).await.unwrap();
}

#[tokio::test]
async fn links_and_strangers_in_a_store_are_refused() {
    let w = world();
    let manifest = w.publish().await;
    fs::remove_file(w.stored("sub/config.json")).unwrap();
    symlink("/etc/hostname", w.stored("sub/config.json")).unwrap();
    assert!(matches!(w.cache.fetch(&w.store, &manifest, None).await, Err(Error::Unfit { .. })));
    fs::remove_file(w.stored("sub/config.json")).unwrap();
    let error = w.cache.fetch(&w.store, &manifest, None).await.unwrap_err().to_string();
    assert!(error.contains("sub/config.json"), "{error}");
    symlink("/etc", w.root.join("in/link")).unwrap();
    assert!(publish(&w.store, &w.root.join("in"), draft()).await.is_err());

    let (model, _) = model();
    assert!(w.store.resolve(&model, &VersionId::new("v2").unwrap()).await.unwrap().is_none());
    fs::rename(w.root.join("store/m1/v1"), w.root.join("store/m1/v3")).unwrap();
    let error = w.store.resolve(&model, &VersionId::new("v3").unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("says m1 v1"), "{error}");
}

#[tokio::test]
async fn weights_that_are_programs_reach_neither_a_store_nor_a_node() {
    const TORCH: &[u8] = b"\x80\x02cos\nsystem\nq\x00X\x02\x00\x00\x00idq\x01\x85q\x02Rq\x03.";
    for (name, says) in [("model.onnx", "pickle"), ("w.safetensors", "pickle"), ("w.pt", "runs as a program")] {
        let w = world();
        fs::write(w.root.join("in").join(name), TORCH).unwrap();
        let error = publish(&w.store, &w.root.join("in"), draft()).await.unwrap_err().to_string();
        assert!(error.contains(says) && !w.root.join("store/m1").exists(), "{name}: {error}");
    }
    // A store that somebody filled by other means: each digest is right.
    let w = world();
    let manifest = w.publish().await;
    let old = manifest.main().unwrap().clone();
    w.tamper(&w.stored("model.onnx"), |bytes| *bytes = TORCH.to_vec());
    let (size, sum) = (format!("\"size\": {}", TORCH.len()), Checksum::of(TORCH).to_string());
    w.tamper(&w.stored("manifest.json"), |bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        let text = text.replace(&format!("\"size\": {}", old.size), &size).replace(&old.sha256.to_string(), &sum);
        *bytes = text.into_bytes();
    });
    let (model, version) = model();
    let found = w.store.resolve(&model, &version).await.unwrap().unwrap();
    assert_eq!(found.main().unwrap().sha256, Checksum::of(TORCH));
    let error = w.cache.fetch(&w.store, &found, None).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unfit { file, text } if file == "model.onnx" && text.contains("pickle")),
        "{error}"
    );
    assert_eq!(w.cached(), 0);
}

/// One member of a tar archive, as its format has it: a header of 512 bytes, then the body.
fn tar_of(name: &str, body: &[u8]) -> Vec<u8> {
    let mut head = [0; 512];
    head[..name.len()].copy_from_slice(name.as_bytes());
    head[100..107].copy_from_slice(b"0000644");
    head[124..135].copy_from_slice(format!("{:011o}", body.len()).as_bytes());
    head[148..156].fill(b' ');
    head[156] = b'0';
    let sum: u32 = head.iter().map(|b| u32::from(*b)).sum();
    head[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut out = [&head[..], body].concat();
    out.resize(out.len().next_multiple_of(512) + 1024, 0);
    out
}

#[tokio::test]
async fn an_archive_stays_the_file_that_it_is() {
    let w = world();
    let evil = tar_of("../../escaped", b"out");
    fs::write(w.root.join("in/extra.txt"), &evil).unwrap();
    let manifest = w.publish().await;
    w.cache.fetch(&w.store, &manifest, None).await.unwrap();
    let into = w.root.join("replica");
    w.cache.lay_out(&manifest, &into).await.unwrap();
    let mut there: Vec<_> =
        fs::read_dir(&into).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    there.sort();
    assert_eq!(there, ["extra.txt", "model.onnx", "sub"]);
    assert_eq!(fs::read(into.join("extra.txt")).unwrap(), evil);
    let left = |dir: &std::path::Path| fs::read_dir(dir).unwrap().any(|e| e.unwrap().file_name() == "escaped");
    assert!(!left(&w.root) && !left(&into) && !left(&w.root.join("cache")));
}

#[test]
fn other_stores_are_refused_with_what_is_supported() {
    for url in
        ["oci://host/x", "http://user:secret@host/x", "s3://user:secret@b/x", "models", "file://models", "", "s3://"]
    {
        let error = Store::open(url, &Default::default()).unwrap_err().to_string();
        assert!(error.contains("file:///absolute/directory") && !error.contains("secret"), "{error}");
    }
}

const GOOD: &str = r#"{"model_id":"m1","version":"v1","format":"onnx",
    "files":[{"path":"a/b.onnx","size":3,"sha256":"HASH"}],
    "runtime":{"kind":"process","argv":["{python}","{file:a/b.onnx}","{port}"],"ready":{"path":"/h","timeout_s":5}}}"#;

fn good() -> String {
    GOOD.replace("HASH", &"0".repeat(64))
}

#[test]
fn bad_manifests_are_refused_with_the_field() {
    Manifest::parse("m1 v1", good().as_bytes()).unwrap();
    let simulated = r#"{"kind":"simulated"}"#;
    let process = &good()[good().find("\"runtime\":").unwrap() + 10..good().len() - 1];
    Manifest::parse("m1 v1", good().replace(process, simulated).as_bytes()).unwrap();
    for (from, to, says) in [
        ("a/b.onnx", "../b", "relative file name"),
        ("a/b.onnx", "/b", "relative file name"),
        ("a/b.onnx", "a//b", "relative file name"),
        ("a/b.onnx", "manifest.json", "own name"),
        ("a/b.onnx\",\"size\"", "a/c.onnx\",\"size\"", "not among the files"),
        ("{port}", "{prot}", "{port}"),
        ("{port}", "{port", "single brace"),
        ("\"format\"", "\"formal\"", "unknown field"),
        ("\"argv\"", "\"args\"", "unknown field"),
        ("\"timeout_s\":5", "\"timeout_s\":0", "runtime.ready.timeout_s"),
        ("\"/h\"", "\"h\"", "runtime.ready.path"),
        ("\"size\":3", "\"size\":-3", "invalid value"),
        ("\"size\":3", "\"size\":18446744073709551616", "invalid"),
        ("\"m1\"", "\"../m1\"", "model_id"),
        ("\"kind\":\"process\"", "\"kind\":\"shell\"", "shell"),
        ("\"ready\"", "\"env\":{\"NF_PORT\":\"1\"},\"ready\"", "runtime.env.NF_PORT"),
        ("\"ready\"", "\"env\":{\"LD_PRELOAD\":\"x\"},\"ready\"", "runtime.env.LD_PRELOAD"),
        ("\"ready\"", "\"env\":{\"HF_TRUST_REMOTE_CODE\":\"1\"},\"ready\"", "runtime.env.HF_TRUST_REMOTE_CODE"),
        ("\"ready\"", "\"env\":{\"CUDA_VISIBLE_DEVICES\":\"0\"},\"ready\"", "runtime.env.CUDA_"),
        ("\"ready\"", "\"env\":{\"PATH\":\"/tmp\"},\"ready\"", "runtime.env.PATH"),
        ("\"ready\"", "\"env\":{\"A\\nLD_PRELOAD\":\"x\"},\"ready\"", "runtime.env.A"),
        ("\"ready\"", "\"env\":{\"A\":\"x\\u0000LD_PRELOAD=y\"},\"ready\"", "no NUL"),
        ("\"ready\"", "\"env\":{\"PYTHONPATH\":\"x\"},\"ready\"", "runtime.env.PYTHONPATH"),
        ("\"ready\"", "\"env\":{\"VAULT_TOKEN\":\"x\"},\"ready\"", "runtime.env.VAULT_TOKEN"),
        ("\"ready\"", "\"env\":{\"NVIDIA_VISIBLE_DEVICES\":\"all\"},\"ready\"", "runtime.env.NVIDIA_"),
        ("\"{port}\"", "\"--Trust-Remote-Code=1\"", "program of its own"),
        ("a/b.onnx", "a/b.pkl", "runs as a program"),
        ("\"kind\":\"process\",", "\"kind\":\"simulated\",", "unknown field"),
    ] {
        let text = good().replace(from, to);
        assert_ne!(text, good(), "{from}");
        let error = Manifest::parse("m1 v1", text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(says), "{to}: {error}");
    }
    let twice = good().replace("}],", r#"},{"path":"a","size":0,"sha256":"HASH"}],"#).replace("HASH", &"0".repeat(64));
    assert!(Manifest::parse("m1 v1", twice.as_bytes()).unwrap_err().to_string().contains("below another file"));
    let error = Manifest::parse("m1 v1", &vec![b' '; MAX_MANIFEST_BYTES + 1]).unwrap_err();
    assert_eq!(error.reason(), nf_core::reason::Reason::ArtifactTooLarge);
    assert!(Manifest::parse("m1 v1", "[".repeat(100_000).as_bytes()).is_err(), "deep JSON");
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = Manifest::parse("x", &bytes);
    }

    #[test]
    fn no_change_of_a_good_manifest_makes_it_panic(at in 0usize..300, byte in any::<u8>(), cut in 0usize..300) {
        let mut bytes = good().into_bytes();
        let end = bytes.len();
        bytes[at % end] = byte;
        let _ = Manifest::parse("x", &bytes);
        bytes.truncate(cut);
        let _ = Manifest::parse("x", &bytes);
    }

    #[test]
    fn an_accepted_name_never_leaves_its_directory(name in "[a-z./\\\\]{0,12}") {
        if let Ok(name) = FileName::new(&name) {
            let path = name.under(std::path::Path::new("/root/dir"));
            prop_assert!(path.starts_with("/root/dir") && path.components().all(|c| c != std::path::Component::ParentDir));
        }
    }

    #[test]
    fn a_word_never_makes_the_template_panic(word in "[{}a-z:]{0,16}") {
        let text = good().replace("{port}", &word);
        if let Ok(manifest) = Manifest::parse("x", text.as_bytes()) {
            let Launch::Process(process) = &manifest.runtime else { unreachable!() };
            let slots = Slots { host: "h", port: None, dir: std::path::Path::new("/d"), python: "py", part: None };
            let _ = manifest.argv(process, &slots);
        }
    }
}

#[test]
fn who_says_that_it_limits_itself_is_told_to_what() {
    let says = good().replacen("\"argv\"", "\"limits_gpu\":true,\"argv\"", 1);
    let told = says.replacen("{port}", "{gpu_memory_part}", 1);
    assert!(Manifest::parse("x", told.as_bytes()).unwrap().limits_gpu());
    let text = Manifest::parse("x", says.as_bytes()).unwrap_err().to_string();
    assert!(text.contains("runtime.limits_gpu") && text.contains("{gpu_memory_part}"), "{text}");
    assert!(!Manifest::parse("x", good().as_bytes()).unwrap().limits_gpu(), "nobody does who does not say so");
}

#[tokio::test]
async fn what_is_about_people_is_found_again_and_removed_unless_somebody_else_needs_it() {
    let w = world();
    let manifest = w.publish().await;
    let tenant = |name| nf_core::id::TenantId::new(name).unwrap();
    w.cache.purge(&tenant("t1"), manifest.sha256()).await.unwrap();
    for of in ["t1", "t2", "t1"] {
        w.cache.fetch(&w.store, &manifest, Some(&tenant(of))).await.unwrap();
    }
    assert_eq!(w.cached(), 2);
    w.cache.purge(&tenant("t3"), manifest.sha256()).await.unwrap();
    w.cache.purge(&tenant("t1"), manifest.sha256()).await.unwrap();
    assert_eq!(w.cached(), 2, "the other tenant's consent stands");
    // Another process takes over. A download that broke half way left a part.
    fs::write(w.root.join("cache/tmp").join(manifest.files[0].sha256.to_string()), b"about pe").unwrap();
    let cache = Cache::open(&w.root.join("cache"), 1 << 30).unwrap();
    cache.purge(&tenant("t2"), manifest.sha256()).await.unwrap();
    assert_eq!(w.cached(), 0);
    assert_eq!(fs::read_dir(w.root.join("cache/personal")).unwrap().count(), 0);
    cache.purge(&tenant("t2"), manifest.sha256()).await.unwrap();
}

#[tokio::test]
async fn a_list_that_was_damaged_removes_nothing_and_says_so() {
    let w = world();
    let manifest = w.publish().await;
    let tenant = nf_core::id::TenantId::new("t1").unwrap();
    w.cache.fetch(&w.store, &manifest, Some(&tenant)).await.unwrap();
    let list = w.root.join("cache/personal").join(format!("t1.{}", manifest.digest()));
    fs::write(&list, "../../secret\n").unwrap();
    assert!(w.cache.purge(&tenant, manifest.sha256()).await.is_err());
    assert_eq!(w.cached(), 2);
}

#[test]
fn a_manifest_names_classes_of_data_and_not_too_many() {
    let with = |classes: &str| {
        let text = format!(
            r#"{{"model_id":"m1","version":"v1","files":[],"format":"onnx","runtime":{{"kind":"simulated"}},"data_classes":{classes}}}"#
        );
        Manifest::parse("m1 v1", text.as_bytes()).map(|manifest| manifest.data_classes.len())
    };
    assert_eq!(with(r#"["personal","personal-health"]"#).unwrap(), 2);
    let many = format!("[{}]", vec!["\"c\""; 17].join(","));
    for bad in [r#"["a b"]"#, r#"[""]"#, "7", many.as_str()] {
        assert!(with(bad).is_err(), "{bad}");
    }
}
