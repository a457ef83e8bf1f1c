//! Who may depend on what, and no dependency that is unused.
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

/// The sources below a folder without comments, and without test modules unless `with_tests`.
fn sources(folder: &Path, with_tests: bool) -> String {
    let mut sources = String::new();
    for path in folder.read_dir().into_iter().flatten().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            sources += &self::sources(&path, with_tests);
        } else if path.extension() == Some("rs".as_ref()) && (with_tests || !path.ends_with("tests.rs")) {
            let text = read(&path);
            let tests = if with_tests { None } else { text.find("#[cfg(test)]\nmod tests") };
            for line in text[..tests.unwrap_or(text.len())].lines() {
                sources.extend([line.split("//").next().unwrap_or_default(), "\n"]);
            }
        }
    }
    sources
}

/// Whether a source has a path that begins with the crate's name, or a `use` of the name alone. A
/// module of the same name counts as the crate.
fn uses(source: &str, dependency: &str) -> bool {
    let identifier = dependency.replace('-', "_");
    source.match_indices(&identifier).any(|(at, _)| {
        let (before, after) = (&source[..at], &source[at + identifier.len()..]);
        let is_first = |c: char| !(c.is_alphanumeric() || c == '_');
        let is_path = before.strip_suffix("::").unwrap_or(before).chars().next_back().is_none_or(is_first);
        is_path && (after.starts_with("::") || before.ends_with("use ") && after.starts_with([';', ' ']))
    })
}

/// The faults of a package's dependencies.
fn unused(package: &Value) -> Vec<String> {
    let folder = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap();
    let production = sources(&folder.join("src"), false);
    let all = ["src", "tests", "benches", "examples"].map(|part| sources(&folder.join(part), true)).concat();
    let build = std::fs::read_to_string(folder.join("build.rs")).unwrap_or_default();
    let dependencies = dependencies(package);
    let mut faults = Vec::new();
    for (dependency, kind) in &dependencies {
        let fault = match *kind {
            "dev" if dependencies.contains(&(dependency, "")) => "is already a dependency outside of tests",
            "dev" if !uses(&all, dependency) => "is unused",
            "build" if !uses(&build, dependency) => "is not used by build.rs",
            "" if !uses(&all, dependency) => "is unused",
            "" if !uses(&production, dependency) => "is used by tests only: make it a dev-dependency",
            _ => continue,
        };
        faults.push(format!("{}: {dependency} {fault}", name(package)));
    }
    faults
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
fn no_dependency_is_unused() {
    let mut faults = Vec::new();
    for folder in [root(), root().join("bench")] {
        let packages = packages(&folder);
        faults.extend(packages.iter().flat_map(unused));
        let used: BTreeSet<&str> = packages.iter().flat_map(dependencies).map(|(name, _)| name).collect();
        let manifest = read(&folder.join("Cargo.toml"));
        let (_, shared) = manifest.split_once("[workspace.dependencies]\n").expect("shared dependencies");
        let shared = shared.lines().take_while(|line| !line.starts_with('['));
        let shared = shared.filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(" = "));
        let names: Vec<&str> = shared.map(|(name, _)| name).collect();
        assert!(names.len() >= 10, "{names:?}");
        let unused = names.into_iter().filter(|name| !used.contains(name));
        faults.extend(unused.map(|name| format!("{}: no crate uses {name}", folder.display())));
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn a_use_is_a_path_or_an_import_outside_of_comments() {
    let folder = tempfile::tempdir().unwrap();
    let text = "use one_crate::A;\nuse two;\n// three::f()\nfn f() { x::four::f(); five(); my_six::f(); ::eight::f() }\n\
                #[cfg(test)]\nmod tests { use seven::B; }";
    std::fs::write(folder.path().join("lib.rs"), text).unwrap();
    let (production, all) = (sources(folder.path(), false), sources(folder.path(), true));
    for (dependency, expected) in [("one-crate", true), ("two", true), ("eight", true), ("seven", false)] {
        assert_eq!(uses(&production, dependency), expected, "{dependency}");
    }
    assert!(uses(&all, "seven"));
    for dependency in ["three", "four", "five", "six"] {
        assert!(!uses(&all, dependency), "{dependency}");
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
