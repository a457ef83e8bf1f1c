//! The client of ADSBDB, `response` to classify what it returns, and the rate limit that it set.

pub mod client;
mod rate_limit;
pub mod response;
