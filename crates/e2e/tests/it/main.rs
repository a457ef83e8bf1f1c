//! Tests of the whole system: real processes on real servers.

#![cfg(test)]

mod apis;
mod cli;
mod faults;
mod guarantees;
mod main_path;
mod processes;
