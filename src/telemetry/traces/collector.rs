//! Where spans go: an OpenTelemetry collector, by OTLP over HTTP, on our own way out. Spans
//! wait in a bounded queue and are dropped when the collector doesn't keep up: nothing that
//! is traced waits for it. What else there is to set has OpenTelemetry's own variables.

use super::{ON, TARGET};
use crate::outgoing;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

/// How long the collector may take for one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 64 << 10;
/// How long the last spans may hold up the end.
const LAST: Duration = Duration::from_secs(1);

/// What a process tells its collector of itself.
#[derive(Clone, Debug)]
pub struct Collector {
    /// As `OTEL_EXPORTER_OTLP_ENDPOINT` says: without `/v1/traces`.
    pub endpoint: String,
    pub node: String,
    pub version: &'static str,
    pub link: outgoing::Options,
}

/// Spans on their way; whoever ends the process gives the last ones a moment.
pub struct Exporting(SdkTracerProvider);

impl Exporting {
    /// Not on a runtime's thread: it waits.
    pub fn end(self) {
        ON.store(false, Ordering::Relaxed);
        if let Err(error) = self.0.shutdown_with_timeout(LAST) {
            tracing::debug!(%error, "the last spans were not taken");
        }
    }
}

impl Collector {
    /// What makes spans of what the program marks, and sends them from that runtime.
    ///
    /// # Errors
    /// A sentence about the address, or the authorities of the way out.
    pub fn layer<S>(&self, runtime: &Handle) -> Result<(impl Layer<S> + Send + Sync, Exporting), String>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let client = outgoing::Client::new(&self.link)?;
        let way = Way { client, runtime: runtime.clone(), silent: AtomicBool::new(false) };
        let endpoint = format!("{}/v1/traces", self.endpoint.trim_end_matches('/'));
        let exporter = SpanExporter::builder().with_http().with_http_client(way).with_endpoint(endpoint);
        let exporter = exporter.build().map_err(|error| error.to_string())?;
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(self.resource());
        let provider = provider.build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("neural-fabric"));
        // Lines of our code and times of our threads are for us, not for who watches calls.
        let layer = layer.with_location(false).with_threads(false).with_tracked_inactivity(false);
        let layer = layer.with_target(false).with_level(false);
        let layer = layer.with_filter(Targets::new().with_target(TARGET, tracing::Level::INFO));
        ON.store(true, Ordering::Relaxed);
        Ok((layer, Exporting(provider)))
    }

    fn resource(&self) -> Resource {
        let own =
            [KeyValue::new("service.version", self.version), KeyValue::new("service.instance.id", self.node.clone())];
        let resource = Resource::builder().with_attributes(own);
        match std::env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty()) {
            true => resource.build(),
            false => resource.with_service_name("neural-fabric").build(),
        }
    }
}

/// Our own way out, for an exporter with a thread of its own.
#[derive(Debug)]
struct Way {
    client: outgoing::Client<Full<Bytes>>,
    runtime: Handle,
    /// The collector didn't take the last spans, and that was said.
    silent: AtomicBool,
}

#[async_trait]
impl HttpClient for Way {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let exchange = async move {
            let answer = client.send(request.map(Full::new)).await?;
            let (parts, body) = answer.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(parts, body))
        };
        // Connections live on the runtime, the exporter doesn't.
        let sent = self.runtime.spawn(async move { tokio::time::timeout(PATIENCE, exchange).await }).await?;
        let answer = sent.map_err(|_| HttpError::from("no answer in time")).flatten();
        let fault = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(answer.status().to_string()),
            Err(error) => Some(error.to_string()),
        };
        if self.silent.swap(fault.is_some(), Ordering::Relaxed) != fault.is_some() {
            match fault {
                Some(fault) => tracing::warn!(fault, "the collector of traces takes none; they are dropped meanwhile"),
                None => tracing::info!("the collector of traces takes them again"),
            }
        }
        answer
    }
}
