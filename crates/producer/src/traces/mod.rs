//! Traces: with OTEL_EXPORTER_OTLP_ENDPOINT, a span for each request is exported.
//!
//! The records of a request with a valid `traceparent` have one, too. Without an exporter it is
//! that of the request. With an exporter it has the same trace, and the request's span as parent.
//! As W3C Trace Context requires, an invalid header is ignored and removed.

mod export;

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};

use crate::config::TraceExport;

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

/// The header of requests and records.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A valid `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TraceParent {
    pub trace_id: u128,
    /// The span of the client.
    pub parent_id: u64,
    /// Bit 0: the trace is sampled.
    pub flags: u8,
}

impl TraceParent {
    /// Parses the header, if the request has exactly one.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).into_iter();
        let (value, None) = (values.next()?, values.next()) else { return None };
        Self::parse(value.to_str().ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let mut field = |length: usize| {
            let digits = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            fields.next().filter(|field| field.len() == length && field.bytes().all(digits))
        };
        let (version, trace_id, parent_id, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        // Later versions may have more fields, but version 0 may not. Version ff is invalid.
        if version == "ff" || (version == "00" && fields.next().is_some()) {
            return None;
        }
        let parent = Self {
            trace_id: u128::from_str_radix(trace_id, 16).ok()?,
            parent_id: u64::from_str_radix(parent_id, 16).ok()?,
            flags: u8::from_str_radix(flags, 16).ok()?,
        };
        (parent.trace_id != 0 && parent.parent_id != 0).then_some(parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_valid_header_is_parsed() {
        let parent = TraceParent {
            trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
            parent_id: 0x00f0_67aa_0ba9_02b7,
            flags: 1,
        };
        assert_eq!(TraceParent::parse(RIGHT), Some(parent));
        assert_eq!(TraceParent::parse(&RIGHT.replacen("00", "cc", 1)), Some(parent));
        assert_eq!(TraceParent::parse(&format!("cc{}-what-comes-later", &RIGHT[2..])), Some(parent));
    }

    #[test]
    fn an_invalid_header_is_ignored() {
        for wrong in [
            "",
            "00-4bf92f-00f067aa0ba902b7-01",
            &RIGHT[..54],
            &format!("{RIGHT}-00"),
            &format!("{RIGHT}0"),
            &RIGHT.to_uppercase(),
            &RIGHT.replacen("00", "ff", 1),
            &RIGHT.replace('4', "x"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn two_headers_are_ignored() {
        let mut headers = HeaderMap::from_iter([(TRACEPARENT, RIGHT.parse().unwrap())]);
        assert!(TraceParent::of(&headers).is_some());
        headers.append(TRACEPARENT, RIGHT.parse().unwrap());
        assert_eq!(TraceParent::of(&headers), None);
    }
}
