//! Compares the documents with the code, and tests the commands without real servers.

#![cfg(test)]

mod documents;
mod environment;
mod pages;
mod tools;
mod workflows;
