//! The APIs of the sources file: the client of each source, and the fetch of its records.

pub mod client;
mod dead_letters;
pub mod error;
pub mod fetch;
mod kept;
mod paging;
pub mod puller;
