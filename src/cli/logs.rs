//! `nf logs`: what a replica writes, as it comes.

use super::client::escape;
use super::exit::{Exit, fail};
use super::{Global, get, say};
use clap::Args;
use futures::StreamExt;
use http_body_util::BodyExt;
use std::io::Write;

#[derive(Debug, Args)]
pub struct Logs {
    /// Its id, or a unique prefix
    job: String,
    /// Which replica
    #[arg(long, default_value_t = 0)]
    replica: u16,
    /// Keep printing what comes
    #[arg(short, long)]
    follow: bool,
    /// Begin with this many of the last lines
    #[arg(long, default_value_t = 200)]
    tail: usize,
}

impl Logs {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let id = get::job_id(&client, &self.job).await?;
        let (replica, tail, follow) = (self.replica, self.tail, self.follow);
        let path = format!("/schedule/{}/logs?replica={replica}&tail={tail}&follow={follow}", escape(&id));
        let mut body = client.stream(&path).await?.into_body().into_data_stream();
        let end = super::signals::stop();
        tokio::pin!(end);
        loop {
            tokio::select! {
                stopped = &mut end => {
                    stopped?;
                    say("watching ended; the replica runs on");
                    return Err(fail(Exit::Interrupted, ""));
                }
                chunk = body.next() => match chunk {
                    None => return Ok(()),
                    Some(Ok(bytes)) => std::io::stdout().write_all(&bytes)?,
                    Some(Err(error)) => {
                        let text = format!("the log broke off: {error}\n  try: nf describe job {id}");
                        return Err(fail(Exit::Unreachable, text));
                    }
                }
            }
            std::io::stdout().flush()?;
        }
    }
}
