//! The client of ADSBDB.

pub mod client;
mod rate_limit;
pub mod response;
