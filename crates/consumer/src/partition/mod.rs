//! Partition workers: each assigned partition has one task that writes its records to MongoDB.

pub mod batch;
pub mod batch_size;
pub mod decision;
pub mod offsets;
pub mod progress;
pub mod queue;
pub mod set_aside;
pub mod worker;
pub mod workers;
