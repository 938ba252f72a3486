//! Publishing a directory as a model version, and pulling a version into a
//! directory: what `nf model publish` and `nf model pull` do. A version appears
//! in the store as a whole, by one rename or by its manifest, which is written last,
//! and never changes afterwards.

use super::cache::sync_dir;
use super::checksum::copy;
use super::directory::open_regular;
use super::fetch::{Fetched, bring};
use super::manifest::context;
use super::remote::Remote;
use super::store::{Place, file_key, manifest_key};
use super::{Artifact, Asked, Checksum, Error, FileName, Launch, MAX_FILES, Manifest, Store, blocking, format};
use crate::sealed::{PublicKey, Sealed, Sealing};
use nf_core::id::{Label, ModelId, VersionId};
use serde::Serialize;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What a publisher says of a version; digests and sizes are computed.
#[derive(Clone, Debug)]
pub struct Draft {
    pub model_id: ModelId,
    pub version: VersionId,
    pub format: String,
    pub runtime: Launch,
    /// The model itself among the files; None: the largest.
    pub main: Option<FileName>,
    pub latency_ms: Option<u32>,
    /// Bytes.
    pub memory: Option<u64>,
    /// What kinds of data the files hold.
    pub data_classes: Vec<Label>,
    /// Whose key the files are encrypted to in the store; None: they lie there as they are.
    pub encrypt_to: Option<PublicKey>,
}

impl Draft {
    fn context(&self, file: &FileName) -> String {
        context(&self.model_id, &self.version, file)
    }
}

/// What was pulled, as `nf model pull -o json` prints it.
#[derive(Clone, Debug, Serialize)]
pub struct Pulled {
    pub model_id: ModelId,
    pub version: VersionId,
    /// Of the manifest.
    pub sha256: Checksum,
    pub path: PathBuf,
    /// How its files came, in the manifest's order.
    pub fetched: Vec<Fetched>,
}

/// Publishes the files below `dir`. Publishing the same again changes nothing.
///
/// # Errors
/// [`Error::Exists`] when the version is there with other content; [`Error::Mismatch`] for links.
pub async fn publish(store: &Store, dir: &Path, draft: Draft) -> Result<Manifest, Error> {
    let (store, dir) = (store.clone(), dir.to_path_buf());
    blocking(move |asked| publish_blocking(&store, &dir, draft, asked)).await
}

fn publish_blocking(store: &Store, dir: &Path, draft: Draft, asked: &Asked) -> Result<Manifest, Error> {
    let root = match &store.place {
        Place::Directory(root) => root,
        Place::Remote(remote) => return send(store, remote, dir, draft, asked),
    };
    fs::create_dir_all(root).map_err(Error::at(root))?;
    // On the store's own file system, so that the last step is a rename. Names of
    // models start with a letter or digit, so this is never taken for one.
    let staging = root.join(format!(".publish-{}", uuid::Uuid::now_v7()));
    let done = stage(store, root, dir, &staging, draft, asked);
    if done.is_err() || staging.exists() {
        let _ = fs::remove_dir_all(&staging);
    }
    done
}

fn stage(
    store: &Store,
    root: &Path,
    dir: &Path,
    staging: &Path,
    draft: Draft,
    asked: &Asked,
) -> Result<Manifest, Error> {
    fs::create_dir(staging).map_err(Error::at(staging))?;
    let mut files = Vec::new();
    for name in listing(dir)? {
        files.push(take_in(dir, name, staging, &draft, asked)?);
    }
    let (model, version) = (draft.model_id.clone(), draft.version.clone());
    let (manifest, bytes) = describe(files, draft)?;
    let path = staging.join("manifest.json");
    let mut file = File::create_new(&path).map_err(Error::at(&path))?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(Error::at(&path))?;
    sync_dir(staging)?;

    let parent = root.join(model.as_str());
    let to = parent.join(version.as_str());
    fs::create_dir_all(&parent).map_err(Error::at(&parent))?;
    // A rename onto a directory that holds something fails, so two publishers can't mix.
    match fs::rename(staging, &to) {
        Ok(()) => sync_dir(&parent).map(|()| manifest),
        Err(e) => match same(store, &manifest)? {
            true => Ok(manifest),
            false => Err(Error::at(&to)(e)),
        },
    }
}

/// Whether the store has this very version; false: it has none.
fn same(store: &Store, manifest: &Manifest) -> Result<bool, Error> {
    let (model, version) = (&manifest.model_id, &manifest.version);
    match store.resolve_blocking(model, version)? {
        Some(there) if there == *manifest => Ok(true),
        Some(_) => Err(Error::Exists { model: model.to_string(), version: version.to_string() }),
        None => Ok(false),
    }
}

/// To a store behind HTTP: the files, then the manifest, which makes them a version. Two who publish other bytes
/// as one version at once may mix their files; then they do not fit the manifest, and nobody runs them.
fn send(store: &Store, remote: &Remote, dir: &Path, draft: Draft, asked: &Asked) -> Result<Manifest, Error> {
    let (model, version) = (draft.model_id.clone(), draft.version.clone());
    let mut files = Vec::new();
    for name in listing(dir)? {
        let mut from = open_regular(dir, &name.under(dir))?;
        let (size, sha256) = copy(&mut from, &mut io::sink(), u64::MAX - 1, asked, name.as_str())?;
        format::judge(&name, &mut from)?;
        files.push(Artifact { path: name, size, sha256 });
    }
    let sealing = draft.clone();
    let (manifest, bytes) = describe(files, draft)?;
    if same(store, &manifest)? {
        return Ok(manifest);
    }
    for artifact in &manifest.files {
        asked.check()?;
        let mut from = open_regular(dir, &artifact.path.under(dir))?;
        let key = file_key(&model, &version, artifact.path.as_str());
        match &sealing.encrypt_to {
            Some(to) => {
                let sealed = Sealed::new(to, &sealing.context(&artifact.path), from);
                remote.upload(&key, &mut sealed.map_err(Error::io(artifact.path.as_str()))?)?;
            }
            None => remote.upload(&key, &mut from)?,
        }
    }
    match remote.put(&manifest_key(&model, &version), bytes, true)? || same(store, &manifest)? {
        true => Ok(manifest),
        false => Err(Error::Missing { model: model.to_string(), version: version.to_string() }),
    }
}

