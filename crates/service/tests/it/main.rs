//! Configuration, problem bodies and the health listener, as a process uses them.

#![cfg(test)]

mod config;
mod health;
