//! The consumer against a real broker and a real database.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, also in its verbs")]

mod commits;
mod delete_fixture;
mod delete_replies;
mod delete_rights;
mod delete_watch;
mod deletes;
mod deletes_interleaved;
mod foreign_records;
mod model_mongodb;
mod mongo_blocked;
mod mongo_builds;
mod mongo_fixture;
mod mongo_guard;
mod mongo_keys;
mod mongo_outages;
mod mongo_outcomes;
mod mongo_replies;
mod mongo_unlisted_code;
mod mongo_values;
mod outages;
mod outcomes;
mod rebalances;
mod records;
mod set_aside;
mod settings;
mod skipped_offsets;
mod sources;
mod trial;
mod workers;
