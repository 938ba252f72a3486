//! A caller that means it: it sends a schedule call to a member and, when that
//! fails in a way that leaves the outcome unknown, sends the same call (same
//! request id) to the next member, until it is acknowledged or its time is over.

use crate::cluster::Member;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Schedules through one member, and through the others when that fails.
#[derive(Clone, Debug)]
pub struct Caller {
    pub http: reqwest::Client,
    pub members: Vec<Member>,
    /// Index of the member that is asked first.
    pub home: usize,
    /// How long one attempt may take before the next member is asked.
    pub attempt: Duration,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// 200, 201 or 202: the group has it. With the answer and the number of attempts.
    Acknowledged(Value, u32),
    /// Any other answer that is final.
    Refused(u16, Value),
    /// Nothing final within the time.
    Unanswered(String),
}

impl Caller {
    pub async fn schedule(&mut self, body: &Value, limit: Duration) -> Ending {
        let until = Instant::now() + limit;
        let mut last = String::new();
        for attempts in 1.. {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let url = format!("{}/schedule", self.members[self.home].url);
            match self.http.post(url).json(body).timeout(left.min(self.attempt)).send().await {
                Ok(answer) => {
                    let status = answer.status().as_u16();
                    let value = answer.json().await.unwrap_or(Value::Null);
                    match status {
                        200..=202 => return Ending::Acknowledged(value, attempts),
                        // No leader, not yet, or unknown: all of them may be sent again.
                        429 | 500.. => last = format!("{status} {value}"),
                        _ => return Ending::Refused(status, value),
                    }
                }
                Err(error) => last = format!("{error:#}"),
            }
            self.home = (self.home + 1) % self.members.len();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ending::Unanswered(last)
    }

    /// Stops a job; whoever answers first. Best effort: the drills check what stays.
    pub async fn stop(&self, request: &str, tenant: &str) -> Result<(), String> {
        let mut last = String::new();
        for i in 0..self.members.len() {
            let url = &self.members[(self.home + i) % self.members.len()].url;
            let call = self.http.delete(format!("{url}/schedule/{request}?tenant_id={tenant}"));
            match call.timeout(self.attempt).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => last = answer.status().to_string(),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }
}
