//! How a program ended, kept where the next agent finds it: only a parent learns an exit status, and an agent that starts
//! anew is nobody's. So a program whose end counts (its job is not simply started again) is begun by a shell that waits
//! for it and writes the status into the launch's own directory. It does not know what follows from it; ADR 56.

use super::life::Ended;
use super::process::OOM_SCORE;
use crate::agent::owned;
use crate::agent::record::End;
use nf_core::job::Restart;
use nf_core::reason::Reason;
use std::path::Path;

/// In a launch's own directory.
const FILE: &str = ".nf-exit";
/// A program that ended by a signal has this and the signal's number as its status in a shell.
const BY_SIGNAL: i32 = 128;
/// Bytes of a status, and more than it has.
const LONGEST: u64 = 16;
/// The highest signal.
const SIGNALS: i32 = 64;
/// Waits for the program. Signals that a replica is told its end by are the program's business: a trap, unlike an ignored
/// signal, is not inherited by it. The status is written whole or not at all.
const SHELL: &str = r#"trap : TERM USR1; "$@"; s=$?; cd "$NF_REPLICA_DIR" && echo $s >.nf-exit.new && mv .nf-exit.new .nf-exit; exit $s"#;

/// Whether anybody will ask how it ended.
pub(super) fn counts(restart: Restart) -> bool {
    restart != Restart::Always
}

/// The command line that keeps the status of `argv`.
pub(super) fn kept(argv: Vec<String>) -> Vec<String> {
    // Before the program is begun, which inherits it.
    let first = format!("{{ echo {OOM_SCORE} >/proc/$$/oom_score_adj; }} 2>/dev/null; {SHELL}");
    ["/bin/sh", "-c", &first, "nf-exit"].map(str::to_owned).into_iter().chain(argv).collect()
}

/// How a program ended whose status was kept; None: nobody knows, or it was killed together with its shell.
pub(super) fn read(dir: &Path) -> Option<Ended> {
    let status = owned::read(&dir.join(FILE), LONGEST)?;
    Some(of(str::from_utf8(&status).ok()?.trim().parse().ok()?))
}

/// What a shell's own exit status says of the program that it waited for.
pub(super) fn of(status: i32) -> Ended {
    let signal = status - BY_SIGNAL;
    match status {
        0 => Ended { end: End { ok: true, why: Reason::Completed }, text: "exit 0".into() },
        _ if (1..=SIGNALS).contains(&signal) => {
            Ended { end: End::failed(Reason::RuntimeFailed), text: format!("signal {signal}") }
        }
        _ => Ended { end: End::failed(Reason::ExitedNonZero), text: format!("exit {status}") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_status_is_kept_as_the_shell_tells_it() {
        let tmp = tempfile::tempdir().unwrap();
        assert_eq!(read(tmp.path()), None);
        let run = |script: &str| {
            let argv = kept(["/bin/sh", "-c", script].map(str::to_owned).to_vec());
            let mut command = std::process::Command::new(&argv[0]);
            command.args(&argv[1..]).env("NF_REPLICA_DIR", tmp.path()).status().unwrap().code()
        };
        for (script, code, why) in [
            ("exit 0", 0, Reason::Completed),
            ("exit 7", 7, Reason::ExitedNonZero),
            ("kill -KILL $$", 137, Reason::RuntimeFailed),
            // Nothing of the shell's own handling reaches the program.
            ("kill -TERM $$; exit 0", 143, Reason::RuntimeFailed),
            ("kill -USR1 $$; exit 0", 138, Reason::RuntimeFailed),
        ] {
            assert_eq!(run(script), Some(code), "{script}");
            let ended = read(tmp.path()).unwrap();
            assert_eq!((ended.end.why, &ended), (why, &of(code)), "{script}");
        }
        fs::write(tmp.path().join(FILE), "").unwrap();
        assert_eq!(read(tmp.path()), None, "cut off half way");
        // The directory is the program's own: it may put there whatever it likes.
        fs::remove_file(tmp.path().join(FILE)).unwrap();
        std::os::unix::fs::symlink("/dev/zero", tmp.path().join(FILE)).unwrap();
        assert_eq!(read(tmp.path()), None, "endless");
    }
}
