//! The poller against a server that plays the producer's side of HTTP with scripted answers.

#![cfg(test)]

mod binary;
mod far_side;
mod run;
mod schedule;
mod stop;
mod trouble;
mod trust;
