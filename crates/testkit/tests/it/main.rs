//! Tests of the test support itself.

#![cfg(test)]

mod dependents;
mod proxy;
