//! Traces: with OTEL_EXPORTER_OTLP_ENDPOINT, a span for each request is exported.
//!
//! The records of a request with a valid `traceparent` have one, too. Without an exporter it is
//! that of the request. With an exporter it has the same trace, and the request's span as parent.

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

use crate::config::traces::TraceExport;
use crate::traces::context::{TRACEPARENT, TraceParent};

/// The exporter of spans, if an endpoint is configured.
#[derive(Debug)]
pub struct Traces(Option<(SdkTracerProvider, SdkTracer)>);

impl Traces {
    /// Creates the exporter. It connects when it sends the first spans.
    ///
    /// # Errors
    /// The exporter cannot be created.
    pub fn new(export: Option<&TraceExport>) -> Result<Self, String> {
        let provider = export.map(export::provider).transpose()?;
        Ok(Self(provider.map(|provider| {
            let tracer = provider.tracer("slipstream-producer");
            (provider, tracer)
        })))
    }

    /// Begins the span of a request. Replaces the `traceparent` of the request with that of its
    /// records.
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
        let context = parent.map_or_else(Context::new, |parent| parent.into_context());
        let span = span.with_attributes(attributes).start_with_context(tracer, &context);
        if parent.is_some() {
            set_traceparent(request.headers_mut(), span.span_context());
        }
        RequestSpan(Some(span))
    }

    /// Sends the remaining spans within `timeout`.
    pub async fn close(&self, timeout: Duration) {
        let Some((provider, _)) = &self.0 else { return };
        let provider = provider.clone();
        // The call blocks its thread until the SDK's thread is done.
        let closing = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(timeout));
        if !matches!(tokio::time::timeout(timeout, closing).await, Ok(Ok(Ok(())))) {
            tracing::debug!("traces not exported at shutdown");
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

/// Sets the `traceparent` whose parent is `span`.
fn set_traceparent(headers: &mut HeaderMap, span: &SpanContext) {
    let text = format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8());
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.insert(TRACEPARENT, value);
    }
}

/// The span of one request. It ends with the response, or on drop if the client disconnected.
#[derive(Debug)]
pub struct RequestSpan(Option<Span>);

impl RequestSpan {
    /// Ends the span with the status of the response.
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

/// The trace context for the records of a request, after [`Traces::begin`] checked it.
pub fn traceparent(headers: &HeaderMap) -> Option<&str> {
    headers.get(TRACEPARENT)?.to_str().ok()
}
