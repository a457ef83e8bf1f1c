//! Traces: with OTEL_EXPORTER_OTLP_ENDPOINT, a span for each request is exported, as OTLP over
//! HTTP.
//!
//! The records of a request with a valid `traceparent` have one, too. Without an exporter it is
//! that of the request. With an exporter it has the same trace, and the request's span as parent.
//! As W3C Trace Context requires, an invalid header is ignored and removed.
//!
//! The export neither delays nor fails a request. A thread of the SDK sends the spans from a
//! bounded queue. Spans that do not fit, or that the collector rejects, are dropped. Each change of
//! state is logged once.

use std::fmt::Display;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, ShouldSample, Span};
use tokio::runtime::Handle;

use crate::config::{Sampling, TraceExport};

/// The exporter of spans, if an endpoint is configured.
#[derive(Debug)]
pub struct Traces(Option<(SdkTracerProvider, SdkTracer)>);

impl Traces {
    /// Creates the exporter. It connects when it sends the first spans.
    ///
    /// # Errors
    /// The exporter cannot be created.
    pub fn new(export: Option<&TraceExport>) -> Result<Self, String> {
        let provider = export.map(provider).transpose()?;
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

/// Timeout to send a batch of spans.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a collector's response, which contains little.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// Creates the provider of the SDK, which exports to the collector.
///
/// # Errors
/// TLS cannot be set up, or the SDK rejects its own variables.
fn provider(export: &TraceExport) -> Result<SdkTracerProvider, String> {
    let text = |error: &dyn Display| error.to_string();
    let mut endpoint = export.endpoint.clone();
    let mut path = endpoint.path_segments_mut().map_err(|()| "the endpoint has no path".to_owned())?;
    path.pop_if_empty().extend(["v1", "traces"]);
    drop(path);
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Client::new().map_err(|error| text(&error))?)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(endpoint)
        .build()
        .map_err(|error| text(&error))?;
    let resource = Resource::builder()
        .with_service_name(export.service_name.clone())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource);
    Ok(provider.with_sampler(Box::new(sampler(export.sampling)) as Box<dyn ShouldSample>).build())
}

fn sampler(sampling: Sampling) -> Sampler {
    let root = Sampler::TraceIdRatioBased(sampling.ratio);
    if sampling.parent_based { Sampler::ParentBased(Box::new(root)) } else { root }
}

/// Sends the requests of the SDK's thread on our runtime, because that thread has none.
#[derive(Debug)]
struct Client {
    http: reqwest::Client,
    runtime: Handle,
    /// Whether the last export succeeded.
    exporting: AtomicBool,
}

impl Client {
    fn new() -> Result<Self, reqwest::Error> {
        // reqwest is built without a TLS provider. An error means that another part of the process
        // installed the same provider before.
        _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .timeout(SEND_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("slipstream/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { http, runtime: Handle::current(), exporting: AtomicBool::new(true) })
    }

    /// Logs a change of state.
    fn log_change(&self, outcome: Result<(), String>) {
        let was_exporting = self.exporting.swap(outcome.is_ok(), Ordering::Relaxed);
        match outcome {
            Err(reason) if was_exporting => tracing::warn!(reason, "traces cannot be exported"),
            Ok(()) if !was_exporting => tracing::info!("traces are exported again"),
            _ => {}
        }
    }
}

impl HttpClient for Client {
    fn send_bytes<'c, 'f>(
        &'c self,
        request: opentelemetry_http::Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<opentelemetry_http::Response<Bytes>, HttpError>> + Send + 'f>>
    where
        'c: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let sent = self.runtime.spawn(send(self.http.clone(), request)).await;
            let response = sent.map_err(HttpError::from).flatten();
            self.log_change(match &response {
                Ok(response) if response.status().is_success() => Ok(()),
                Ok(response) => Err(format!("the collector returned {}", response.status())),
                Err(error) => Err(service::http::root_cause(error.as_ref()).to_string()),
            });
            response
        })
    }
}

async fn send(
    http: reqwest::Client,
    request: opentelemetry_http::Request<Bytes>,
) -> Result<opentelemetry_http::Response<Bytes>, HttpError> {
    let mut received = http.execute(request.try_into()?).await?;
    let mut response = opentelemetry_http::Response::builder().status(received.status());
    if let Some(headers) = response.headers_mut() {
        *headers = std::mem::take(received.headers_mut());
    }
    let mut body = Vec::new();
    while let Some(chunk) = received.chunk().await? {
        if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
            return Err("the response of the collector is too long".into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(response.body(Bytes::from(body))?)
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
