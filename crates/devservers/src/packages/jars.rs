//! Apache Kafka as published jars. Maven resolves the pom of this crate; each jar is checked
//! against kafka.sha256.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::fetch::{failed, megabytes, run};
use super::slot::{Partial, Slot};
use crate::{Machine, Progress, ServerError};

const NAME: &str = "apache-kafka-4.1.0";
const BYTES: u64 = 56_000_000;
const POM: &str = include_str!("../../packages/kafka-pom.xml");
const HASHES: &str = include_str!("../../packages/kafka.sha256");
const GOAL: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies";

/// The folder of the jars.
pub(crate) async fn kafka(machine: &Machine, progress: &Progress) -> Result<PathBuf, ServerError> {
    match Slot::open(machine, NAME, progress).await? {
        Slot::Filled(home) => Ok(home),
        Slot::Empty(partial) => fill(machine, partial, progress).await,
    }
}

async fn fill(machine: &Machine, partial: Partial, progress: &Progress) -> Result<PathBuf, ServerError> {
    let maven = machine.program("mvn").ok_or_else(|| {
        let sentence = "Apache Kafka is fetched by Maven: install it (mvn), choose SLIPSTREAM_BROKER=tansu, or name a \
                        running broker in KAFKA_BROKER";
        ServerError::Missing(sentence.to_owned())
    })?;
    let size = megabytes(BYTES);
    progress.report(&format!("downloading {NAME} (about {size}) with Maven, once, for the broker"));
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
        progress.report(&format!("{NAME}: {} of about {size}", megabytes(there)));
    };
    run(command, &work.join("maven.log"), report).await.map_err(failed(NAME))?;
    let checked = tokio::task::spawn_blocking(move || check(&jars)).await.map_err(|error| error.to_string());
    checked.flatten().map_err(failed(NAME))?;
    std::fs::remove_dir_all(&work).map_err(ServerError::io("removing", &work))?;
    progress.report(&format!("{NAME} is in {}", machine.cache().display()));
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
fn check(jars: &Path) -> Result<(), String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_read_from_mavens_line() {
        assert_eq!(downloaded("[INFO] Downloaded from central: x.jar (9.8 MB at 5.2 MB/s)"), 9_800_000);
        assert_eq!(downloaded("[INFO] Downloaded from central: x.pom (22 kB at 1 kB/s)"), 22_000);
        assert_eq!(downloaded("[INFO] Downloading from central: x.pom"), 0);
    }

    #[test]
    fn a_jar_that_is_not_what_its_hash_says_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = check(folder.path()).unwrap_err();
        assert!(refusal.starts_with("HdrHistogram-2.2.2.jar is missing"), "{refusal}");
        std::fs::write(folder.path().join("HdrHistogram-2.2.2.jar"), "something else").unwrap();
        assert!(check(folder.path()).unwrap_err().starts_with("HdrHistogram-2.2.2.jar is"));
    }
}
