//! `/schedule`: post, list, watch, get, stop, logs, life.

use super::ask::{Ask, Part};
use super::{Answer, fresh, json, path, schema, watch};
use crate::api::convert::answer::{
    JobBody, JobList, PlacementBody, PlanBody, QuotaEffect, ScheduleBody, policies, reasons, status_of,
};
use crate::api::convert::schedule::{Schedule, from_json};
use crate::api::service::jobs::{Found, Planned, Scheduled};
use crate::api::service::list::{Cursor, Filter, MAX_PER_PAGE, job_state};
use crate::api::service::lives::LifeList;
use crate::api::service::{Call, Service};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use futures::StreamExt;
use nf_core::id::{ModelId, NodeName, RequestId};
use nf_core::job::{JobSpec, JobState};
use nf_core::reason::Refusal;

/// Schedules a model: placed now, or waiting with all its reasons.
#[utoipa::path(post, path = "/schedule", tag = "schedule", request_body = schema::ScheduleRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "A retry with the same key returns the same job"),
           ("X-NF-Timeout-Ms" = Option<u64>, Header, description = "How long the call may take; 10000 unless said, at most 60000")),
    responses((status = 201, description = "Placed now", body = ScheduleBody),
              (status = 202, description = "Waits, with its reasons", body = ScheduleBody),
              (status = 200, description = "With dry_run: what would happen", body = PlanBody)))]
pub async fn post(State(service): State<Service>, mut ask: Ask) -> Answer {
    let mut call = ask.call()?;
    let dry_run = ask.flag("dry_run")?;
    ask.finish()?;
    let key = key(&ask.headers)?;
    let wanted = from_json(&ask.json(false).await?)?;
    call.who.acts(Some(wanted.spec.tenant.clone()))?;
    same_tenant(&call, &wanted)?;
    if dry_run || wanted.dry_run {
        let spec = wanted.spec.clone();
        let planned = service.plan(&call, wanted).await?;
        let spec = JobSpec { approved_by: planned.approved_by.clone(), ..spec };
        return Ok(fresh(&plan_body(&planned, &spec), &planned.read));
    }
    call.tenant = None;
    let done = service.schedule(&call, wanted, key.as_deref()).await?;
    Ok(scheduled(&done))
}

/// `?tenant_id=` beside a body must name the same tenant.
pub fn same_tenant(call: &Call, wanted: &Schedule) -> Result<(), Refusal> {
    match &call.tenant {
        Some(tenant) if *tenant != wanted.spec.tenant => {
            Err(Refusal::invalid("tenant_id", "the query and the body name different tenants"))
        }
        _ => Ok(()),
    }
}

/// The Idempotency-Key, if there is one.
pub fn key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let bad = |_| Refusal::invalid("Idempotency-Key", "printable ASCII characters");
    Ok(Some(value.to_str().map_err(bad)?.to_owned()))
}

