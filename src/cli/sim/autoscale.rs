//! `nf sim autoscale`: the daemon's autoscaler on arrivals that somebody else
//! brings, on its own it knows neither group nor clock.

use super::online;
use crate::cli::exit::{Exit, fail};
use clap::Args;

#[derive(Debug, Args)]
pub struct Autoscale {
    /// Speak text lines on stdin and stdout; the other side owns time and service
    #[arg(long)]
    online: bool,
}

impl Autoscale {
    pub fn run(self) -> anyhow::Result<()> {
        if self.online {
            return online::run(std::io::stdin().lock(), std::io::stdout().lock());
        }
        Err(fail(Exit::Usage, "nf sim autoscale wants --online"))
    }
}
