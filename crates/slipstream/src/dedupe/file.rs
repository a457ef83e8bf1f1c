//! The file for the documents that are removed: one document a line, in canonical Extended JSON v2, which `mongoimport`
//! reads. No document counts as written unless its line reads back to the same bytes, and none is to be removed
//! before [`Kept::sync`] has returned.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bson::{Document, RawDocumentBuf};

use super::extended_json::canonical;

/// The file, made by this run and written by nobody else.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    file: BufWriter<File>,
    lines: u64,
}

impl Kept {
    /// Makes the file, readable to its owner only, as the documents are others' data.
    ///
    /// # Errors
    /// It exists already, or cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(named)?;
        // The file's name must outlast a power cut as well as its content.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all()).map_err(named)?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file), lines: 0 })
    }

    /// Writes a document; `false`, with nothing written, if Extended JSON cannot hold it, as where a field of the
    /// document has the form of one of its types.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&mut self, document: &Document) -> io::Result<bool> {
        let line = canonical(document)?;
        if !reads_back(&line, document) {
            return Ok(false);
        }
        self.file.write_all(line.as_bytes())?;
        self.file.write_all(b"\n")?;
        self.lines += 1;
        Ok(true)
    }

    /// Returns when everything written is on the disk.
    ///
    /// # Errors
    /// It is not.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }

    /// Ends the file; without a line in it, it is removed again.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn finish(self) -> io::Result<()> {
        if self.lines == 0 { fs::remove_file(&self.path) } else { Ok(()) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn reads_back(line: &str, document: &Document) -> bool {
    let Ok(read) = serde_json::from_str::<Document>(line) else { return false };
    let bytes = |document: &Document| RawDocumentBuf::try_from(document).map(|raw| raw.as_bytes().to_vec());
    matches!((bytes(&read), bytes(document)), (Ok(read), Ok(written)) if read == written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{doc, oid::ObjectId};

    #[test]
    fn a_line_holds_every_type_of_a_document_and_its_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let mut file = Kept::create(&path).unwrap();
        let decimal: bson::Decimal128 = "1.10".parse().unwrap();
        let document = doc! {
            "_id": ObjectId::new(), "z": 1, "a": 2_i64, "r": 1.0, "n": f64::NAN, "d": decimal, "when": bson::DateTime::now(),
            "$set": { "a.b": "$c" }, "": null, "list": [true, { "x": 1 }],
        };
        assert!(file.write(&document).unwrap());
        file.sync().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(r#""z":{"$numberInt":"1"},"a":{"$numberLong":"2"}"#), "{text}");
        assert!(reads_back(text.trim_end(), &document));
        assert!(!reads_back(text.trim_end(), &doc! { "z": 1 }));
    }

    #[test]
    fn a_document_that_would_read_back_as_another_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let mut file = Kept::create(&path).unwrap();
        assert!(!file.write(&doc! { "a": { "$oid": "690a0b0c0d0e0f1011121314" } }).unwrap());
        assert!(!file.write(&doc! { "a": { "$numberInt": "x" } }).unwrap());
        file.finish().unwrap();
        assert!(!path.exists(), "a file without a line stays");
    }

    #[test]
    fn a_file_that_exists_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, "precious").unwrap();
        assert!(Kept::create(&path).unwrap_err().to_string().contains("f: "));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
