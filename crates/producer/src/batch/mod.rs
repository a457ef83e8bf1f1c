//! The body, results and response of a batch request.

pub mod ingest;
pub mod response;
pub mod results;
pub mod splitter;

#[cfg(test)]
mod tests;
