//! Tests of the crate's public functions on whole files.

#![cfg(test)]

mod apis;
mod deletes;
mod examples;
mod faults;
mod measure;
mod options;
mod properties;

use std::path::Path;

use sources::{Faults, Sources};

/// Parses the text of a file without variables.
fn parse(text: &str) -> Result<Sources, Faults> {
    Sources::parse("sources.yaml", text, Path::new("."), &|_| None)
}

/// Parses a file that has one source `s` with these fields.
fn source(fields: &str) -> Result<Sources, Faults> {
    let indented: String = fields.lines().map(|line| format!("    {line}\n")).collect();
    parse(&format!("sources:\n  s:\n{indented}"))
}

/// The only fault of a file that has one source `s` with these fields, as `path: message`.
fn fault(fields: &str) -> String {
    let faults = source(fields).expect_err(fields);
    assert_eq!(faults.count(), 1, "{fields}:\n{faults}");
    faults.iter().map(|fault| format!("{}: {}", fault.path, fault.message)).collect()
}
