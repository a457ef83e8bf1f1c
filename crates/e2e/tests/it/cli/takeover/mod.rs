//! Migration from the original: its collection with duplicates, and the offsets of its group.

mod collection;
mod dedupe;
mod offsets;
mod original;
