//! The HTTP server, and what applies to the requests of all routes.

pub mod auth;
pub mod body;
pub mod cors;
pub mod headers;
pub mod middleware;
pub mod path;
pub mod server;
pub mod stream;
pub mod tls;
