//! The crate as its users see it.

#![cfg(test)]

mod fixtures;
mod properties;
mod reading;
mod texts;
