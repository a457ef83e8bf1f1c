//! The servers against the real programs.

#![cfg(test)]

mod broker;
mod database;
mod packages;
mod parent;
mod simulator;
