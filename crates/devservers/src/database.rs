//! A MongoDB server on loopback: the `mongod` on PATH, or SecantusDB, which implements MongoDB's
//! protocol on WiredTiger.

use std::ffi::OsString;
use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use crate::error::ServerError;
use crate::machine::{self, FolderLock, Machine, Progress};
use crate::server::{Launch, ReadinessCheck, Server};
use crate::{packages, wire};

/// The kind of a MongoDB server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseKind {
    /// The `mongod` on PATH.
    Mongod,
    /// The packaged SecantusDB.
    SecantusDb,
}

/// A user with the role `root`.
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

/// Options of a MongoDB server.
#[derive(Clone, Debug)]
pub struct DatabaseOptions {
    /// The kind; `None` is a `mongod` on PATH, else SecantusDB.
    pub kind: Option<DatabaseKind>,
    /// The folder for data and log. It is created if missing.
    pub data_dir: PathBuf,
    /// Its port; 0 is a free port.
    pub port: u16,
    /// Whether an acknowledged write survives SIGKILL, which costs four fifths of the speed.
    pub sync_on_commit: bool,
    /// Size of its cache in MiB. Eviction beyond it costs more than the writes.
    pub cache_mib: u32,
    /// The user with which clients must authenticate; `None` is no authentication.
    pub auth: Option<Credentials>,
    /// The machine with its programs.
    pub machine: Machine,
}

impl DatabaseOptions {
    /// On a free port, without authentication and sync, with the programs on PATH.
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
            create_user(kind, &options, credentials, &progress).await?;
        }
        let server = start(kind, &options, &progress).await?;
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
        format!("mongodb://{login}{}{separator}{}", machine::loopback(self.server.port()), options.join("&"))
    }

    /// The kind.
    pub fn kind(&self) -> DatabaseKind {
        self.kind
    }
}

impl Deref for Database {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// Name of a file in the data folder. It exists once the database user was created.
const USER_MADE: &str = "user-made";

async fn start(
    kind: DatabaseKind,
    options: &DatabaseOptions,
    progress: &Progress,
) -> Result<Server, ServerError> {
    let program = program(kind, &options.machine, progress).await?;
    let mut tries = 3;
    loop {
        tries -= 1;
        match Server::start(launch(kind, options, program.clone())?).await {
            Err(error) if error.is_port_conflict() && options.port == 0 && tries > 0 => {}
            outcome => return outcome,
        }
    }
}

/// Creates the user before the first start with authentication.
async fn create_user(
    kind: DatabaseKind,
    options: &DatabaseOptions,
    credentials: &Credentials,
    progress: &Progress,
) -> Result<(), ServerError> {
    let made = options.data_dir.join(USER_MADE);
    if made.exists() {
        return Ok(());
    }
    let open = DatabaseOptions { auth: None, sync_on_commit: true, ..options.clone() };
    let server = start(kind, &open, progress).await?;
    let outcome = wire::create_user(server.port(), &credentials.user, &credentials.password).await;
    outcome.map_err(ServerError::io("making the database's user for", &options.data_dir))?;
    server.stop().await;
    std::fs::write(&made, "").map_err(ServerError::io("writing", &made))
}

async fn program(kind: DatabaseKind, machine: &Machine, progress: &Progress) -> Result<PathBuf, ServerError> {
    match kind {
        DatabaseKind::SecantusDb => packages::secantusdb(machine, progress).await,
        DatabaseKind::Mongod => machine.program("mongod").ok_or_else(|| {
            let sentence =
                "there is no mongod on PATH: install MongoDB, or name a running one in MONGODB_URI";
            ServerError::Missing(sentence.to_owned())
        }),
    }
}

fn launch(kind: DatabaseKind, options: &DatabaseOptions, program: PathBuf) -> Result<Launch, ServerError> {
    let folder = &options.data_dir;
    let data = folder.join("data");
    std::fs::create_dir_all(&data).map_err(ServerError::io("creating", &data))?;
    let port = if options.port == 0 { machine::free_port()? } else { options.port };
    let mut arguments = match kind {
        DatabaseKind::Mongod => mongod(&data, port, options.cache_mib),
        DatabaseKind::SecantusDb => secantusdb(folder, &data, port, options.cache_mib)?,
    };
    if options.auth.is_some() {
        arguments.push("--auth".into());
    }
    if options.sync_on_commit && kind == DatabaseKind::SecantusDb {
        arguments.push("--sync-on-commit".into());
    }
    let name = match kind {
        DatabaseKind::Mongod => "mongod",
        DatabaseKind::SecantusDb => "SecantusDB",
    };
    Ok(Launch {
        name,
        program,
        arguments,
        only_path: Some(options.machine.path().clone()),
        folder: folder.clone(),
        log: folder.join("database.log"),
        port,
        readiness_check: ReadinessCheck::Hello,
    })
}

fn mongod(data: &Path, port: u16, cache_mib: u32) -> Vec<OsString> {
    let (port, cache) = (port.to_string(), (f64::from(cache_mib) / 1024.0).to_string());
    let flags = [
        "--bind_ip",
        "127.0.0.1",
        "--nounixsocket",
        "--wiredTigerCacheSizeGB",
        &cache,
        "--port",
        &port,
        "--dbpath",
    ];
    let flags = flags.into_iter().map(OsString::from);
    flags.chain([data.into()]).collect()
}

fn secantusdb(folder: &Path, data: &Path, port: u16, cache_mib: u32) -> Result<Vec<OsString>, ServerError> {
    // The server searches for other configurations unless one is named; an empty one is enough.
    let configuration = folder.join("secantusd.toml");
    std::fs::write(&configuration, "").map_err(ServerError::io("writing", &configuration))?;
    let (port, cache) = (port.to_string(), format!("{cache_mib}M"));
    // SecantusDB reads its whole log file at startup: 0.5 s for a small file, up to 19 s for the
    // default size of 2 GB.
    let flags = [
        "--standalone",
        "--host",
        "127.0.0.1",
        "--cache-size",
        &cache,
        "--log-file-max",
        "128MB",
        "--port",
        &port,
    ];
    let flags = flags.into_iter().map(OsString::from);
    let folders = ["--config".into(), configuration.into(), "--storage-path".into(), data.into()];
    Ok(flags.chain(folders).collect())
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
