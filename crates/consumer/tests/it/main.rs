//! The consumer against a real broker and a real database.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, also in its verbs")]

mod accounts;
mod foreign;
mod lanes;
mod outages;
mod positions;
mod progress;
mod rebalances;
mod records;
mod sasl;
mod set_aside;
mod settings;
mod store_blocked;
mod store_builds;
mod store_guard;
mod store_keys;
mod store_outages;
mod store_outcomes;
mod store_refusals;
mod store_replies;
mod store_sizes;
mod store_stage;
mod store_values;
mod suspects;
mod trial;
