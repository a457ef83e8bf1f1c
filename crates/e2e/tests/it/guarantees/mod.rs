//! The guarantees of the contract that need the whole system. A test's prefix is the number of its
//! guarantee.

mod error_responses;
mod outages;
mod process_kills;
mod series;
mod shutdown;
