//! The folders of programs and packages. A value, so that a test can use a machine without Java or
//! Python.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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
}
