//! Tests of the whole; no code of its own but test support.
