//! SchedulerService: reads the message, asks the service, shapes the answer. It decides nothing.

use super::{call, consistency, tenant};
use crate::api::convert::event::EventBody;
use crate::api::convert::proto;
use crate::api::convert::{answer, rollout, schedule::Schedule};
use crate::api::error::Failure;
use crate::api::service::Service;
use crate::api::service::jobs::Found;
use crate::api::service::list::{Cursor, Filter, MAX_PER_PAGE, job_state};
use crate::api::service::watch::{Feed, Item};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use nf_core::id::{ModelId, NodeName, RequestId};
use nf_core::job::MAX_REPLICAS;
use nf_core::reason::Refusal;
use nf_proto::v1;
use nf_proto::v1::scheduler_service_server::SchedulerService;
use tonic::{Request, Response, Status};

pub struct Scheduler(pub Service);

fn request_id(text: &str) -> Result<RequestId, Failure> {
    RequestId::new(text).map_err(|error| Refusal::invalid("request_id", error.to_string()).into())
}

#[tonic::async_trait]
impl SchedulerService for Scheduler {
    async fn schedule(&self, request: Request<v1::ScheduleRequest>) -> Result<Response<v1::ScheduleResponse>, Status> {
        let _permit = self.0.enter()?;
        let call = call(&request)?;
        let (wanted, key) = proto::schedule(request.into_inner()).map_err(Failure::from)?;
        let done = self.0.schedule(&call, wanted, key.as_deref()).await?;
        let job = &done.job;
        let why = |no: u16| done.why.iter().find(|(replica, _)| *replica == no).map(|(_, why)| why);
        let placed = job.replicas.iter().filter_map(|r| Some(proto::placement(r.no, r.place.as_ref()?, why(r.no))));
        Ok(Response::new(v1::ScheduleResponse {
            request_id: job.request.to_string(),
            job_id: job.request.to_string(),
            status: answer::status_of(job.state).to_owned(),
            state: job.state.name().to_owned(),
            simulation: done.simulation,
            replayed: done.replayed,
            placements: placed.collect(),
            reasons: job.blockers.iter().map(proto::blocker).collect(),
            position: job.position.unwrap_or(0),
            policies: answer::policies(&job.checks).into_iter().collect(),
            index: done.index,
        }))
    }

    async fn plan(&self, request: Request<v1::PlanRequest>) -> Result<Response<v1::PlanResponse>, Status> {
        let _permit = self.0.enter()?;
        let call = call(&request)?;
        let missing = || Failure::from(Refusal::invalid("request", "request is missing"));
        let wanted: Schedule =
            proto::schedule(request.into_inner().request.ok_or_else(missing)?).map_err(Failure::from)?.0;
        let replicas = usize::from(wanted.spec.replicas);
        let planned = self.0.plan(&call, wanted).await?;
        let placed = planned.placements.iter();
        Ok(Response::new(v1::PlanResponse {
            status: if planned.placements.len() == replicas { "scheduled".into() } else { "queued".into() },
            simulation: planned.simulation,
            placements: placed.map(|(no, place, why)| proto::placement(*no, place, Some(why))).collect(),
            reasons: planned.blockers.iter().map(proto::blocker).collect(),
            victims: planned.victims.clone(),
            victims_bound: planned.binds_victims,
            victims_of_others: planned.victims_of_others,
            after_victims: planned
                .claimed
                .iter()
                .map(|(no, place, why)| proto::placement(*no, place, Some(why)))
                .collect(),
            digest: planned.digest.to_string(),
            read: Some(proto::read(&planned.read)),
        }))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let _permit = self.0.enter()?;
        let mut call = call(&request)?;
        let message = request.into_inner();
        call.tenant = call.who.sees(tenant(&message.tenant_id)?)?;
        call.consistency = consistency(message.consistency)?;
        let request = request_id(&message.request_id)?;
        let Found { job, simulation, read } = match message.explain {
            true => self.0.explain(&call, &request).await?,
            false => self.0.get(&call, &request).await?,
        };
        let job = Some(proto::job(&job, simulation));
        Ok(Response::new(v1::GetResponse { job, read: Some(proto::read(&read)) }))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let _permit = self.0.enter()?;
        let mut call = call(&request)?;
        let message = request.into_inner();
        call.consistency = consistency(message.consistency)?;
        let mut filter = filter(&message).map_err(Failure::from)?;
        filter.tenant = call.who.sees(filter.tenant)?;
        let page = self.0.list(&call, filter).await?;
        Ok(Response::new(v1::ListResponse {
            jobs: page.rows.into_iter().map(|row| proto::row(row.row, row.created_ms, row.changed_ms)).collect(),
            next_token: page.next.map(Cursor::token).unwrap_or_default(),
            simulation: page.simulation,
            read: Some(proto::read(&page.read)),
        }))
    }

    async fn stop(&self, request: Request<v1::StopRequest>) -> Result<Response<v1::StopResponse>, Status> {
        let _permit = self.0.enter()?;
        let mut call = call(&request)?;
        let message = request.into_inner();
        call.tenant = call.who.acts(tenant(&message.tenant_id)?)?;
        let found = self.0.stop(&call, &request_id(&message.request_id)?).await?;
        let job = Some(proto::job(&found.job, found.simulation));
        Ok(Response::new(v1::StopResponse { job, index: found.read.index }))
    }

