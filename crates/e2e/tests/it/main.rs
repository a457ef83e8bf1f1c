//! Tests of the whole, on real servers and with real processes.

#![cfg(test)]

mod configuration;
mod kills;
mod main_path;
mod outages;
mod stops;
mod takeover;
mod up;
