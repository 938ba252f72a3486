//! Tokens that were verified, by SHA-256, until they expire. It belongs to one set
//! of keys and goes with it. Only verified tokens get in, so strangers cannot fill it.

use super::{Identity, LEEWAY};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

const SHARDS: usize = 16;
/// Tokens of one shard; [`SHARDS`] times as many in all.
const PER_SHARD: usize = 512;

type Shard = HashMap<[u8; 32], Arc<Identity>>;

/// Bounded; when a shard is full, what expires first makes room.
#[derive(Default)]
pub(super) struct Cache {
    shards: [Mutex<Shard>; SHARDS],
}

impl Cache {
    fn shard(&self, hash: &[u8; 32]) -> MutexGuard<'_, Shard> {
        let shard = &self.shards[usize::from(hash[0]) % SHARDS];
        // A panic while holding it leaves a whole map behind: each change is one call.
        shard.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn get(&self, hash: &[u8; 32], now: u64) -> Option<Arc<Identity>> {
        let mut shard = self.shard(hash);
        let identity = shard.get(hash)?;
        if identity.expires.saturating_add(LEEWAY) <= now {
            shard.remove(hash);
            return None;
        }
        Some(identity.clone())
    }

    pub(super) fn put(&self, hash: [u8; 32], identity: Arc<Identity>, now: u64) {
        let mut shard = self.shard(&hash);
        if shard.len() >= PER_SHARD && !shard.contains_key(&hash) {
            shard.retain(|_, identity| identity.expires.saturating_add(LEEWAY) > now);
            let first = shard.iter().min_by_key(|(hash, identity)| (identity.expires, **hash)).map(|(hash, _)| *hash);
            if let Some(first) = first.filter(|_| shard.len() >= PER_SHARD) {
                shard.remove(&first);
            }
        }
        shard.insert(hash, identity);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap().len()).sum()
    }
}

#[cfg(test)]
pub(super) const CAPACITY: usize = SHARDS * PER_SHARD;
