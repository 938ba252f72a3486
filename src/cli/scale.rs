//! `nf scale`: another number of replicas for a job that scales.

use super::output::{self, at};
use super::{Global, get};
use clap::Args;
use reqwest::Method;
use serde_json::json;

#[derive(Debug, Args)]
pub struct Scale {
    #[command(flatten)]
    of: get::JobArg,
    /// Replicas wanted; the autoscaler continues from there
    replicas: u16,
}

impl Scale {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let job = get::job(&client, &self.of).await?;
        let id = at(&job, "request_id");
        let path = self.of.path("/schedule", &id, "/scale");
        let (_, answer) = client.change(Method::POST, &path, json!({ "replicas": self.replicas })).await?;
        let text =
            || format!("job {id} ({} of {}) goes to {}\n", at(&job, "model_id"), at(&job, "tenant_id"), self.replicas);
        output::put(&output::object(global.style(), &answer, &id, text)?);
        Ok(())
    }
}
