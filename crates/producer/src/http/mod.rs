//! The HTTP server, and what applies to the requests of all routes.

pub mod access_log;
pub mod api_keys;
pub mod auth;
pub mod body;
pub mod connection;
pub mod content_coding;
pub mod content_type;
pub mod cors;
pub mod endpoint;
pub mod event_id;
mod head;
pub mod middleware;
pub mod permits;
mod raw_response;
pub mod reject;
pub mod server;
mod stream;
pub mod timeouts;
pub mod tls;
