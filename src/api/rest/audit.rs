//! `/audit`: the trail as lines of JSON, page by page. What the lines say is the
//! business of `security::audit`.

use super::Answer;
use super::ask::Ask;
use crate::api::service::Service;
use crate::api::service::audit::{MAX_PER_PAGE, PER_PAGE, Page};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;

/// The audit trail, one JSON line for each entry; the last page ends with the checkpoint.
#[utoipa::path(get, path = "/audit", tag = "audit",
    params(("from" = Option<u64>, Query, description = "First entry; 1 unless said"),
           ("per_page" = Option<u64>, Query, description = "1 to 10000; 1000 unless said")),
    responses((status = 200, description = "Lines; X-NF-Audit-Next names the next page, if there is one",
               body = String, content_type = "application/jsonl")))]
pub async fn read(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    let from = ask.number("from", u64::MAX)?.unwrap_or(1);
    let limit = ask.number("per_page", MAX_PER_PAGE)?.filter(|n| *n > 0).unwrap_or(PER_PAGE);
    ask.finish()?;
    Ok(shown(&service, service.audit(&call, from, limit).await?))
}

/// Where the trail ends now, signed by this member: one line, to be kept elsewhere.
#[utoipa::path(get, path = "/audit/checkpoint", tag = "audit",
    params(("consistency" = Option<String>, Query, description = "linearizable (unless said) or stale")),
    responses((status = 200, description = "As the last line of an export", body = String,
               content_type = "application/jsonl")))]
pub async fn checkpoint(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    Ok(shown(&service, service.checkpoint(&call).await?))
}

fn shown(service: &Service, page: Page) -> Response {
    let mut response = Response::new(Body::from(page.lines));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/jsonl"));
    headers.insert("x-nf-index", HeaderValue::from(page.index));
    headers.insert("x-nf-simulation", HeaderValue::from_static(if service.simulation() { "true" } else { "false" }));
    if let Some(next) = page.next {
        headers.insert("x-nf-audit-next", HeaderValue::from(next));
    }
    response
}
