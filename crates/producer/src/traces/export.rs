//! Sends spans to a collector, OTLP over HTTP as protobuf. Guarantee: no request waits for it or fails by it. Spans
//! wait in a bounded queue of the SDK, whose own thread sends them; what does not fit, or is refused, is dropped, and
//! one line a change of state says so.

use std::fmt::Display;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, ShouldSample};
use tokio::runtime::Handle;

use crate::config::traces::{Export, Sampling};

/// How long a collector may take for a batch.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// A collector's answer says next to nothing.
const MOST_ANSWER_BYTES: usize = 64 * 1024;

/// The SDK's provider, wired to the collector.
///
/// # Errors
/// There is no TLS on this machine, or the SDK refuses its own variables.
pub fn provider(export: &Export) -> Result<SdkTracerProvider, String> {
    let said = |error: &dyn Display| error.to_string();
    let mut endpoint = export.endpoint.clone();
    let mut path = endpoint.path_segments_mut().map_err(|()| "the endpoint has no path".to_owned())?;
    path.pop_if_empty().extend(["v1", "traces"]);
    drop(path);
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Client::new().map_err(|error| said(&error))?)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(endpoint)
        .build()
        .map_err(|error| said(&error))?;
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

/// Sends on our runtime what the SDK's thread, which has none, wants sent.
#[derive(Debug)]
struct Client {
    http: reqwest::Client,
    runtime: Handle,
    well: AtomicBool,
}

impl Client {
    fn new() -> Result<Self, reqwest::Error> {
        // As for ADSBDB: reqwest has no provider of its own here.
        _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .timeout(SEND_LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("slipstream/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { http, runtime: Handle::current(), well: AtomicBool::new(true) })
    }

    /// One line a change of state.
    fn tell(&self, outcome: Result<(), String>) {
        let was_well = self.well.swap(outcome.is_ok(), Ordering::Relaxed);
        match outcome {
            Err(reason) if was_well => tracing::warn!(reason, "traces cannot be exported"),
            Ok(()) if !was_well => tracing::info!("traces are exported again"),
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
            let answer = sent.map_err(HttpError::from).flatten();
            self.tell(match &answer {
                Ok(answer) if answer.status().is_success() => Ok(()),
                Ok(answer) => Err(format!("the collector answered {}", answer.status())),
                Err(error) => Err(innermost(error.as_ref()).to_string()),
            });
            answer
        })
    }
}

async fn send(http: reqwest::Client, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let mut answer = http.execute(request.try_into()?).await?;
    let mut response = Response::builder().status(answer.status());
    if let Some(headers) = response.headers_mut() {
        *headers = std::mem::take(answer.headers_mut());
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if body.len() + chunk.len() > MOST_ANSWER_BYTES {
            return Err("the collector's answer is too long".into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(response.body(Bytes::from(body))?)
}

/// The outermost says only that something failed; the innermost says what.
fn innermost<'e>(error: &'e (dyn std::error::Error + 'static)) -> &'e (dyn std::error::Error + 'static) {
    error.source().map_or(error, innermost)
}
