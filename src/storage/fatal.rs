//! What happens when the disk refuses a write: the process ends.
//!
//! After a failed fsync the kernel may have dropped the dirty pages and report success next time,
//! so there is nothing to retry. Tests inject a hook of their own; it does not know who writes.

use std::sync::Arc;

/// Called once with the reason. The default never returns.
#[derive(Clone)]
pub struct Fatal(Arc<dyn Fn(&str) + Send + Sync>);

impl Fatal {
    /// Ends the process at once, without running destructors that could write more.
    pub fn abort() -> Self {
        Self(Arc::new(|reason| {
            tracing::error!(reason, "stopping: the disk refused a write");
            eprintln!("nf: stopping: {reason}");
            std::process::abort();
        }))
    }

    /// For tests: the hook sees the reason and the process lives on.
    pub fn hook(hook: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }

    pub fn raise(&self, reason: &str) {
        (self.0)(reason);
    }
}

impl std::fmt::Debug for Fatal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fatal")
    }
}
