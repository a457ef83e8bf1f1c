//! The folder of a package in the cache: complete or absent, also after a kill or with concurrent
//! processes. One process fills a partial folder under a lock, and renames it after the checks.

use std::path::{Path, PathBuf};

use crate::folder::FolderLock;
use crate::{Machine, Progress, ServerError};

/// A package's folder in the cache.
pub(crate) enum Slot {
    /// It is complete.
    Filled(PathBuf),
    /// The caller must fill it. Other processes wait for that.
    Empty(Partial),
}

/// A partial folder. It becomes the package's folder when it is finished, and is removed if it is
/// dropped before.
pub(crate) struct Partial {
    folder: PathBuf,
    home: PathBuf,
    _lock: FolderLock,
}

impl Slot {
    pub(crate) async fn open(
        machine: &Machine,
        name: &str,
        progress: &Progress,
    ) -> Result<Slot, ServerError> {
        let home = machine.cache().join(name);
        if home.is_dir() {
            return Ok(Slot::Filled(home));
        }
        let waiting = || progress.report(&format!("waiting for another process that prepares {name}"));
        let lock = FolderLock::wait(machine.cache(), &format!("{name}.lock"), waiting).await?;
        if home.is_dir() {
            return Ok(Slot::Filled(home));
        }
        let folder = machine.cache().join(format!("{name}.partial"));
        remove(&folder).map_err(ServerError::io("removing", &folder))?;
        std::fs::create_dir(&folder).map_err(ServerError::io("creating", &folder))?;
        Ok(Slot::Empty(Partial { folder, home, _lock: lock }))
    }
}

impl Partial {
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn finish(self) -> Result<PathBuf, ServerError> {
        std::fs::rename(&self.folder, &self.home).map_err(ServerError::io("renaming", &self.folder))?;
        Ok(self.home.clone())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "partial package not removed");
        }
    }
}

fn remove(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slot_is_whole_or_absent() {
        let cache = tempfile::tempdir().unwrap();
        let machine = Machine::new("", cache.path());
        std::fs::create_dir(cache.path().join("x.partial")).unwrap();
        std::fs::write(cache.path().join("x.partial/half"), "left by a killed process").unwrap();

        let Slot::Empty(given_up) = Slot::open(&machine, "x", &Progress::silent()).await.unwrap() else {
            panic!()
        };
        assert_eq!(given_up.folder().read_dir().unwrap().count(), 0);
        drop(given_up);
        let Slot::Empty(partial) = Slot::open(&machine, "x", &Progress::silent()).await.unwrap() else {
            panic!()
        };
        std::fs::write(partial.folder().join("all"), "").unwrap();
        partial.finish().unwrap();

        let Slot::Filled(home) = Slot::open(&machine, "x", &Progress::silent()).await.unwrap() else {
            panic!()
        };
        assert!(home.join("all").is_file());
        assert!(!cache.path().join("x.partial").exists());
    }

    #[tokio::test]
    async fn whoever_comes_second_waits_and_finds_it_filled() {
        let cache = tempfile::tempdir().unwrap();
        let machine = Machine::new("", cache.path());
        let Slot::Empty(partial) = Slot::open(&machine, "x", &Progress::silent()).await.unwrap() else {
            panic!()
        };
        let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let progress = Progress::new(move |line| said.send(line.to_owned()).unwrap());
        let second = tokio::spawn(async move { Slot::open(&machine, "x", &progress).await });
        assert_eq!(heard.recv().await.unwrap(), "waiting for another process that prepares x");
        partial.finish().unwrap();
        assert!(matches!(second.await.unwrap().unwrap(), Slot::Filled(_)));
    }
}
