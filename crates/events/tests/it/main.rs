//! The crate as its users see it.

#![cfg(test)]

mod fixtures;
mod fuzz;
mod kept;
mod properties;
mod reading;
mod texts;
