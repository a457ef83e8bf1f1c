//! A MongoDB server on loopback: the `mongod` on PATH, or SecantusDB, which implements MongoDB's
//! protocol on WiredTiger.

pub(crate) mod command;
mod options;
mod programs;

pub use options::{Credentials, DatabaseKind, DatabaseOptions};

use crate::folder::FolderLock;
use crate::server::Server;
use crate::{Progress, ServerError, address};

/// A running MongoDB server. It is killed when it is dropped.
#[derive(Debug)]
pub struct Database {
    kind: DatabaseKind,
    auth: Option<Credentials>,
    /// mongod syncs a write if the client requests it.
    journal: bool,
    server: Server,
    _folder: FolderLock,
}

impl Database {
    /// Downloads missing packages, starts the server, and returns when it is ready.
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

    /// The value for MONGODB_URI, with the password if there is one.
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

    /// The kind.
    pub fn kind(&self) -> DatabaseKind {
        self.kind
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// Stops it gracefully.
    pub async fn stop(&self) {
        self.server.stop().await;
    }

    /// Sends SIGKILL.
    pub fn kill(&self) {
        self.server.kill();
    }

    /// Stops it if it runs, and starts it on the same port with the same data.
    pub async fn restart(&self) -> Result<(), ServerError> {
        self.server.restart().await
    }

    /// Pauses it: connections stay open without responses.
    pub fn pause(&self) {
        self.server.pause();
    }

    /// Resumes it after a pause.
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
