//! Tests of the producer over HTTP. They use a real broker, or librdkafka's mock cluster where the
//! broker must inject errors.

#![cfg(test)]

mod access;
mod application;
mod batch;
mod batch_faults;
mod batch_limits;
mod batch_outages;
mod binary;
mod client_faults;
mod collector;
mod compressed;
mod cors;
mod crowd;
mod documentation;
mod fuzz;
mod http_api_page;
#[path = "../../../events/tests/it/kept.rs"]
mod kept;
mod large_batch;
mod limits;
mod log_lines;
mod metrics;
mod mock;
mod outages;
mod poll_jobs;
mod protocol;
mod real_broker;
mod sasl;
mod schemathesis;
mod shutdown;
mod slow_clients;
mod tls;
mod traces;
mod upstream;
