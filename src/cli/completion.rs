//! Completion scripts, made from the same types as the parser.

use clap::Args;
use clap_complete::Shell;

#[derive(Debug, Args)]
pub struct Completion {
    /// bash, elvish, fish, powershell or zsh
    shell: Shell,
}

impl Completion {
    pub fn run(&self, command: &mut clap::Command) {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, command, "nf", &mut script);
        super::output::put(&String::from_utf8_lossy(&script));
    }
}
