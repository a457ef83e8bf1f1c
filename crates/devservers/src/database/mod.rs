//! A real database on loopback: the `mongod` on PATH, or SecantusDB, which speaks MongoDB's protocol over WiredTiger.

mod command;
mod programs;

use std::fmt;
use std::path::PathBuf;

pub(crate) use command::answers;

use crate::folder::FolderLock;
use crate::server::Server;
use crate::{Machine, Progress, ServerError, address};

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseKind {
    /// The `mongod` that is on PATH.
    Mongod,
    /// The packaged server.
    SecantusDb,
}

/// A user of the database with the role `root`.
#[derive(Clone)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The password; `Debug` does not show it.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// How to start a database.
#[derive(Clone, Debug)]
pub struct DatabaseOptions {
    /// Which one; `None` is a `mongod` on PATH, else the packaged one.
    pub kind: Option<DatabaseKind>,
    /// Where its data and its log go; created where missing.
    pub data_dir: PathBuf,
    /// Its port; 0 is a free one.
    pub port: u16,
    /// Whether an acknowledged write survives SIGKILL, at a fifth of the speed.
    pub sync_on_commit: bool,
    /// How much of its data it keeps in memory, in MiB. Beyond that it evicts, which costs more than the writes.
    pub cache_mib: u32,
    /// The user that clients must log in as; `None` lets everybody in.
    pub auth: Option<Credentials>,
    /// Where its programs come from.
    pub machine: Machine,
}

impl DatabaseOptions {
    /// On a free port, open, not synced, with the programs that the environment names.
    pub fn new(data_dir: impl Into<PathBuf>) -> DatabaseOptions {
        DatabaseOptions {
            kind: None,
            data_dir: data_dir.into(),
            port: 0,
            sync_on_commit: false,
            cache_mib: 256,
            auth: None,
            machine: Machine::from_env(),
        }
    }
}

/// A running database; dropping it kills it.
#[derive(Debug)]
pub struct Database {
    kind: DatabaseKind,
    auth: Option<Credentials>,
    /// A mongod syncs a write where the client asks for it.
    journal: bool,
    server: Server,
    _folder: FolderLock,
}

impl Database {
    /// Fetches what is missing, starts the database and returns when it answers.
    pub async fn start(mut options: DatabaseOptions, progress: Progress) -> Result<Database, ServerError> {
        options.data_dir = std::path::absolute(&options.data_dir).unwrap_or(options.data_dir);
        let folder = FolderLock::take(&options.data_dir)?;
        let installed = options.machine.program("mongod").map(|_| DatabaseKind::Mongod);
        let kind = options.kind.or(installed).unwrap_or(DatabaseKind::SecantusDb);
        if let Some(credentials) = &options.auth {
            programs::create_user(kind, &options, credentials, &progress).await?;
        }
        let server = programs::start(kind, &options, &progress).await?;
        let journal = options.sync_on_commit && kind == DatabaseKind::Mongod;
        Ok(Database { kind, auth: options.auth, journal, server, _folder: folder })
    }

    /// What MONGODB_URI takes. It has the password in it if there is one.
    pub fn uri(&self) -> String {
        let login = self.auth.as_ref().map_or(String::new(), |credentials| {
            format!("{}:{}@", percent_encoded(&credentials.user), percent_encoded(&credentials.password))
        });
        let options = [(self.auth.is_some(), "authSource=admin"), (self.journal, "journal=true")];
        let options: Vec<&str> =
            options.into_iter().filter_map(|(set, option)| set.then_some(option)).collect();
        let separator = if options.is_empty() { "" } else { "/?" };
        format!("mongodb://{login}{}{separator}{}", address::loopback(self.server.port()), options.join("&"))
    }

    /// Which database it is.
    pub fn kind(&self) -> DatabaseKind {
        self.kind
    }

    /// The number of its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// Stops it cleanly.
    pub async fn stop(&self) {
        self.server.stop().await;
    }

    /// Kills it with SIGKILL.
    pub fn kill(&self) {
        self.server.kill();
    }

    /// Starts it again on the same port with the same data; stops it before if it runs.
    pub async fn restart(&self) -> Result<(), ServerError> {
        self.server.restart().await
    }

    /// Keeps it from running: its connections stay open and nothing answers.
    pub fn pause(&self) {
        self.server.pause();
    }

    /// Lets it go on after a pause.
    pub fn resume(&self) {
        self.server.resume();
    }
}

fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_encoded_in_the_uri_and_hidden_in_debug() {
        let credentials = Credentials { user: "me".into(), password: "p@ss/ü".into() };
        assert_eq!(percent_encoded(&credentials.password), "p%40ss%2F%C3%BC");
        assert_eq!(format!("{credentials:?}"), "Credentials { user: \"me\", .. }");
    }
}
