//! A sources file in a folder of its own.

use tempfile::TempDir;

/// A sources file, beside which other files can be.
#[derive(Debug)]
pub struct SourcesFile {
    folder: TempDir,
}

impl SourcesFile {
    /// Writes the file.
    pub fn new(text: &str) -> Self {
        let file = Self { folder: tempfile::tempdir().expect("a temporary directory") };
        file.write(text);
        file
    }

    /// The value for SOURCES_FILE.
    pub fn path(&self) -> String {
        self.folder.path().join("sources.yaml").display().to_string()
    }

    /// Replaces the text of the file.
    pub fn write(&self, text: &str) {
        self.add("sources.yaml", text);
    }

    /// Writes another file to the folder, such as a schema.
    pub fn add(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).expect("a writable folder");
    }
}
