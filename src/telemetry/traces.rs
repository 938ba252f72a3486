//! Traces: how a call went on its way through the group, as spans for OpenTelemetry. They
//! go to a collector over OTLP where one is named, and are not made where none is. A trace is
//! handed on as W3C trace context says: in a header, to a program in its environment, and
//! beside log entries, never in them, since what is kept for ever must not depend on who
//! watches. Names, numbers and states are told; bodies, tokens and secrets are not.

mod collector;
mod made;

pub use collector::{Collector, Exporting};
pub use made::{among, any, made, of, take};

use http::{HeaderMap, StatusCode};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TraceContextExt;
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// What is exported has this target, and nothing else does: what is logged stays in the log.
pub const TARGET: &str = "nf_trace";
/// The header by which a trace is handed on.
pub const HEADER: &str = "traceparent";
/// The same for a program, in its environment.
pub const VARIABLE: &str = "TRACEPARENT";

/// Whether this process has a collector.
static ON: AtomicBool = AtomicBool::new(false);

fn on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// On which side of a call a span is.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    Server,
    Client,
    Inside,
}

/// A span below the current one. All have the same fields, so that there is one list of what can be told.
fn open(name: &str, side: Side) -> Span {
    let kind = match side {
        Side::Server => "server",
        Side::Client => "client",
        Side::Inside => "internal",
    };
    tracing::info_span!(
        target: TARGET, "span", otel.name = name, otel.kind = kind, otel.status_code = Empty, trace_id = Empty,
        http.request.method = Empty, http.route = Empty, http.response.status_code = Empty,
        tenant = Empty, model = Empty, request = Empty, replica = Empty, generation = Empty, node = Empty,
        member = Empty, index = Empty, why = Empty,
    )
}

/// What somebody asks of us: part of their trace if they name one, else the beginning of one.
pub fn call(method: &str, route: &str, headers: &HeaderMap) -> Span {
    if !on() {
        return Span::none();
    }
    let span = open(&format!("{method} {route}"), Side::Server);
    span.record("http.request.method", method).record("http.route", route);
    below(&span, TraceContextPropagator::new().extract(&HeaderExtractor(headers)));
    span
}

/// Goes on with the trace of another process; nothing where it named none.
pub fn onward(traceparent: Option<&str>, name: &str, side: Side) -> Span {
    let Some(text) = traceparent.filter(|_| on()) else { return Span::none() };
    let Ok(value) = text.parse() else { return Span::none() };
    let headers = HeaderMap::from_iter([(http::HeaderName::from_static(HEADER), value)]);
    let context = TraceContextPropagator::new().extract(&HeaderExtractor(&headers));
    if !context.span().span_context().is_valid() {
        return Span::none();
    }
    let span = open(name, side);
    below(&span, context);
    span
}

/// A part of what the current span is about; nothing where that is nothing.
pub fn part(name: &str, side: Side) -> Span {
    match on() && !Span::current().is_none() {
        true => open(name, side),
        false => Span::none(),
    }
}

/// Puts a span below another process' one, and writes its trace where the log shows it.
fn below(span: &Span, parent: opentelemetry::Context) {
    // It fails for a span that has been handed on already, and this one is new.
    let _ = span.set_parent(parent);
    let context = span.context();
    let trace = context.span().span_context().trace_id();
    span.record("trace_id", tracing::field::display(trace));
}

/// Whose model the current call is for.
pub fn about(tenant: &str, model: &str) {
    if on() {
        Span::current().record("tenant", tenant).record("model", model);
    }
}

/// A number of the span: OpenTelemetry knows no unsigned ones, and would be given a text.
pub fn number(span: &Span, field: &str, value: impl TryInto<i64>) {
    if let Ok(value) = value.try_into() {
        span.record(field, value);
    }
}

/// It came to nothing; `why` is one of a few words, never the error's own text.
pub fn failed(span: &Span, why: &str) {
    span.record("otel.status_code", "ERROR").record("why", why);
}

/// How the call was answered.
pub fn answered(span: &Span, status: StatusCode) {
    if span.is_none() {
        return;
    }
    number(span, "http.response.status_code", status.as_u16());
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    span.in_scope(|| tracing::debug!(code = status.as_u16(), "answered"));
}

/// Puts the trace into the headers of a request that belongs to the span; without one they stay as they are.
pub fn hand_on(span: &Span, headers: &mut HeaderMap) {
    if !span.is_none() {
        TraceContextPropagator::new().inject_context(&span.context(), &mut HeaderInjector(headers));
    }
}

/// The same as text; None where there is nothing to hand on.
pub fn carried(span: &Span) -> Option<String> {
    let mut headers = HeaderMap::new();
    hand_on(span, &mut headers);
    headers.get(HEADER)?.to_str().ok().map(str::to_owned)
}

/// What a launch of a replica shows of itself, in the trace of the call that it goes back to.
#[derive(Debug, Default)]
pub struct Launch(Option<(Span, Span)>);

impl Launch {
    /// `traceparent` is that call's.
    pub fn begin(traceparent: Option<&str>, request: &str, replica: u16, generation: u32, node: &str) -> Self {
        let span = onward(traceparent, "start replica", Side::Inside);
        if span.is_none() {
            return Self(None);
        }
        span.record("request", request).record("node", node);
        number(&span, "replica", replica);
        number(&span, "generation", generation);
        Self(Some((span, Span::none())))
    }

    /// It is at the next stage; the one before is over.
    pub fn stage(&mut self, name: &str) {
        if let Some((whole, part)) = &mut self.0 {
            *part = whole.in_scope(|| open(name, Side::Inside));
        }
    }

    /// It serves, or never will: `why` says what it ended of.
    pub fn end(&mut self, why: Option<&str>) {
        if let Some((whole, _)) = self.0.take()
            && let Some(why) = why
        {
            whole.record("otel.status_code", "ERROR").record("why", why);
        }
    }

    /// For the program that is launched.
    pub fn carried(&self) -> Option<String> {
        self.0.as_ref().and_then(|(whole, _)| carried(whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_collector_there_is_nothing() {
        let headers = HeaderMap::new();
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        for span in [call("GET", "/x", &headers), part("x", Side::Inside), onward(Some(text), "x", Side::Server)] {
            assert!(span.is_none());
            assert_eq!(carried(&span), None);
        }
        let mut launch = Launch::begin(Some(text), "r1", 0, 1, "n1");
        launch.stage("Starting");
        assert_eq!(launch.carried(), None);
    }
}
