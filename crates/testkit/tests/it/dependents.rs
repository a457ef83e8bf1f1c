//! Test support is a dev-dependency only.

use std::process::Command;

use serde_json::Value;

#[test]
fn no_crate_depends_on_testkit_outside_of_its_tests() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--format-version", "1"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = cargo.output().unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let mut dependents = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        for dependency in package["dependencies"].as_array().unwrap() {
            let name = dependency["name"].as_str().unwrap();
            if name.starts_with("testkit") && package["name"] != "testkit" {
                dependents.push((package["name"].clone(), dependency["kind"].clone()));
            }
        }
    }
    assert!(!dependents.is_empty(), "cargo metadata lists no dependent");
    assert!(dependents.iter().all(|(_, kind)| kind == "dev"), "{dependents:?}");
}
