//! Server-sent events: each carries its sequence number as `id`, so a browser
//! resumes by itself. It does not know what happened.

use super::Answer;
use crate::api::auth::Who;
use crate::api::convert::answer::JobRow;
use crate::api::convert::event::EventBody;
use crate::api::error::{Failure, Problem};
use crate::api::service::Service;
use crate::api::service::list::Filter;
use crate::api::service::watch::{Feed, Item};
use axum::http::HeaderMap;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use nf_core::event::EventKind;
use nf_core::id::{RequestId, TenantId};
use nf_core::reason::Refusal;
use std::convert::Infallible;

/// Where a watch starts: after the last event seen, at an event, after a log index, or now.
pub fn start(
    service: &Service,
    headers: &HeaderMap,
    from: Option<u64>,
    index: Option<u64>,
) -> Result<Option<u64>, Failure> {
    if let Some(last) = headers.get("last-event-id") {
        let number = last.to_str().ok().and_then(|text| text.parse::<u64>().ok());
        let bad = || Refusal::invalid("Last-Event-ID", "the id of an event, a number");
        return Ok(Some(number.ok_or_else(bad)?.saturating_add(1)));
    }
    match (from, index) {
        (Some(from), _) => Ok(Some(from)),
        (None, Some(index)) => service.event_after_index(index).map(Some),
        (None, None) => Ok(None),
    }
}

/// Everything that happens.
pub async fn events(service: &Service, who: &Who, from: Option<u64>, tenant: Option<TenantId>) -> Answer {
    let feed = service.watch(who, from, tenant).await?;
    Ok(stream(service.clone(), feed, |_, _| true))
}

/// What happens to jobs that the filter lets through, each with the job as it is now.
pub async fn jobs(service: &Service, who: &Who, from: Option<u64>, filter: Filter) -> Answer {
    let feed = service.watch(who, from, filter.tenant.clone()).await?;
    Ok(stream(service.clone(), feed, move |service, body| about_a_job(service, body, &filter)))
}

fn about_a_job(service: &Service, body: &mut EventBody, filter: &Filter) -> bool {
    if body.kind != "job" && body.kind != "replica" {
        return false;
    }
    let state = service.replica.applied().state;
    let id = body.request_id.as_deref().and_then(|id| RequestId::new(id).ok());
    let tenant = body.tenant_id.as_deref().and_then(|tenant| TenantId::new(tenant).ok());
    let job = tenant.zip(id).and_then(|(tenant, id)| state.job_named(&tenant, &id).cloned());
    if let Some(job) = &job {
        let fits = filter.model.as_ref().is_none_or(|model| *model == job.spec.model);
        body.job = Some(JobRow::new(&state, job));
        return fits && filter.state.is_none_or(|state| body.to.as_deref() == Some(state.name()));
    }
    // Over and gone from the state: what the event itself says must do.
    filter.model.is_none() && filter.state.is_none_or(|state| body.to.as_deref() == Some(state.name()))
}

fn stream(
    service: Service,
    feed: Feed,
    keep: impl FnMut(&Service, &mut EventBody) -> bool + Send + 'static,
) -> Response {
    Sse::new(lines(service, feed, keep)).into_response()
}

fn lines(
    service: Service,
    feed: Feed,
    keep: impl FnMut(&Service, &mut EventBody) -> bool + Send + 'static,
) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    futures::stream::unfold(Some((service, feed, keep)), |state| async move {
        let (service, mut feed, mut keep) = state?;
        loop {
            let line = match feed.next().await? {
                Ok(Item::Heartbeat { next }) => {
                    let event = Event::default().event("heartbeat");
                    event.data(format!("{{\"event_index\":{}}}", next.saturating_sub(1)))
                }
                Ok(Item::Event(event)) => {
                    let mut body = EventBody::new(&event, service.simulation(), feed.tenant());
                    if !keep(&service, &mut body) {
                        continue;
                    }
                    let kind = match &event.kind {
                        EventKind::Job { .. } => "job",
                        EventKind::Replica { .. } => "replica",
                        _ => "cluster",
                    };
                    let data = serde_json::to_string(&body).unwrap_or_default();
                    Event::default().event(kind).id(event.seq.to_string()).data(data)
                }
                // Told once; then the stream ends and the client lists again.
                Err(failure) => {
                    let data = serde_json::to_string(&Problem::from(failure).told_by(service.simulation()));
                    let data = data.unwrap_or_default();
                    return Some((Ok(Event::default().event("problem").data(data)), None));
                }
            };
            return Some((Ok(line), Some((service, feed, keep))));
        }
    })
}
