//! The programs and their flags.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::command;
use super::options::{Credentials, DatabaseKind, DatabaseOptions};
use crate::server::{Launch, ReadinessCheck, Server};
use crate::{Machine, Progress, ServerError, address, packages};

/// A file in the data folder: the user exists.
const USER_MADE: &str = "user-made";

pub(super) async fn start(
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
pub(super) async fn create_user(
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
    let outcome = command::create_user(server.port(), &credentials.user, &credentials.password).await;
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
    let port = if options.port == 0 { address::free_port()? } else { options.port };
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
    // It reads its whole log file at the start: 0.5 s with a small one, up to 19 s with the default
    // of 2 GB.
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
