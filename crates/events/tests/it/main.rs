//! The crate as its users see it.

#![cfg(test)]

mod fuzz;
mod kept;
mod payloads;
mod properties;
