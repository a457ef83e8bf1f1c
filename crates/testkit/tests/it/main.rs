//! Tests of the test support itself.

#![cfg(test)]

mod dependents;
mod imports;
mod proxy;
