//! The poller against a server that plays the producer's side of HTTP with scripted answers.

#![cfg(test)]

mod binary;
mod harness;
mod outages;
mod schedule;
mod scripted_producer;
mod stop;
mod tls;
