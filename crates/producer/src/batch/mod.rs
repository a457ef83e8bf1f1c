//! The parts of a batch request: `splitter` cuts the body into events, `ingest` sends them,
//! `results` stores their results, and `response` writes them.

pub mod ingest;
pub mod response;
pub mod results;
pub mod splitter;

#[cfg(test)]
mod tests;