/// The manifest of these files, and its bytes.
fn describe(mut files: Vec<Artifact>, draft: Draft) -> Result<(Manifest, Vec<u8>), Error> {
    // The model first, the rest by name: the same directory gives the same manifest.
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let main = match &draft.main {
        Some(main) => files.iter().position(|f| f.path == *main).ok_or_else(|| Error::Mismatch {
            file: main.to_string(),
            text: "named as the model, but not in the directory".into(),
        })?,
        None => files.iter().enumerate().max_by_key(|(i, f)| (f.size, usize::MAX - i)).map_or(0, |(i, _)| i),
    };
    if main < files.len() {
        files[..=main].rotate_right(1);
    }
    let what = format!("{} {}", draft.model_id, draft.version);
    let mut manifest = Manifest::unsealed(draft.model_id, draft.version, files, draft.format, draft.runtime);
    (manifest.latency_ms, manifest.memory) = (draft.latency_ms, draft.memory);
    manifest.data_classes = draft.data_classes;
    manifest.encrypted_to = draft.encrypt_to.map(|key| Checksum(key.id()));
    manifest.seal(&what)
}

/// Copies one file of `dir` into the staging directory, hashing it on the way, and encrypting it behind that.
fn take_in(dir: &Path, name: FileName, staging: &Path, draft: &Draft, asked: &Asked) -> Result<Artifact, Error> {
    let mut from = open_regular(dir, &name.under(dir))?;
    let to = name.under(staging);
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(Error::at(parent))?;
    }
    let mut out = File::create_new(&to).map_err(Error::at(&to))?;
    let (size, sha256) = match &draft.encrypt_to {
        Some(key) => {
            let mut sealing = Sealing::new(key, &draft.context(&name), &mut out).map_err(Error::at(&to))?;
            let copied = copy(&mut from, &mut sealing, u64::MAX - 1, asked, name.as_str())?;
            sealing.finish().map_err(Error::at(&to))?;
            copied
        }
        None => copy(&mut from, &mut out, u64::MAX - 1, asked, name.as_str())?,
    };
    format::judge(&name, &mut from)?;
    out.set_permissions(Permissions::from_mode(0o444)).map_err(Error::at(&to))?;
    out.sync_all().map_err(Error::at(&to))?;
    Ok(Artifact { path: name, size, sha256 })
}

/// The plain files below `dir`, by name; a manifest of an earlier pull is left out.
fn listing(dir: &Path) -> Result<Vec<FileName>, Error> {
    let mut out = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(&at).map_err(Error::at(&at))? {
            let entry = entry.map_err(Error::at(&at))?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(Error::at(&at))?);
            let name = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().into_owned();
            let wrong = |text: String| Error::Mismatch { file: name.clone(), text };
            if kind.is_dir() {
                todo.push(path);
            } else if !kind.is_file() {
                return Err(wrong("a link or special file; a version holds plain files only".into()));
            } else if name != "manifest.json" {
                out.push(FileName::new(&name).map_err(wrong)?);
            }
            if out.len() > MAX_FILES || todo.len() > MAX_FILES {
                return Err(wrong(format!("more than {MAX_FILES} files")));
            }
        }
    }
    Ok(out)
}

/// Fetches a version into `into`, each file verified, its manifest beside them.
///
/// # Errors
/// [`Error::Missing`]; [`Error::Refused`] without the key of an encrypted version, and then nothing
/// is written; or [`Error::Mismatch`] with the file.
pub async fn pull(store: &Store, model: &ModelId, version: &VersionId, into: &Path) -> Result<Pulled, Error> {
    let (store, model, version, into) = (store.clone(), model.clone(), version.clone(), into.to_path_buf());
    blocking(move |asked| {
        let manifest = store
            .resolve_blocking(&model, &version)?
            .ok_or_else(|| Error::Missing { model: model.to_string(), version: version.to_string() })?;
        if let Some(id) = manifest.encrypted_to {
            // Before anything is made: a pull that is refused leaves nothing behind.
            store.key_for(&manifest, id)?;
        }
        fs::create_dir_all(&into).map_err(Error::at(&into))?;
        let mut fetched = Vec::new();
        for artifact in &manifest.files {
            let to = artifact.path.under(&into);
            let parent = to.parent().unwrap_or(&into).to_path_buf();
            fs::create_dir_all(&parent).map_err(Error::at(&parent))?;
            let partial = into.join(format!(".partial-{}", artifact.sha256));
            // Whoever pulls sees what is wrong, and has the store to look at.
            let spoilt = |came: &Path| _ = fs::remove_file(came);
            fetched.push(bring(&store, &manifest, artifact, [&partial, &to], asked, spoilt)?);
        }
        let to = into.join("manifest.json");
        fs::write(&to, store.manifest_bytes_blocking(&manifest)?).map_err(Error::at(&to))?;
        let path = into.canonicalize().map_err(Error::at(&into))?;
        Ok(Pulled { model_id: model, version, sha256: manifest.digest(), path, fetched })
    })
    .await
}