fn scheduled(done: &Scheduled) -> Response {
    let body = schedule_body(done);
    let code = if done.job.state == JobState::Pending { StatusCode::ACCEPTED } else { StatusCode::CREATED };
    let mut response = json(code, &body);
    let headers = response.headers_mut();
    // With its tenant: who may see all could mean another tenant's job of that name. Neither has anything to escape.
    if let Ok(location) = HeaderValue::from_str(&format!("/schedule/{}?tenant_id={}", body.request_id, done.job.tenant))
    {
        headers.insert(header::LOCATION, location);
    }
    headers.insert("x-nf-index", HeaderValue::from(done.index));
    if done.replayed {
        headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    response
}

pub fn schedule_body(done: &Scheduled) -> ScheduleBody {
    let job = &done.job;
    let why = |replica: u16| done.why.iter().find(|(no, _)| *no == replica).map(|(_, why)| why.clone());
    let placed = job.replicas.iter().filter_map(|r| Some(PlacementBody::new(r.no, r.place.as_ref()?, why(r.no))));
    let placements: Vec<PlacementBody> = placed.collect();
    ScheduleBody {
        request_id: job.request.to_string(),
        job_id: job.request.to_string(),
        status: status_of(job.state).into(),
        state: job.state.name().into(),
        simulation: done.simulation,
        replayed: done.replayed,
        placement: placements.first().cloned(),
        placements,
        reasons: reasons(&job.blockers),
        position: job.position,
        policies: policies(&job.checks),
        index: done.index,
    }
}

pub fn plan_body(planned: &Planned, spec: &JobSpec) -> PlanBody {
    let placements: Vec<PlacementBody> =
        planned.placements.iter().map(|(no, place, why)| PlacementBody::new(*no, place, Some(why.clone()))).collect();
    let all = placements.len() == usize::from(spec.replicas);
    PlanBody {
        dry_run: true,
        status: if all { "scheduled".into() } else { "queued".into() },
        simulation: planned.simulation,
        placement: placements.first().cloned(),
        placements,
        victims: planned.victims.clone(),
        victims_bound: planned.binds_victims,
        victims_of_others: planned.victims_of_others,
        after_victims: planned
            .claimed
            .iter()
            .map(|(no, place, why)| PlacementBody::new(*no, place, Some(why.clone())))
            .collect(),
        quota: QuotaEffect { gpu_limit: planned.gpu_limit, gpu_used: planned.gpu_used, gpu_after: planned.gpu_after },
        reasons: reasons(&planned.blockers),
        digest: planned.digest.to_string(),
        policies: policies(&planned.checks),
        read: planned.read.clone(),
    }
}

/// Lists jobs, oldest first; with `watch=true`, a stream of what happens to them.
#[utoipa::path(get, path = "/schedule", tag = "schedule",
    params(("tenant_id" = Option<String>, Query, description = "Only this tenant's"),
           ("model_id" = Option<String>, Query, description = "Only this model's"),
           ("state" = Option<String>, Query, description = "Only in this state"),
           ("node" = Option<String>, Query, description = "Only with a replica on this node"),
           ("finished" = Option<bool>, Query, description = "Finished jobs, too, after the live ones"),
           ("reasons" = Option<bool>, Query, description = "Say why each waits"),
           ("per_page" = Option<u64>, Query, description = "Rows of a page, 1 to 1000; 100 unless said"),
           ("next_token" = Option<String>, Query, description = "Where the page before ended"),
           ("consistency" = Option<String>, Query, description = "linearizable (unless said) or stale"),
           ("index" = Option<u64>, Query, description = "Answer once the log is past this index; with watch, start after it"),
           ("wait" = Option<String>, Query, description = "How long to wait for that, such as 10s"),
           ("watch" = Option<bool>, Query, description = "Server-sent events instead of a list")),
    responses((status = 200, description = "A page of jobs", body = JobList)))]
pub async fn list(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    let watched = ask.flag("watch")?;
    let from = ask.number("from", u64::MAX)?;
    let filter = Filter {
        tenant: call.tenant.clone(),
        model: ask.name("model_id", ModelId::new)?,
        state: ask.text("state")?.map(|text| job_state(&text)).transpose()?,
        node: ask.name("node", NodeName::new)?,
        finished: ask.flag("finished")?,
        reasons: ask.flag("reasons")?,
        per_page: ask.number("per_page", MAX_PER_PAGE as u64)?.unwrap_or(0) as usize,
        cursor: ask.text("next_token")?.map(|text| Cursor::parse(&text)).transpose()?,
    };
    ask.finish()?;
    if watched {
        let from = watch::start(&service, &ask.headers, from, call.past_index)?;
        return watch::jobs(&service, &call.who, from, filter).await;
    }
    let page = service.list(&call, filter).await?;
    let body = JobList {
        items: page.rows.into_iter().map(|row| row.row).collect(),
        next_token: page.next.map(Cursor::token),
        simulation: page.simulation,
        read: page.read,
    };
    Ok(fresh(&body, &body.read))
}

