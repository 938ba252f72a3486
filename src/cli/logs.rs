//! `nf logs`: what a replica writes, as it comes. Who follows it goes on reading when the way breaks off, and when the
//! replica starts again or moves, for as long as it lives.

mod seam;

use self::seam::Seam;
use super::client::Client;
use super::exit::{self, Exit, fail};
use super::output::at;
use super::{Global, get, say};
use clap::Args;
use futures::StreamExt;
use http_body_util::BodyExt;
use serde_json::Value;
use std::io::Write;
use std::time::{Duration, Instant};

/// How long it is tried to read on after the last word.
const PATIENCE: Duration = Duration::from_secs(60);
/// Before it is asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// A log that is read again and says nothing more for so long has told its past.
const QUIET: Duration = Duration::from_secs(2);
/// Lines from the end that are read again: the most that there can be.
const AGAIN: usize = 100_000;

#[derive(Debug, Args)]
pub struct Logs {
    #[command(flatten)]
    of: get::JobArg,
    /// Which replica
    #[arg(long, default_value_t = 0)]
    replica: u16,
    /// Keep printing new lines
    #[arg(short, long)]
    follow: bool,
    /// How many of the last lines to begin with
    #[arg(long, default_value_t = 200)]
    tail: usize,
}

impl Logs {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let job = get::job(&client, &self.of).await?;
        tokio::select! {
            stopped = super::signals::stop() => {
                stopped?;
                say("stopped following; the replica runs on");
                Err(fail(Exit::Interrupted, ""))
            }
            read = self.read(&client, &job) => read,
        }
    }

    async fn read(&self, client: &Client, job: &Value) -> anyhow::Result<()> {
        let (mut seam, mut heard) = (Seam::default(), Instant::now());
        loop {
            match self.pass(client, job, &mut seam, &mut heard).await {
                Ok(()) if !self.follow || self.is_over(client, job).await? => return Ok(()),
                Ok(()) => heard = Instant::now(),
                Err(error) if !self.follow || seam.is_new() || is_final(&error) || heard.elapsed() > PATIENCE => {
                    return Err(error);
                }
                Err(_) if seam.searches() => {}
                Err(_) => say("the log broke off; reading on"),
            }
            seam.breaks();
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// One reading, to its end.
    async fn pass(&self, client: &Client, job: &Value, seam: &mut Seam, heard: &mut Instant) -> anyhow::Result<()> {
        let (replica, follow) = (self.replica, self.follow);
        let tail = if seam.is_new() { self.tail } else { AGAIN };
        let path = get::path_of(job, "/schedule", "/logs");
        let path = format!("{path}&replica={replica}&tail={tail}&follow={follow}");
        let answer = client.stream(&path).await.map_err(|error| match exit::of(&error) {
            // Its node's agent is away: no job waits for that.
            Some(Exit::Queued) => fail(Exit::Unreachable, error.to_string()),
            _ => error,
        })?;
        let mut body = answer.into_body().into_data_stream();
        loop {
            let next = match seam.searches() {
                false => body.next().await,
                true => match tokio::time::timeout(QUIET, body.next()).await {
                    Ok(next) => next,
                    Err(_) => {
                        print(&seam.settle())?;
                        continue;
                    }
                },
            };
            match next {
                None => return print(&seam.settle()),
                Some(Ok(bytes)) => {
                    *heard = Instant::now();
                    print(&seam.take(&bytes))?;
                }
                Some(Err(error)) => {
                    let id = at(job, "request_id");
                    let text = format!("the log broke off: {error}\n  try: nf describe job {id}");
                    return Err(fail(Exit::Unreachable, text));
                }
            }
        }
    }

    /// Whether nothing of the replica is left, and nothing will come.
    async fn is_over(&self, client: &Client, job: &Value) -> anyhow::Result<bool> {
        let job = match client.get(&get::path_of(job, "/schedule", "")).await {
            Ok(job) => job,
            Err(error) if exit::of(&error) == Some(Exit::NotFound) => return Ok(true),
            Err(error) => return Err(error),
        };
        let own = |r: &&Value| r["replica"] == self.replica;
        let replica = job["replicas"].as_array().and_then(|replicas| replicas.iter().find(own));
        Ok(replica.is_none_or(|replica| matches!(replica["status"].as_str(), Some("Stopped" | "Failed"))))
    }
}

/// Asking again changes nothing.
fn is_final(error: &anyhow::Error) -> bool {
    exit::of(error) != Some(Exit::Unreachable)
}

fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}
