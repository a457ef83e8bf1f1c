//! A data folder is used by one process. The operating system releases the lock when the process
//! ends.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::ServerError;

/// Holds a data folder until it is dropped.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Creates the folder if it is missing. Fails if this or another process already holds it.
    pub fn take(folder: &Path) -> Result<FolderLock, ServerError> {
        let file = open(folder, &folder.join("slipstream.lock"))?;
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
        let file = open(folder, &path)?;
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

fn open(folder: &Path, file: &Path) -> Result<File, ServerError> {
    std::fs::create_dir_all(folder).map_err(ServerError::io("creating", folder))?;
    File::options().create(true).append(true).open(file).map_err(ServerError::io("opening", file))
}

#[cfg(test)]
mod tests {
    use super::*;

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
