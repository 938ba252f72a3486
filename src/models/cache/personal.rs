//! Which files of the cache hold data about people, and for whom: written down before the
//! first of them is fetched, so that they can be found and removed when the tenant's consent
//! ends, also by another process than the one that fetched them. It does not know consents.

use super::super::fetch::sealed_name;
use super::super::{Checksum, Error, Manifest, blocking};
use super::{Cache, PARTS, sync_dir};
use nf_core::id::TenantId;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

/// The largest list of files that is read back: a digest a line.
const MAX_LIST: u64 = 65 * (super::super::MAX_FILES as u64 + 1);

impl Cache {
    fn lists(&self) -> PathBuf {
        self.dir.join("personal")
    }

    fn list(&self, tenant: &TenantId, manifest: Checksum) -> PathBuf {
        // Tenants' names hold no dot.
        self.lists().join(format!("{tenant}.{manifest}"))
    }

    /// Remembers that the files of the version are fetched for the tenant, and about people. Only for who has the
    /// turn to fetch, and before the first byte: else a purge in between would remove the list, and not the files.
    ///
    /// # Errors
    /// When that can't be written down: then nothing may be fetched.
    pub(super) fn remember(&self, tenant: &TenantId, manifest: &Manifest) -> Result<(), Error> {
        let (dir, path) = (self.lists(), self.list(tenant, manifest.digest()));
        if path.exists() {
            return Ok(());
        }
        fs::create_dir_all(&dir).map_err(Error::at(&dir))?;
        let text: String = manifest.files.iter().map(|file| format!("{}\n", file.sha256)).collect();
        // Not in tmp/, where a list would be taken for a partial file; a name that no list has.
        let partial = dir.join(format!(".{}", uuid::Uuid::now_v7()));
        let mut file = File::create_new(&partial).map_err(Error::at(&partial))?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(Error::at(&partial))?;
        fs::rename(&partial, &path).map_err(Error::at(&path))?;
        sync_dir(&dir)?;
        sync_dir(&self.dir)
    }

    /// Removes the files that were fetched for that version and tenant, and for no other version or tenant that
    /// is about people. Waits for a fetch that is under way. Nothing is left to do when it was done before.
    ///
    /// # Errors
    /// What could not be removed; it may be tried again.
    pub async fn purge(&self, tenant: &TenantId, manifest: [u8; 32]) -> Result<(), Error> {
        let turn = self.turn.clone().acquire_owned().await.map_err(|_| Error::Cancelled)?;
        let (cache, tenant) = (self.clone(), tenant.clone());
        blocking(move |_| {
            let _turn = turn;
            cache.purge_blocking(&tenant, Checksum(manifest))
        })
        .await
    }

    fn purge_blocking(&self, tenant: &TenantId, manifest: Checksum) -> Result<(), Error> {
        let (dir, path) = (self.lists(), self.list(tenant, manifest));
        let mut mine = match self.listed(&path) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(()),
            listed => listed?,
        };
        for entry in fs::read_dir(&dir).map_err(Error::at(&dir))? {
            let other = entry.map_err(Error::at(&dir))?.path();
            let hidden = other.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if other != path && !hidden {
                let theirs = self.listed(&other)?;
                mine.retain(|digest| !theirs.contains(digest));
            }
        }
        for digest in &mine {
            // Also what a broken download left, and the note of how the file came.
            let sealed = self.dir.join("tmp").join(sealed_name(*digest));
            let parts = PARTS.map(|part| self.dir.join(part).join(digest.to_string()));
            for file in parts.into_iter().chain([sealed]) {
                match fs::remove_file(&file) {
                    Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::at(&file)(e)),
                    _ => {}
                }
            }
            self.aside.purge(*digest)?;
        }
        PARTS.iter().try_for_each(|part| sync_dir(&self.dir.join(part)))?;
        // Last: until the files are gone for good, the next try must find them.
        fs::remove_file(&path).map_err(Error::at(&path))?;
        sync_dir(&dir)
    }

    fn listed(&self, path: &std::path::Path) -> Result<BTreeSet<Checksum>, Error> {
        use std::io::Read;
        let mut text = String::new();
        let file = File::open(path).map_err(Error::at(path))?;
        file.take(MAX_LIST).read_to_string(&mut text).map_err(Error::at(path))?;
        let bad = || Error::io(path.display().to_string())(ErrorKind::InvalidData.into());
        text.lines().map(|line| Checksum::parse(line).ok_or_else(bad)).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::models::tests::world;
    use nf_core::id::TenantId;

    #[tokio::test]
    async fn a_purge_just_before_a_fetch_leaves_no_files_without_a_list() {
        let w = world();
        let (manifest, tenant) = (w.publish().await, TenantId::new("t1").unwrap());
        w.cache.fetch(&w.store, &manifest, Some(&tenant)).await.unwrap();
        // Both wait for their turn, the purge first.
        let turn = w.cache.turn.clone().acquire_owned().await.unwrap();
        let purge = w.cache.purge(&tenant, manifest.sha256());
        let fetch = w.cache.fetch(&w.store, &manifest, Some(&tenant));
        let (purged, fetched, ()) = tokio::join!(purge, fetch, async { drop(turn) });
        purged.unwrap();
        assert_eq!((fetched.unwrap().len(), w.cached()), (2, 2));
        w.cache.purge(&tenant, manifest.sha256()).await.unwrap();
        assert_eq!(w.cached(), 0, "what came after it is found by the next");
    }
}
