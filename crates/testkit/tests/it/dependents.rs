//! Who may depend on what.
//!
//! `deny.toml` lists the permitted dependents of a crate as its `wrappers`. The tests here need no
//! cargo-deny and no download: `Cargo.lock` has the dependencies of each crate on each platform,
//! and `cargo metadata --no-deps` has the kinds of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Dependents in `Cargo.lock` that no build contains. The lock file also lists optional
/// dependencies that an enabled feature only mentions.
const NEVER_BUILT: [&str; 1] = ["mongocrypt"];

/// Crates with the dependents that may use them in tests only.
const TESTS_ONLY: [(&str, &[&str]); 5] = [
    ("axum", &["poller"]),
    ("devservers", &["consumer", "e2e", "producer"]),
    ("reqwest", &["devservers"]),
    ("testkit", &["consumer", "e2e", "producer", "slipstream"]),
    ("testkit-macros", &["devservers"]),
];

type Dependents = BTreeMap<String, BTreeSet<String>>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The packages of the workspace in `folder`.
fn packages(folder: &Path) -> Vec<Value> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]).current_dir(folder);
    let output = cargo.output().unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    metadata["packages"].as_array().unwrap().clone()
}

fn name(value: &Value) -> &str {
    value["name"].as_str().unwrap()
}

/// The dependencies of a package with their kinds: `dev`, `build`, or empty.
fn dependencies(package: &Value) -> Vec<(&str, &str)> {
    let dependencies = package["dependencies"].as_array().unwrap().iter();
    dependencies.map(|found| (name(found), found["kind"].as_str().unwrap_or_default())).collect()
}

/// The crates that `deny.toml` bans, with their wrappers. A ban is one line.
fn bans(text: &str) -> Dependents {
    let (_, bans) = text.split_once("\ndeny = [\n").expect("bans.deny");
    let (bans, _) = bans.split_once("\n]").expect("the end of bans.deny");
    let lines = bans.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let parsed = lines.map(|line| {
        assert!(line.starts_with("{ crate = \"") && line.ends_with(" },"), "not a ban in one line: {line}");
        let mut names = line.split('"').skip(1).step_by(2).map(str::to_owned);
        (names.next().expect("the banned crate"), names.collect())
    });
    parsed.collect()
}

/// The dependents of each crate in a lock file.
fn dependents(lock: &str) -> Dependents {
    let mut dependents = Dependents::new();
    for package in lock.split("[[package]]").skip(1) {
        let dependent = package.split('"').nth(1).expect("a name");
        for dependency in package.lines().filter_map(|line| line.strip_prefix(" \"")) {
            let end = dependency.find([' ', '"']).expect("the end of a name");
            dependents.entry(dependency[..end].to_owned()).or_default().insert(dependent.to_owned());
        }
    }
    dependents
}

#[test]
fn no_crate_depends_on_testkit_outside_of_its_tests() {
    let mut dependents = Vec::new();
    for package in packages(&root()) {
        for (dependency, kind) in dependencies(&package) {
            if dependency.starts_with("testkit") && package["name"] != "testkit" {
                dependents.push((package["name"].clone(), kind.to_owned()));
            }
        }
    }
    assert!(!dependents.is_empty(), "cargo metadata lists no dependent");
    assert!(dependents.iter().all(|(_, kind)| kind == "dev"), "{dependents:?}");
}

#[test]
fn dependents_of_a_crate_are_its_wrappers_in_deny_toml() {
    let bans = bans(&read(&root().join("deny.toml")));
    let dependents = dependents(&read(&root().join("Cargo.lock")));
    for (banned, wrappers) in &bans {
        let mut found = dependents.get(banned).cloned().unwrap_or_default();
        found.retain(|dependent| !NEVER_BUILT.contains(&dependent.as_str()));
        assert_eq!(found, *wrappers, "dependents of {banned} (left) differ from its wrappers in deny.toml");
    }
    for package in packages(&root()) {
        let name = name(&package);
        let is_decided = bans.contains_key(name) || !dependents.contains_key(name);
        assert!(is_decided, "deny.toml does not list who may depend on {name}");
    }
}

#[test]
fn dependencies_of_tests_are_dev_dependencies() {
    for package in packages(&root()) {
        for (dependency, kind) in dependencies(&package) {
            let is_for_tests = TESTS_ONLY.iter().any(|(tests_only, dependents)| {
                *tests_only == dependency && dependents.contains(&name(&package))
            });
            assert!(!is_for_tests || kind == "dev", "{} needs {dependency} in tests only", name(&package));
        }
    }
}

#[test]
fn bans_and_dependents_are_read_with_all_their_names() {
    let deny = "[bans]\ndeny = [\n  # Why.\n  { crate = \"a\", wrappers = [\"b\", \"c\"] },\n  { crate = \"d\" },\n]\n";
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(bans(deny), [("a".to_owned(), set(&["b", "c"])), ("d".to_owned(), set(&[]))].into());
    let lock = "version = 4\n\n[[package]]\nname = \"b\"\nversion = \"1.0.0\"\ndependencies = [\n \"a 0.2.0\",\n \"d\",\n]\n";
    assert_eq!(dependents(lock), [("a".to_owned(), set(&["b"])), ("d".to_owned(), set(&["b"]))].into());
}
