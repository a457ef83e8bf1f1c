//! The files under `.github/` are valid YAML, and everything that they call exists. The workflows
//! cannot run here; `actionlint` checks their syntax in CI.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use yaml_rust2::{Yaml, YamlLoader};

use crate::pages::{files, read, root};

/// The YAML files under `.github/`, parsed.
fn parsed() -> Vec<(String, Yaml)> {
    let parse = |path: String| {
        let mut documents =
            YamlLoader::load_from_str(&read(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(documents.len(), 1, "{path}");
        (path, documents.remove(0))
    };
    files(".github", "yml").into_iter().map(parse).collect()
}

/// The jobs of all workflows, with the path of the workflow and the name of the job.
fn jobs() -> Vec<(String, String, Yaml)> {
    let mut all = Vec::new();
    for (path, workflow) in parsed() {
        if !path.starts_with(".github/workflows/") {
            continue;
        }
        assert!(!workflow["permissions"].is_badvalue(), "{path} has no permissions");
        for (name, job) in workflow["jobs"].as_hash().unwrap_or_else(|| panic!("{path} has no jobs")) {
            all.push((path.clone(), name.as_str().unwrap().to_owned(), job.clone()));
        }
    }
    all
}

/// The steps of all workflows, with the path of the workflow.
fn steps() -> Vec<(String, Yaml)> {
    let steps = |(path, name, job): (String, String, Yaml)| {
        let steps = job["steps"].as_vec().unwrap_or_else(|| panic!("{path}: {name} has no steps")).clone();
        steps.into_iter().map(move |step| (path.clone(), step))
    };
    jobs().into_iter().flat_map(steps).collect()
}

/// The words of each command line of the workflows and of the scripts in `.ci/`.
fn command_lines() -> Vec<(String, Vec<String>)> {
    let runs = steps().into_iter().filter_map(|(path, step)| Some((path, step["run"].as_str()?.to_owned())));
    let scripts = fs::read_dir(root().join(".ci")).unwrap().map(|entry| {
        let path = format!(".ci/{}", entry.unwrap().file_name().to_str().unwrap());
        let text = read(&path);
        (path, text)
    });
    let words = |line: &str| {
        let words = line.split([' ', '\t', ';', '|', '&', '(', ')']);
        words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let mut all = Vec::new();
    for (path, text) in runs.chain(scripts) {
        let joined = text.replace("\\\n", " ");
        let lines = joined.lines().filter(|line| !line.trim_start().starts_with('#'));
        all.extend(lines.map(|line| (path.clone(), words(line))));
    }
    all
}

#[test]
fn every_job_has_a_timeout_and_a_fixed_runner() {
    let jobs = jobs();
    assert!(jobs.len() >= 10, "{} jobs", jobs.len());
    for (path, name, job) in jobs {
        assert!(job["timeout-minutes"].as_i64().is_some(), "{path}: {name} has no timeout");
        let runner = job["runs-on"].as_str().unwrap_or_else(|| panic!("{path}: {name} has no runner"));
        assert!(!runner.ends_with("-latest"), "{path}: {name} runs on {runner}");
    }
}

#[test]
fn every_action_is_pinned_to_a_version() {
    let actions: Vec<_> = steps()
        .into_iter()
        .filter_map(|(path, step)| Some((path, step["uses"].as_str()?.to_owned())))
        .collect();
    assert!(actions.len() > 20, "{actions:?}");
    for (path, action) in actions {
        let version = action.split_once("@v").map(|(_, version)| version);
        let pinned = version.is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()));
        assert!(pinned, "{path}: {action}");
    }
}

#[test]
fn every_called_script_target_and_package_exists() {
    let makefile = read("Makefile");
    let mut found = 0;
    for (path, words) in command_lines() {
        let calls_cargo = words.iter().any(|word| word == "cargo");
        for (word, next) in words.iter().zip(words.iter().skip(1).map(Some).chain([None])) {
            if word.starts_with(".ci/") {
                found += 1;
                let mode = fs::metadata(root().join(word)).unwrap_or_else(|_| panic!("{path}: {word}"));
                assert!(mode.permissions().mode() & 0o111 != 0, "{path}: {word} is not executable");
            }
            if word == "make" {
                found += 1;
                let target = format!("\n{}:", next.unwrap());
                assert!(makefile.contains(&target), "{path}: the Makefile has no target {target}");
            }
            if calls_cargo && (word == "-p" || word == "--package") {
                let package = next.unwrap();
                // A variable of a script or a format of printf.
                if package.contains(['%', '$']) {
                    continue;
                }
                found += 1;
                let folders = ["crates", "bench"].map(|folder| root().join(folder).join(package));
                assert!(
                    folders.iter().any(|folder| folder.exists()),
                    "{path}: there is no package {package}"
                );
            }
        }
    }
    assert!(found >= 10, "{found} calls");
}

#[test]
fn every_built_dockerfile_and_target_exists() {
    let mut found = 0;
    for (path, _, job) in jobs() {
        for image in job["strategy"]["matrix"]["include"].as_vec().into_iter().flatten() {
            let Some(dockerfile) = image["dockerfile"].as_str() else { continue };
            found += 1;
            let text = read(dockerfile);
            if let Some(target) = image["target"].as_str() {
                assert!(
                    text.contains(&format!(" AS {target}\n")),
                    "{path}: {dockerfile} has no target {target}"
                );
            }
        }
    }
    assert_eq!(found, 4);
}

#[test]
fn release_notes_of_the_present_version_exist() {
    let run = |tag: &str| Command::new(root().join(".ci/release-notes")).arg(tag).output().unwrap();
    let output = run(concat!("v", env!("CARGO_PKG_VERSION")));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{error}");
    let notes = String::from_utf8(output.stdout).unwrap();
    assert!(notes.contains("### Added") && !notes.contains("\n## "), "{notes}");
    assert!(!run("v9.9.9").status.success());
}
