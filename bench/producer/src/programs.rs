//! The programs of the sides: our own are built by the same cargo in the same profile as this one, the original's
//! libraries are fetched once, each version pinned, into `bench/` of the target folder.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::Failure;
use crate::cli::{Name, Options};

const REQUIREMENTS: &str = include_str!("../original/requirements.txt");
const APP: &str = include_str!("../original/app.py");
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/sources/sources.yaml");

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    binaries: PathBuf,
    folder: PathBuf,
}

impl Programs {
    /// Builds and fetches what the measurement needs.
    pub async fn prepare(options: &Options) -> Result<Programs, Failure> {
        // target/PROFILE/bench-producer -> target/PROFILE, target/bench
        let this = std::env::current_exe()?;
        let binaries = this.parent().ok_or("this program lies nowhere")?.to_owned();
        let folder = binaries.parent().unwrap_or(&binaries).join("bench/producer");
        std::fs::create_dir_all(&folder)?;
        let programs = Programs { binaries, folder };
        programs.build().await?;
        if options.only.contains(&Name::Original) {
            programs.original().await?;
        }
        Ok(programs)
    }

    /// Where there is room for the broker's data.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// One of our own.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// The sources file.
    pub fn sources_file(&self) -> &'static str {
        SOURCES
    }

    /// Where the original's API and its Python are.
    pub fn original_home(&self) -> PathBuf {
        self.folder.join("original")
    }

    async fn build(&self) -> Result<(), Failure> {
        let bench = Path::new(env!("CARGO_MANIFEST_DIR"));
        let minimal_server = devservers::binaries::build_in(bench, &["bench-producer"]);
        for mut cargo in [devservers::binaries::build(&["producer"]), minimal_server] {
            // Both builds go to the target directory of this program, whatever the directory of its workspace is.
            cargo.env("CARGO_TARGET_DIR", self.binaries.parent().unwrap_or(&self.binaries));
            run(cargo.into()).await?;
        }
        Ok(())
    }

    async fn original(&self) -> Result<(), Failure> {
        let home = self.original_home();
        let complete = home.join("complete");
        if std::fs::read_to_string(&complete).ok().as_deref() != Some(REQUIREMENTS) {
            crate::say("installing the original's libraries with pip, once");
            _ = std::fs::remove_dir_all(&home);
            let mut venv = Command::new("python3");
            venv.args(["-m", "venv"]).arg(&home);
            run(venv).await?;
            let requirements = home.join("requirements.txt");
            std::fs::write(&requirements, REQUIREMENTS)?;
            let mut pip = Command::new(home.join("bin/python"));
            pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]);
            pip.arg("--requirement").arg(&requirements);
            run(pip).await?;
            std::fs::write(complete, REQUIREMENTS)?;
        }
        Ok(std::fs::write(home.join("app.py"), APP)?)
    }
}

async fn run(mut command: Command) -> Result<(), Failure> {
    let status = command.kill_on_drop(true).status().await?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}
