//! Poll jobs.

pub mod job;
pub mod registry;
pub mod schedule;
mod tick;
