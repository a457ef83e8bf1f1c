//! Tests of the whole, on real servers and with real processes.

#![cfg(test)]

mod access;
mod certificate;
mod check;
mod configuration;
mod dead_letters;
mod faults;
mod kills;
mod load;
mod log_lines;
mod main_path;
mod metrics;
mod outages;
mod proxy;
mod refusals;
mod series;
mod stops;
mod takeover;
mod trace;
mod up;
