//! Traces: a span for each request, exported where OTEL_EXPORTER_OTLP_ENDPOINT is set, and the trace context that goes
//! on into records.
//!
//! What a record carries on: without an exporter the request's own `traceparent`, unchanged; with one, its trace with our
//! span as the parent. A request without a valid `traceparent` gives records without one, as the contract says.

mod context;
mod export;

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};

use crate::config::traces::Export;
pub use context::TRACEPARENT;

use context::TraceParent;

/// Where spans go: nowhere, unless an endpoint is configured.
#[derive(Debug)]
pub struct Traces(Option<(SdkTracerProvider, SdkTracer)>);

impl Traces {
    /// Connects when there is something to send.
    ///
    /// # Errors
    /// The exporter cannot be made.
    pub fn new(export: Option<&Export>) -> Result<Self, String> {
        let provider = export.map(export::provider).transpose()?;
        Ok(Self(provider.map(|provider| {
            let tracer = provider.tracer("slipstream-producer");
            (provider, tracer)
        })))
    }

    /// Begins the span of a request, and leaves in its `traceparent` what its records carry on.
    pub fn begin(&self, request: &mut Request, route: &str, request_id: &HeaderValue) -> RequestSpan {
        let parent = TraceParent::of(request.headers());
        if parent.is_none() {
            request.headers_mut().remove(TRACEPARENT);
        }
        let Some((_, tracer)) = &self.0 else { return RequestSpan(None) };
        let method = request.method().as_str().to_owned();
        let attributes = [
            KeyValue::new("http.request.method", method.clone()),
            KeyValue::new("http.route", route.to_owned()),
            KeyValue::new("url.path", request.uri().path().to_owned()),
            KeyValue::new("slipstream.request_id", request_id.to_str().unwrap_or_default().to_owned()),
        ];
        let span = tracer.span_builder(format!("{method} {route}")).with_kind(SpanKind::Server);
        let within = parent.map_or_else(Context::new, |parent| parent.into_context());
        let span = span.with_attributes(attributes).start_with_context(tracer, &within);
        if parent.is_some() {
            carry_on(request.headers_mut(), span.span_context());
        }
        RequestSpan(Some(span))
    }

    /// Sends what is still to be sent, within `limit`.
    pub async fn close(&self, limit: Duration) {
        let Some((provider, _)) = &self.0 else { return };
        let provider = provider.clone();
        // It waits on its thread for the SDK's own.
        let closing = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(limit));
        if !matches!(tokio::time::timeout(limit, closing).await, Ok(Ok(Ok(())))) {
            tracing::debug!("the last traces were not exported");
        }
    }
}

impl TraceParent {
    fn into_context(self) -> Context {
        let Self { trace_id, parent_id, flags } = self;
        let (trace_id, parent_id) = (TraceId::from(trace_id), SpanId::from(parent_id));
        let flags = TraceFlags::new(flags);
        Context::new().with_remote_span_context(SpanContext::new(
            trace_id,
            parent_id,
            flags,
            true,
            TraceState::NONE,
        ))
    }
}

fn carry_on(headers: &mut HeaderMap, span: &SpanContext) {
    let text = format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8());
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.insert(TRACEPARENT, value);
    }
}

/// The span of one request; ends when it is answered, or dropped because its client went away.
#[derive(Debug)]
pub struct RequestSpan(Option<Span>);

impl RequestSpan {
    /// The request was answered.
    pub fn end(self, status: StatusCode) {
        let Some(mut span) = self.0 else { return };
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        if status.is_server_error() {
            span.set_attribute(KeyValue::new("error.type", status.as_str().to_owned()));
            span.set_status(Status::error(""));
        }
        span.end();
    }
}
