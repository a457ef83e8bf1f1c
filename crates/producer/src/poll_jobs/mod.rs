//! Poll jobs: one `job`, the `registry` of all jobs of the process, and the `schedule` of a job.

pub mod job;
pub mod registry;
pub mod schedule;
