//! Which build this is.

use super::{Global, output};
use serde_json::json;

/// The workspace's version, e.g. `8.1.0-phaseH.2`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Set by `make release`; a daily build does not know it.
pub const COMMIT: &str = match option_env!("NF_COMMIT") {
    Some(commit) => commit,
    None => "NO_GIT",
};
/// The part of the version after `phase`.
pub const PHASE: &str = "H.2";

pub(super) fn run(global: &Global) -> anyhow::Result<()> {
    let value = json!({ "version": VERSION, "commit": COMMIT, "phase": PHASE });
    let people = || format!("nf {VERSION}\ncommit {COMMIT}\nphase {PHASE}\n");
    output::put(&output::object(global.style(), &value, VERSION, people)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_phase_is_the_versions() {
        assert!(super::VERSION.ends_with(&format!("-phase{}", super::PHASE)));
    }
}
