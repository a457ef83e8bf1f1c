//! Tests of the poller against a producer with scripted responses.

#![cfg(test)]

mod binary;
mod harness;
mod outages;
mod schedule;
mod sources;
mod tls;
