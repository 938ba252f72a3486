//! `/endpoints`: which replicas take traffic, once or as server-sent events. Each event
//! is the whole set, with the applied index as its id.

use super::ask::Ask;
use super::{Answer, fresh};
use crate::api::service::Service;
use crate::api::service::endpoints::{EndpointList, Feed, Item, Wanted};
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::sse::{Event, Sse};
use futures::{Stream, StreamExt};
use nf_core::id::{ModelId, RequestId};
use serde_json::json;
use std::convert::Infallible;

/// The replicas of a model and whether they take traffic; with `watch=true`, again whenever that changes.
#[utoipa::path(get, path = "/endpoints", tag = "schedule",
    params(("tenant_id" = Option<String>, Query, description = "Only this tenant's"),
           ("model_id" = Option<String>, Query, description = "Only of this model"),
           ("request_id" = Option<String>, Query, description = "Only of this job"),
           ("watch" = Option<bool>, Query, description = "Server-sent events: the whole set at each change"),
           ("consistency" = Option<String>, Query, description = "linearizable (unless said) or stale"),
           ("index" = Option<u64>, Query, description = "Answer once the log is past this index"),
           ("wait" = Option<String>, Query, description = "How long to wait for that, such as 10s")),
    responses((status = 200, description = "The copies of the replicas that have an address", body = EndpointList)))]
pub async fn endpoints(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    let watched = ask.flag("watch")?;
    let wanted = Wanted {
        tenant: call.tenant.clone(),
        model: ask.name("model_id", ModelId::new)?,
        request: ask.name("request_id", RequestId::new)?,
    };
    ask.finish()?;
    if watched {
        let feed = service.watch_endpoints(wanted)?;
        // A stream does not outlive the right to read it.
        let lines = lines(service.simulation(), feed);
        let lines = lines.take_while(move |_| std::future::ready(service.gate.counts(&call.who).is_ok()));
        return Ok(Sse::new(lines).into_response());
    }
    let body = service.endpoints(&call, wanted).await?;
    Ok(fresh(&body, &body.read))
}

fn lines(simulation: bool, feed: Feed) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    futures::stream::unfold(feed, move |mut feed| async move {
        let event = match feed.next().await? {
            Item::Endpoints { index, items } => {
                let data = json!({ "index": index, "simulation": simulation, "items": items });
                Event::default().event("endpoints").id(index.to_string()).data(data.to_string())
            }
            Item::Heartbeat { index, stale_ms } => {
                let data = json!({ "index": index, "stale_ms": stale_ms });
                Event::default().event("heartbeat").data(data.to_string())
            }
        };
        Some((Ok(event), feed))
    })
}
