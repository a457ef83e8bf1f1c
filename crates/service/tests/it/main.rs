//! Tests of the configuration and of the health listener, and rules over the sources of all crates.

#![cfg(test)]

mod config;
mod health;
