//! The export of spans to a collector: OTLP over HTTP as protobuf.
//!
//! The export neither delays nor fails a request. A thread of the SDK sends the spans from a
//! bounded queue. Spans that do not fit, or that the collector rejects, are dropped. Each change of
//! state is logged once.

use std::fmt::Display;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, ShouldSample};
use tokio::runtime::Handle;

use crate::config::{Sampling, TraceExport};

/// Timeout to send a batch of spans.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a collector's response, which contains little.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// Creates the provider of the SDK, which exports to the collector.
///
/// # Errors
/// TLS cannot be set up, or the SDK rejects its own variables.
pub fn provider(export: &TraceExport) -> Result<SdkTracerProvider, String> {
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
        .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
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
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
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
                Err(error) => Err(innermost(error.as_ref()).to_string()),
            });
            response
        })
    }
}

async fn send(http: reqwest::Client, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let mut received = http.execute(request.try_into()?).await?;
    let mut response = Response::builder().status(received.status());
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

/// The innermost cause, which states what failed.
fn innermost<'e>(error: &'e (dyn std::error::Error + 'static)) -> &'e (dyn std::error::Error + 'static) {
    error.source().map_or(error, innermost)
}
