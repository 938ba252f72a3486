//! `nf doctor`: what this machine gives, each with what is missing and the next step. It
//! asks no group, and changes nothing.

use super::exit::{Exit, fail};
use super::output::{self, at, col};
use super::{Global, say};
use crate::agent::doctor::{self, Verdict, Wishes};
use crate::config::{Flags, Settings, Sources};
use clap::Args;
use nf_core::node::PortRange;

#[derive(Debug, Args)]
pub struct Doctor {
    #[command(flatten)]
    flags: Flags,
}

impl Doctor {
    pub fn run(self, global: &Global) -> anyhow::Result<()> {
        let settings = Settings::load(&Sources::process(&self.flags))?;
        let (first, last) = settings.port_range.value;
        let data = std::path::absolute(settings.data())?;
        let (public, peer) = (settings.public(), settings.peer());
        let engine = crate::daemon::engine_socket(&settings);
        let (ports, engine) = (PortRange { first, last }, engine.as_deref());
        let users = crate::daemon::users(&settings, &data);
        let mps_pipes = settings.mps_pipe_directory.value.as_path();
        let mut found = doctor::look(&Wishes { data: &data, public, peer, ports, engine, users: &users, mps_pipes });
        found.extend(crate::daemon::signers_listed(&settings));
        let items: Vec<_> = found.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
        let columns = [
            col("CHECK", |v| at(v, "check")),
            col("STATE", |v| output::state(&at(v, "verdict"))),
            col("FOUND", |v| at(v, "detail")),
            col("NEXT", |v| at(v, "next")),
        ];
        output::put(&output::list(global.style(), &items, &columns, |v| at(v, "check"))?);
        let count = |verdict| found.iter().filter(|f| f.verdict == verdict).count();
        let (missing, faults) = (count(Verdict::Missing), count(Verdict::Fault));
        if faults > 0 {
            let plural = if faults == 1 { "" } else { "s" };
            return Err(fail(Exit::Failed, format!("nf can't run here: {faults} fault{plural}; see NEXT")));
        }
        say(format!("nf can run here; {missing} of {} checks found something missing", found.len()));
        Ok(())
    }
}
