//! The programs of the sides: our own are built by the same cargo in the same profile as this one, the others are
//! fetched once, each version pinned, into `bench/` of the target folder.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use devservers::Child;

use crate::Failure;
use crate::cli::{Name, Options};

const REQUIREMENTS: &str = include_str!("../original/requirements.txt");
const CONSUMER: &str = include_str!("../original/consumer.py");
const POM: &str = include_str!("../connector/pom.xml");
const GOAL: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies";
/// Says that a folder has all that it should, and of which version: the text that it was made of.
const COMPLETE: &str = "complete";

/// Where the programs are.
#[derive(Debug)]
pub struct Programs {
    binaries: PathBuf,
    folder: PathBuf,
}

impl Programs {
    /// Builds and fetches what the measurement needs.
    pub async fn prepare(options: &Options) -> Result<Programs, Failure> {
        // target/PROFILE/bench-consumer -> target/PROFILE, target/bench
        let this = std::env::current_exe()?;
        let binaries = this.parent().ok_or("this program lies nowhere")?.to_owned();
        let folder = binaries.parent().unwrap_or(&binaries).join("bench");
        std::fs::create_dir_all(&folder)?;
        let programs = Programs { binaries, folder };
        if options.takes(Name::Slipstream) || options.takes(Name::Deletes) {
            programs.build().await?;
        }
        if options.takes(Name::Original) {
            programs.original().await?;
        }
        if options.takes(Name::Connector) {
            programs.connector().await?;
        }
        Ok(programs)
    }

    /// Where there is room for the servers' data.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// One of our own.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// The Python that has the original's libraries.
    pub fn python(&self) -> PathBuf {
        self.folder.join("original/bin/python")
    }

    /// The original's consumer.
    pub fn original_consumer(&self) -> PathBuf {
        self.folder.join("original/consumer.py")
    }

    /// The class path of the connector and its worker.
    pub fn connector_class_path(&self) -> OsString {
        self.folder.join("connector/jars/*").into_os_string()
    }

    async fn build(&self) -> Result<(), Failure> {
        crate::say("building the consumer and the producer");
        let mut cargo = devservers::binaries::build(&["consumer", "producer"]);
        // The folder above may be a target directory that this variable does not name, if this program was moved.
        cargo.env("CARGO_TARGET_DIR", self.binaries.parent().unwrap_or(&self.binaries));
        run(cargo, &self.folder.join("build.log")).await
    }

    async fn original(&self) -> Result<(), Failure> {
        let home = self.folder.join("original");
        if !is_complete(&home, REQUIREMENTS) {
            crate::say("installing the original's libraries with pip, once");
            empty(&home)?;
            let mut venv = Command::new("python3");
            venv.args(["-m", "venv"]).arg(&home);
            run(venv, &self.folder.join("venv.log")).await?;
            let requirements = home.join("requirements.txt");
            std::fs::write(&requirements, REQUIREMENTS)?;
            let mut pip = Command::new(self.python());
            pip.args(["-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--requirement"]);
            pip.arg(&requirements);
            run(pip, &self.folder.join("pip.log")).await?;
            std::fs::write(home.join(COMPLETE), REQUIREMENTS)?;
        }
        Ok(std::fs::write(self.original_consumer(), CONSUMER)?)
    }

    async fn connector(&self) -> Result<(), Failure> {
        let home = self.folder.join("connector");
        if is_complete(&home, POM) {
            return Ok(());
        }
        crate::say("downloading MongoDB's connector and Kafka Connect (about 40 MB) with Maven, once");
        empty(&home)?;
        let pom = home.join("pom.xml");
        std::fs::write(&pom, POM)?;
        let mut maven = Command::new("mvn");
        maven.args(["--batch-mode", "--file"]).arg(&pom).arg(GOAL).arg("-DincludeScope=runtime");
        maven.arg(format!("-DoutputDirectory={}", home.join("jars").display())).current_dir(&home);
        run(maven, &self.folder.join("maven.log")).await?;
        Ok(std::fs::write(home.join(COMPLETE), POM)?)
    }
}

fn is_complete(home: &Path, of: &str) -> bool {
    std::fs::read_to_string(home.join(COMPLETE)).is_ok_and(|text| text == of)
}

fn empty(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::fs::create_dir(folder),
    }
}

/// Runs a command to its end; it ends with this process, too.
async fn run(command: Command, log: &Path) -> Result<(), Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    empty_file(log)?;
    let child =
        Child::start(command, log).map_err(|error| format!("{program} cannot be started: {error}"))?;
    let status = child.ended().await;
    if status.success() {
        return Ok(());
    }
    Err(format!("{program} failed ({status}): {}", tail(log)).into())
}

fn empty_file(path: &Path) -> std::io::Result<()> {
    std::fs::write(path, "")
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    const LINES: usize = 30;
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n")
}
