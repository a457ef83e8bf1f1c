//! The producer as its clients see it: over HTTP, against a real broker, and against librdkafka's mock cluster where
//! the broker must misbehave.

#![cfg(test)]

mod application;
mod binary;
mod client_faults;
mod mock;
mod outages;
mod real_broker;
mod stopping;
mod upstream;
