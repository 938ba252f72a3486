//! `nf usage`: what tenants have used, and what their budgets are.

use super::Global;
use super::client::escape;
use super::output::{self, Column, at, col, wide};
use clap::{Args, ValueEnum};
use serde_json::Value;

#[derive(Debug, Args)]
pub struct Usage {
    /// Only this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Only this window
    #[arg(long)]
    window: Option<Window>,
    /// As comma-separated values, with every column
    #[arg(long)]
    csv: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Window {
    Day,
    Week,
    Month,
}

const COLUMNS: &[Column] = &[
    col("TENANT", |v| at(v, "tenant_id")),
    col("WINDOW", |v| at(v, "window")),
    col("GPU-HOURS", |v| at(v, "gpu_hours")),
    col("OF", |v| at(v, "gpu_hours_limit")),
    col("RESERVED", |v| at(v, "gpu_hours_reserved")),
    col("MONEY", |v| at(v, "money")),
    col("OF", |v| at(v, "money_limit")),
    col("RESERVED", |v| at(v, "money_reserved")),
    col("ENDS", |v| at(v, "to")),
    wide("BEFORE", |v| at(v, "gpu_hours_before")),
    wide("MONEY BEFORE", |v| at(v, "money_before")),
    wide("PARENT", |v| at(v, "parent")),
];

/// In the order of the API's own fields.
const FIELDS: [&str; 13] = [
    "tenant_id",
    "parent",
    "window",
    "from",
    "to",
    "gpu_hours",
    "gpu_hours_reserved",
    "gpu_hours_limit",
    "gpu_hours_before",
    "money",
    "money_reserved",
    "money_limit",
    "money_before",
];

/// Names and numbers: nothing in them needs quotes. What is not known is empty.
fn csv(items: &[Value]) -> String {
    let field = |item: &Value, key: &str| match item.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    };
    let row = |item: &Value| FIELDS.map(|key| field(item, key)).join(",") + "\n";
    FIELDS.join(",") + "\n" + &items.iter().map(row).collect::<String>()
}

impl Usage {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let tenant = self.tenant.iter().map(|tenant| format!("tenant_id={}", escape(tenant)));
        let window =
            self.window.iter().filter_map(|window| Some(format!("window={}", window.to_possible_value()?.get_name())));
        let query = tenant.chain(window).collect::<Vec<_>>().join("&");
        let path = if query.is_empty() { "/usage".to_owned() } else { format!("/usage?{query}") };
        let list = global.client()?.listing(&path).await?;
        if self.csv {
            output::put(&csv(&list.items));
            return Ok(());
        }
        let name = |v: &Value| format!("{}/{}", at(v, "tenant_id"), at(v, "window"));
        output::put(&output::listing(global.style(), &list.envelope, &list.items, COLUMNS, name)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn csv_has_a_line_for_each_row_and_nothing_for_what_is_not_limited() {
        let row =
            json!({ "tenant_id": "demo", "parent": null, "window": "day", "gpu_hours": 1.5, "money_limit": 20.0 });
        let text = csv(&[row]);
        assert_eq!(text.lines().nth(1), Some("demo,,day,,,1.5,,,,,,20.0,"));
        assert_eq!(text.lines().next().map(|line| line.split(',').count()), Some(FIELDS.len()));
    }
}
