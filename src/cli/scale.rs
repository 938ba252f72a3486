//! `nf scale`: another number of replicas for a job that scales.

use super::client::escape;
use super::output::{self, at};
use super::{Global, get};
use clap::Args;
use reqwest::Method;
use serde_json::json;

#[derive(Debug, Args)]
pub struct Scale {
    /// The job's id, or a unique prefix
    job: String,
    /// How many replicas it shall have; the autoscaler goes on from there
    replicas: u16,
}

impl Scale {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let job = get::job(&client, &self.job).await?;
        let id = at(&job, "request_id");
        let path = format!("/schedule/{}/scale", escape(&id));
        let (_, answer) = client.change(Method::POST, &path, json!({ "replicas": self.replicas })).await?;
        let text =
            || format!("job {id} ({} of {}) goes to {}\n", at(&job, "model_id"), at(&job, "tenant_id"), self.replicas);
        output::put(&output::object(global.style(), &answer, &id, text)?);
        Ok(())
    }
}
