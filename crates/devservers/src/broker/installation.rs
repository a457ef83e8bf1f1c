//! The installed Apache Kafka: its Java, its class path, and the arguments of its JVM.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::machine::Java;
use crate::{Machine, ServerError};

/// Optimized for memory and start time. A broker without memory ends.
const JVM: [&str; 7] = [
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "-Xshare:auto",
    "-Djava.awt.headless=true",
];

/// The installed broker: its JVM and its files.
pub(super) struct Kafka {
    pub java: Java,
    pub class_path: OsString,
    /// The class archive: the broker starts in a fourth of the time.
    pub class_archive: Option<PathBuf>,
    /// The first metadata records of a new cluster.
    pub bootstrap: PathBuf,
}

/// The Java runtime, or an error that says what to install.
pub(super) fn java(machine: &Machine) -> Result<Java, ServerError> {
    machine.java().ok_or_else(|| {
        let sentence = "Apache Kafka needs Java 17 or later: install it (java), choose SLIPSTREAM_BROKER=tansu, or name a \
                        running broker in KAFKA_BROKER";
        ServerError::Missing(sentence.to_owned())
    })
}

/// Sorted: a class archive is valid only for the same class path.
pub(super) fn class_path(home: &Path) -> Result<OsString, ServerError> {
    let jars = home.join("jars");
    let entries = jars.read_dir().map_err(ServerError::io("reading", &jars))?;
    let mut jars: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    jars.sort();
    std::env::join_paths(jars).map_err(|error| ServerError::io("naming", home)(std::io::Error::other(error)))
}

impl Kafka {
    /// The arguments of the JVM, up to the class that is to run.
    pub(super) fn jvm(&self, logging: &Path) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = JVM.map(OsString::from).into();
        if let Some(archive) = &self.class_archive {
            arguments.push(flag("-XX:SharedArchiveFile=", archive));
        }
        arguments.push(flag("-Dlog4j2.configurationFile=", logging));
        arguments.extend(["-cp".into(), self.class_path.clone()]);
        arguments
    }
}

pub(super) fn flag(name: &str, path: &Path) -> OsString {
    let mut flag = OsString::from(name);
    flag.push(path);
    flag
}
