//! The database that the tests of this binary share, and databases of a test's own, to be killed.

use std::path::{Path, PathBuf};

use devservers::{Database, DatabaseOptions, Progress, ServerError};
use tempfile::TempDir;
use tokio::sync::OnceCell;

/// Where the shared database is. It ends with this process.
pub async fn uri() -> String {
    static SHARED: OnceCell<Database> = OnceCell::const_new();
    let start = || async {
        let options = DatabaseOptions::new(own_folder());
        Database::start(options, Progress::silent()).await.expect("a database")
    };
    SHARED.get_or_init(start).await.uri()
}

/// Nothing is run when a process ends, so the folders of processes that are gone are removed by the next one.
fn own_folder() -> PathBuf {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("consumer-databases");
    for folder in std::fs::read_dir(&all).into_iter().flatten().flatten() {
        if !Path::new("/proc").join(folder.file_name()).exists() {
            _ = std::fs::remove_dir_all(folder.path());
        }
    }
    all.join(std::process::id().to_string())
}

/// A database that keeps what it acknowledged when it is killed. Its verbs are alike: each is over when it returns.
pub struct Durable {
    database: Database,
    _folder: TempDir,
}

pub async fn durable() -> Durable {
    let folder = tempfile::tempdir().expect("a folder");
    let options =
        DatabaseOptions { sync_on_commit: true, ..DatabaseOptions::new(folder.path().join("database")) };
    let database = Database::start(options, Progress::silent()).await.expect("a database");
    Durable { database, _folder: folder }
}

impl Durable {
    pub fn uri(&self) -> String {
        self.database.uri()
    }

    pub async fn restart(&self) -> Result<(), ServerError> {
        self.database.restart().await
    }

    pub async fn kill(&self) -> Result<(), ServerError> {
        self.database.kill();
        Ok(())
    }

    pub async fn pause(&self) -> Result<(), ServerError> {
        self.database.pause();
        Ok(())
    }

    pub async fn resume(&self) -> Result<(), ServerError> {
        self.database.resume();
        Ok(())
    }
}