/// A job: its state, place, history and all current reasons.
#[utoipa::path(get, path = "/schedule/{request_id}", tag = "schedule",
    params(("request_id" = String, Path, description = "The job's id"),
           ("tenant_id" = Option<String>, Query, description = "Whose job it is; to be named where several tenants have one of that id"),
           ("consistency" = Option<String>, Query, description = "linearizable (unless said) or stale"),
           ("index" = Option<u64>, Query, description = "Answer once the log is past this index"),
           ("wait" = Option<String>, Query, description = "How long to wait for that, such as 10s"),
           ("explain" = Option<bool>, Query, description = "Also look for what would let it run, when it will \
             start and who would give way, which takes the placer many tries")),
    responses((status = 200, description = "The job", body = JobBody)))]
pub async fn get(State(service): State<Service>, Part(id): Part, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    let explain = ask.flag("explain")?;
    ask.finish()?;
    let request = path("request_id", &id, RequestId::new)?;
    let found = match explain {
        true => service.explain(&call, &request).await?,
        false => service.get(&call, &request).await?,
    };
    Ok(job(found))
}

fn job(found: Found) -> Response {
    let body = JobBody::new(&found.job, found.simulation, found.read);
    fresh(&body, &body.read)
}

/// Stops a job. One that is over already is no error.
#[utoipa::path(delete, path = "/schedule/{request_id}", tag = "schedule",
    params(("request_id" = String, Path, description = "The job's id"),
           ("tenant_id" = Option<String>, Query, description = "Whose job it is; to be named where several tenants have one of that id"),
           ("dry_run" = Option<bool>, Query, description = "Only show the job that would be stopped")),
    responses((status = 200, description = "The job, Draining or over", body = JobBody)))]
pub async fn stop(State(service): State<Service>, Part(id): Part, mut ask: Ask) -> Answer {
    let call = ask.act()?;
    let dry_run = ask.flag("dry_run")?;
    ask.finish()?;
    let request = path("request_id", &id, RequestId::new)?;
    let found = match dry_run {
        true => service.get(&call, &request).await?,
        false => service.stop(&call, &request).await?,
    };
    Ok(job(found))
}

/// What a job's replicas have been through: each step with its time, and the deadlines of a stop.
#[utoipa::path(get, path = "/schedule/{request_id}/life", tag = "schedule",
    params(("request_id" = String, Path, description = "The job's id"),
           ("tenant_id" = Option<String>, Query, description = "Whose job it is; to be named where several tenants have one of that id")),
    responses((status = 200, description = "One item for each launch", body = LifeList)))]
pub async fn life(State(service): State<Service>, Part(id): Part, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let lives = service.lives(&call, &path("request_id", &id, RequestId::new)?).await?;
    Ok(json(StatusCode::OK, &lives))
}

/// Most lines of a log's end.
const MAX_TAIL: u64 = 100_000;

/// A replica's log, followed if asked.
#[utoipa::path(get, path = "/schedule/{request_id}/logs", tag = "schedule",
    params(("request_id" = String, Path, description = "The job's id"),
           ("replica" = Option<u16>, Query, description = "Which copy, counted from 0"),
           ("tail" = Option<u64>, Query, description = "Lines from the end; 1000 unless said"),
           ("follow" = Option<bool>, Query, description = "Go on as the log grows"),
           ("tenant_id" = Option<String>, Query, description = "Whose job it is; to be named where several tenants have one of that id")),
    responses((status = 200, description = "The log", body = String, content_type = "text/plain")))]
pub async fn logs(State(service): State<Service>, Part(id): Part, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    let replica = ask.number("replica", u64::from(u16::MAX))?.unwrap_or(0) as u16;
    let tail = ask.number("tail", MAX_TAIL)?.unwrap_or(1000) as usize;
    let follow = ask.flag("follow")?;
    ask.finish()?;
    let permit = service.open_stream()?;
    let request = path("request_id", &id, RequestId::new)?;
    let lines = service.logs(&call, &request, replica, follow, tail).await?;
    // The permit lives as long as the stream does.
    let lines = lines.map(move |chunk| {
        let _held = &permit;
        chunk.map_err(std::io::Error::other)
    });
    // Nor does it outlive the right to read it.
    let lines = lines.take_while(move |_| std::future::ready(service.gate.counts(&call.who).is_ok()));
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}
