//! Kafka clients of the consumer: reading, committing, rebalances, lag and dead letters.

pub mod clients;
pub mod commit_guard;
pub mod committer;
pub mod dead_letters;
pub mod group;
pub mod lag;
pub mod reader;
pub mod rebalance;
pub mod record;
