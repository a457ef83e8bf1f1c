//! Deletes and expiry: the commands of `docs/deletes.md`, and what the operator's commands say about
//! them.

mod operator;
mod page;