    async fn scale(&self, request: Request<v1::ScaleRequest>) -> Result<Response<v1::ScaleResponse>, Status> {
        let _permit = self.0.enter()?;
        let mut call = call(&request)?;
        let message = request.into_inner();
        call.tenant = call.who.acts(tenant(&message.tenant_id)?)?;
        let too_many = |_| Refusal::invalid("replicas", format!("0 to {MAX_REPLICAS}, not {}", message.replicas));
        let replicas = u16::try_from(message.replicas).map_err(too_many).map_err(Failure::from)?;
        let found = self.0.scale(&call, &request_id(&message.request_id)?, replicas).await?;
        let job = Some(proto::job(&found.job, found.simulation));
        Ok(Response::new(v1::ScaleResponse { job, index: found.read.index }))
    }

    async fn get_rollout(
        &self,
        request: Request<v1::GetRolloutRequest>,
    ) -> Result<Response<v1::GetRolloutResponse>, Status> {
        let _permit = self.0.enter()?;
        let mut call = call(&request)?;
        let message = request.into_inner();
        call.tenant = call.who.sees(tenant(&message.tenant_id)?)?;
        call.consistency = consistency(message.consistency)?;
        let told = self.0.rollout(&call, &request_id(&message.request_id)?).await?;
        let rollout = Some(rollout::put(&told.rollout));
        Ok(Response::new(v1::GetRolloutResponse { rollout, read: Some(proto::read(&told.read)) }))
    }

    async fn start_rollout(
        &self,
        request: Request<v1::StartRolloutRequest>,
    ) -> Result<Response<v1::StartRolloutResponse>, Status> {
        let _permit = self.0.enter()?;
        let mut call = call(&request)?;
        let message = request.into_inner();
        call.tenant = call.who.acts(tenant(&message.tenant_id)?)?;
        let wanted = rollout::from_proto(&message).map_err(Failure::from)?;
        let told = self.0.start_rollout(&call, &request_id(&message.request_id)?, wanted).await?;
        let rollout = Some(rollout::put(&told.rollout));
        Ok(Response::new(v1::StartRolloutResponse { rollout, index: told.read.index }))
    }

    async fn turn_rollout(
        &self,
        request: Request<v1::TurnRolloutRequest>,
    ) -> Result<Response<v1::TurnRolloutResponse>, Status> {
        let _permit = self.0.enter()?;
        let mut call = call(&request)?;
        let message = request.into_inner();
        call.tenant = call.who.acts(tenant(&message.tenant_id)?)?;
        let turn = rollout::turn(&message.turn).map_err(Failure::from)?;
        let told = self.0.turn_rollout(&call, &request_id(&message.request_id)?, turn).await?;
        let rollout = Some(rollout::put(&told.rollout));
        Ok(Response::new(v1::TurnRolloutResponse { rollout, index: told.read.index }))
    }

    type WatchStream = BoxStream<'static, Result<v1::WatchResponse, Status>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let call = call(&request)?;
        let message = request.into_inner();
        let from = (message.from > 0).then_some(message.from);
        let tenant = call.who.sees(tenant(&message.tenant_id)?)?;
        let feed = self.0.watch(&call.who, from, tenant).await?;
        Ok(Response::new(messages(self.0.clone(), feed).boxed()))
    }
}

fn filter(m: &v1::ListRequest) -> Result<Filter, Refusal> {
    if m.per_page as usize > MAX_PER_PAGE {
        return Err(Refusal::invalid("per_page", format!("at most {MAX_PER_PAGE}, not {}", m.per_page)));
    }
    let state = (!m.state.is_empty()).then(|| job_state(&m.state)).transpose()?;
    let cursor = (!m.next_token.is_empty()).then(|| Cursor::parse(&m.next_token)).transpose()?;
    Ok(Filter {
        tenant: proto::maybe("tenant_id", &m.tenant_id, nf_core::id::TenantId::new)?,
        model: proto::maybe("model_id", &m.model_id, ModelId::new)?,
        state,
        node: proto::maybe("node", &m.node, NodeName::new)?,
        finished: m.finished,
        reasons: false,
        per_page: m.per_page as usize,
        cursor,
    })
}

fn messages(service: Service, feed: Feed) -> impl Stream<Item = Result<v1::WatchResponse, Status>> + Send {
    futures::stream::unfold(Some((service, feed)), |state| async move {
        let (service, mut feed) = state?;
        let simulation = service.simulation();
        match feed.next().await? {
            Ok(Item::Event(event)) => {
                let message = EventBody::new(&event, simulation, feed.tenant()).into_proto(event.at_ms);
                Some((Ok(message), Some((service, feed))))
            }
            Ok(Item::Heartbeat { next }) => {
                let kind = "heartbeat".to_owned();
                let message = v1::WatchResponse { seq: next.saturating_sub(1), kind, simulation, ..Default::default() };
                Some((Ok(message), Some((service, feed))))
            }
            Err(failure) => Some((Err(failure.into()), None)),
        }
    })
}
