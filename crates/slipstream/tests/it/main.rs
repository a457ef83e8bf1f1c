//! What the documents say, against the code, and what the command does with its environment.

#![cfg(test)]

mod documents;
mod environment;
mod tools;
