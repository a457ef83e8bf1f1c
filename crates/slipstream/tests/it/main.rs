//! What the documents say, against the code.

#![cfg(test)]

mod documents;
