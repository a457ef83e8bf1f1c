//! Reads the sources file.

use std::io::Read;
use std::path::Path;

use service::ConfigReader;
use service::config::environment_value;

use crate::config::Source;
use crate::fault::{Fault, Faults, Position};
use crate::parse::{self, Secrets, Settings};
use crate::reader::{Report, expand};
use crate::tree;

/// The variable that names the sources file.
pub const SOURCES_FILE: &str = "SOURCES_FILE";

/// Maximum size of a sources file.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// The sources of a file, in its order.
#[derive(Debug, PartialEq)]
pub struct Sources(Vec<Source>);

impl Sources {
    /// Reads SOURCES_FILE for the configuration of a process. `path` is its value. The faults become
    /// one error with a line each. `Some(None)` if the variable is unset.
    pub fn of_process(
        check: &mut ConfigReader,
        path: Option<&String>,
        environment: &[(String, String)],
        secrets: Secrets,
    ) -> Option<Option<Self>> {
        let Some(path) = path else { return Some(None) };
        let sources = Self::load(Path::new(path.trim()), environment, secrets);
        let reported = sources.map_err(|faults| {
            check.add_error(SOURCES_FILE, format!("has faults:\n{faults}"));
        });
        reported.ok().map(Some)
    }

    /// Reads and checks a file with the variables of a process.
    ///
    /// # Errors
    /// The file or a secret cannot be read, or it has faults: all of them are returned.
    pub fn load(path: &Path, environment: &[(String, String)], secrets: Secrets) -> Result<Self, Faults> {
        let variable = |name: &str| environment_value(environment, name).map(str::to_owned);
        let name = path.display().to_string();
        let unreadable = |message: String| {
            let fault = Fault { at: Position::default(), path: String::new(), message };
            Faults::new(name.clone(), vec![fault])
        };
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text))
            .map_err(|error| unreadable(format!("cannot be read: {error}")))?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(unreadable(format!("has more than {MAX_FILE_BYTES} bytes")));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::check(&name, &text, (folder, secrets), &variable)
    }

    /// Checks the text of a file. Schemas and secrets are read relative to `folder`. `variable` is the
    /// value of a variable.
    ///
    /// # Errors
    /// The text has faults: all of them are returned.
    pub fn parse(
        name: &str,
        text: &str,
        folder: &Path,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Faults> {
        Self::check(name, text, (folder, Secrets::Read), variable)
    }

    fn check(
        name: &str,
        text: &str,
        files: (&Path, Secrets),
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Faults> {
        let mut root = tree::parse(text).map_err(|fault| Faults::new(name.to_owned(), vec![fault]))?;
        let mut report = Report::default();
        expand(&mut root, "", variable, &mut report);
        let (sources, report) = parse::sources(&root, files, &Settings::new(variable), report);
        let faults = report.into_faults();
        if faults.is_empty() { Ok(Self(sources)) } else { Err(Faults::new(name.to_owned(), faults)) }
    }

    /// The sources in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Source> {
        self.0.iter()
    }

    /// The source with this name.
    pub fn get(&self, name: &str) -> Option<&Source> {
        self.0.iter().find(|source| source.name.as_str() == name)
    }
}
