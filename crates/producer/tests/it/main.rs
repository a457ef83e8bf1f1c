//! Tests of the producer over HTTP. They use a real broker, or librdkafka's mock cluster where the
//! broker must inject errors.

#![cfg(test)]
#![expect(clippy::duplicate_mod, reason = "ADSBDB is tested as a built-in source and as an entry of a file")]

mod access;
mod application;
// The same tests with ADSBDB as an entry of a sources file.
#[path = "poll_jobs.rs"]
mod as_entry_poll_jobs;
#[path = "upstream.rs"]
mod as_entry_upstream;
mod batch;
mod batch_faults;
mod batch_limits;
mod binary;
mod client_faults;
mod compressed;
mod contract;
mod cors;
mod deletes;
mod documentation;
mod fuzz;
mod hostile_sources;
#[path = "../../../events/tests/it/kept.rs"]
mod kept;
mod limits;
mod log_lines;
mod outages;
#[path = "../../../events/tests/it/payloads.rs"]
mod payloads;
mod poll_jobs;
mod protocol;
mod real_broker;
mod sources;
mod stored;
mod tls;
mod traces;
mod upstream;
