//! What producer, consumer and poller have in common: configuration, authentication, logs, metrics.

mod access;
mod configuration;
mod log_lines;
mod metrics;
