//! Taking over from the original: its collection with its duplicates, and its group's offsets.

mod collection;
mod dedupe;
mod offsets;
mod original;
