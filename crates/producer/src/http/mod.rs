//! The HTTP server, and what applies to requests of every route.

pub mod accept;
pub mod access_log;
pub mod api_keys;
pub mod auth;
pub mod body;
pub mod connection;
pub mod connection_metrics;
pub mod cors;
pub mod head;
pub mod middleware;
pub mod permits;
pub mod raw_response;
pub mod server;
pub mod stream;
pub mod timeouts;
pub mod tls;
