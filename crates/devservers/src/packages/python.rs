//! Python programs for tests: the packages of a requirements file in a folder for PYTHONPATH. pip
//! checks each hash. Nothing is installed into the user's Python.

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::fetch::{bytes_below, failed, megabytes, run};
use super::slot::Slot;
use crate::{Machine, Progress, ServerError};

/// The folder with the packages of `requirements`, a list with hashes; downloaded once. The name of
/// the folder has `name`, the Python version and a hash of the list.
pub async fn python_packages(
    name: &str,
    requirements: &str,
    machine: &Machine,
    progress: &Progress,
) -> Result<PathBuf, ServerError> {
    let missing = || ServerError::Missing(format!("{name} is a program in Python: install python3 with pip"));
    let python = machine.program("python3").ok_or_else(missing)?;
    let tag = Command::new(&python).args(["-c", "import sys; print(sys.implementation.cache_tag)"]).output();
    let tag = tag.ok().filter(|output| output.status.success()).ok_or_else(missing)?;
    let tag = String::from_utf8_lossy(&tag.stdout).trim().to_owned();
    let digest: String =
        Sha256::digest(requirements).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let partial = match Slot::open(machine, &format!("{name}-{tag}-{digest}"), progress).await? {
        Slot::Filled(home) => return Ok(home),
        Slot::Empty(partial) => partial,
    };
    progress.report(&format!("downloading {name} with pip, once"));
    let log = partial.folder().join("pip.log");
    let list = partial.folder().join("requirements.txt");
    std::fs::write(&list, requirements).map_err(ServerError::io("writing", &list))?;
    let report = |_| progress.report(&format!("{name}: {}", megabytes(bytes_below(partial.folder()))));
    run(install(&python, &list, partial.folder()), &log, report).await.map_err(|reason| {
        if reason.contains("No module named pip") { missing() } else { failed(name)(reason) }
    })?;
    partial.finish()
}

fn install(python: &Path, list: &Path, folder: &Path) -> Command {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--no-input", "--progress-bar=off", "--disable-pip-version-check"]);
    pip.args(["--no-deps", "--require-hashes", "--only-binary=:all:", "--root-user-action=ignore"]);
    pip.arg("--requirement").arg(list).arg("--target").arg(folder);
    // pip downloads into its temporary folder: its size is the progress.
    pip.env("TMPDIR", folder).env("PIP_REQUIRE_VIRTUALENV", "false");
    pip
}
