//! The one place with `unsafe`: a child that leads a session of its own, so that
//! neither the agent's terminal nor its death reaches it, and so that all it
//! starts can be found.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the command's process the leader of a new session (and process group).
#[allow(unsafe_code)]
pub(super) fn lead_session(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe calls are allowed.
    // setsid(2) is one of them; converting its errno allocates nothing.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
    }
}
