//! The APIs of the sources file: the client of each source, and the fetch of its records.

pub(crate) mod client;
mod dead_letters;
pub(crate) mod error;
pub(crate) mod fetch;
mod kept;
mod paging;
pub(crate) mod puller;

use std::sync::Arc;

use sources::HttpApi;

pub use error::PullError;

use crate::metrics::Metrics;
use client::{Fetched, PullClient, memory_permits};

/// Fetches the first page of an API with the producer's client: its headers, timeouts, retries,
/// limits and checks. Returns the text of the answer, which is valid JSON. `source` is the name of
/// the source in log lines.
///
/// # Errors
/// There is no page. The text continues `the API of NAME ` and contains no secret.
pub async fn fetch_first_page(source: &str, api: &HttpApi) -> Result<String, PullError> {
    let client = PullClient::new(source, api, memory_permits(), Arc::new(Metrics::new()));
    match client.map_err(PullError::NoClient)?.fetch(&paging::first(api), None).await? {
        Fetched::Page(page) => Ok(page.text),
        // Only a conditional request gets this answer.
        Fetched::NotModified { .. } => Err(PullError::Status { status: 304, retry_after: None }),
    }
}
