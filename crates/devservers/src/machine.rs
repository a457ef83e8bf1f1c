//! What servers use of the machine: programs on PATH, the cache of packages, ports on loopback and
//! locked folders. [`Machine`] is a value, so that a test can use a machine without Java or Python.

use std::ffi::OsString;
use std::fmt;
use std::fs::{File, TryLockError};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::error::ServerError;

/// The folders with programs and the folder for packages.
#[derive(Clone, Debug)]
pub struct Machine {
    path: OsString,
    cache: PathBuf,
}

/// A Java runtime of a sufficient version.
#[derive(Clone, Debug)]
pub(crate) struct Java {
    pub program: PathBuf,
    /// Its version text. A class archive is valid for exactly this version.
    pub version: String,
}

impl Machine {
    /// Uses PATH and SLIPSTREAM_CACHE. Without the latter, packages go to the user's cache folder.
    pub fn from_env() -> Machine {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let user = || set("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let cache = set("SLIPSTREAM_CACHE").map(PathBuf::from).unwrap_or_else(|| {
            let caches = set("XDG_CACHE_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute());
            caches.or_else(user).unwrap_or_else(std::env::temp_dir).join("slipstream")
        });
        Machine::new(set("PATH").unwrap_or_default(), cache)
    }

    /// Uses programs from `path` (as in PATH) and packages in `cache`.
    pub fn new(path: impl Into<OsString>, cache: impl Into<PathBuf>) -> Machine {
        let cache = cache.into();
        Machine { path: path.into(), cache: std::path::absolute(&cache).unwrap_or(cache) }
    }

    pub(crate) fn cache(&self) -> &Path {
        &self.cache
    }

    pub(crate) fn path(&self) -> &OsString {
        &self.path
    }

    /// The program of that name on PATH.
    pub(crate) fn program(&self, name: &str) -> Option<PathBuf> {
        std::env::split_paths(&self.path)
            .filter(|folder| folder.is_absolute())
            .map(|folder| folder.join(name))
            .find(|file| is_executable(file))
    }

    /// The `java` on PATH, if it is version 17 or later.
    pub(crate) fn java(&self) -> Option<Java> {
        let program = self.program("java")?;
        let output = Command::new(&program).arg("-version").stdin(Stdio::null()).output().ok()?;
        let version = String::from_utf8_lossy(&output.stderr).into_owned();
        (java_release(&version)? >= 17).then_some(Java { program, version })
    }
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// `openjdk version "17.0.15"` is 17, `java version "1.8.0_402"` is 8.
fn java_release(version: &str) -> Option<u32> {
    let quoted = version.split('"').nth(1)?;
    let quoted = quoted.strip_prefix("1.").unwrap_or(quoted);
    quoted.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Ports for servers that keep their port over restarts. They are below the ephemeral port range,
/// so that no outgoing connection takes the port of a stopped server.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

pub(crate) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A port that is free now. The caller must handle that it is in use later.
pub(crate) fn free_port() -> Result<u16, ServerError> {
    (0..100).map(|_| fastrand::u16(PORTS)).find(|port| is_free(*port)).ok_or_else(|| ServerError::Io {
        doing: "looking for a free port on",
        path: Ipv4Addr::LOCALHOST.to_string().into(),
        source: std::io::ErrorKind::AddrInUse.into(),
    })
}

/// The standard library sets SO_REUSEADDR, so old connections in TIME_WAIT do not count.
fn is_free(port: u16) -> bool {
    TcpListener::bind(loopback(port)).is_ok()
}

/// Holds a data folder, which one process uses at a time, until it is dropped. The operating system
/// releases the lock when the process ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Creates the folder if it is missing. Fails if this or another process already holds it.
    pub fn take(folder: &Path) -> Result<FolderLock, ServerError> {
        let file = open_lock(folder, &folder.join("slipstream.lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(FolderLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(ServerError::InUse { folder: folder.to_owned() }),
            Err(TryLockError::Error(source)) => Err(ServerError::io("locking", folder)(source)),
        }
    }

    /// Waits until nobody else holds `name` in the folder. Calls `waiting` once if it must wait.
    pub(crate) async fn wait(
        folder: &Path,
        name: &str,
        waiting: impl FnOnce(),
    ) -> Result<FolderLock, ServerError> {
        let path = folder.join(name);
        let file = open_lock(folder, &path)?;
        match file.try_lock() {
            Ok(()) => return Ok(FolderLock { _file: file }),
            Err(TryLockError::WouldBlock) => waiting(),
            Err(TryLockError::Error(source)) => return Err(ServerError::io("locking", &path)(source)),
        }
        let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
        let file =
            locked.map_err(std::io::Error::other).flatten().map_err(ServerError::io("locking", &path))?;
        Ok(FolderLock { _file: file })
    }
}

fn open_lock(folder: &Path, file: &Path) -> Result<File, ServerError> {
    std::fs::create_dir_all(folder).map_err(ServerError::io("creating", folder))?;
    File::options().create(true).append(true).open(file).map_err(ServerError::io("opening", file))
}

/// Receives progress lines. Cheap to clone.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(&str) + Send + Sync>);

impl Progress {
    /// Calls `show` with each line.
    pub fn new(show: impl Fn(&str) + Send + Sync + 'static) -> Progress {
        Progress(Arc::new(show))
    }

    /// For tests: writes the lines to the trace log only.
    pub fn silent() -> Progress {
        Progress::new(|line| tracing::debug!(line, "progress"))
    }

    pub(crate) fn report(&self, line: &str) {
        (self.0)(line);
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Progress")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_from_what_java_says() {
        assert_eq!(java_release("openjdk version \"17.0.15\" 2025-04-15"), Some(17));
        assert_eq!(java_release("openjdk version \"25\" 2025-09-16"), Some(25));
        assert_eq!(java_release("openjdk version \"22-ea\" 2024-03-19"), Some(22));
        assert_eq!(java_release("java version \"1.8.0_402\""), Some(8));
        assert_eq!(java_release("command not found"), None);
    }

    #[test]
    fn a_folder_or_a_plain_file_is_not_a_program() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("java")).unwrap();
        std::fs::write(folder.path().join("mvn"), "").unwrap();
        let machine = Machine::new(folder.path(), folder.path());
        assert_eq!((machine.program("java"), machine.program("mvn")), (None, None));
    }

    #[test]
    fn a_port_in_use_is_not_free() {
        let listener = TcpListener::bind(loopback(0)).unwrap();
        assert!(!is_free(listener.local_addr().unwrap().port()));
        assert!(is_free(free_port().unwrap()));
    }

    #[test]
    fn a_folder_is_held_until_its_lock_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(folder.path()).unwrap();
        let refusal = FolderLock::take(folder.path()).unwrap_err();
        assert!(refusal.to_string().contains("is in use by another process"), "{refusal}");
        drop(lock);
        FolderLock::take(folder.path()).unwrap();
    }
}
