//! Configuration from environment variables.
//!
//! [`settings!`](crate::settings) declares each variable once: name, documentation, default. The
//! [`ConfigReader`] parses all values and collects every error. An invalid value is an error and
//! never becomes a default. The value of a secret is never shown.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

use serde::de::DeserializeOwned;

/// Whether a variable is required, and its default. An empty value counts as unset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The process does not start if the variable is unset.
    Required,
    /// As [`Kind::Required`]. The value is never shown, and can be in the file that `NAME_FILE`
    /// names.
    RequiredSecret,
    /// This value is the default.
    Default(&'static str),
    /// There is no default value. The text describes the behavior if the variable is unset.
    Optional(&'static str),
    /// As [`Kind::Optional`]. The value is never shown, and can be in the file that `NAME_FILE`
    /// names.
    OptionalSecret(&'static str),
}

impl Kind {
    /// Whether the value is a secret.
    pub fn is_secret(self) -> bool {
        matches!(self, Self::RequiredSecret | Self::OptionalSecret(_))
    }

    /// The default, as the manual shows it.
    pub fn default_text(self) -> String {
        match self {
            Self::Required | Self::RequiredSecret => "required".into(),
            Self::Default(value) => format!("`{value}`"),
            Self::Optional(behavior) | Self::OptionalSecret(behavior) => behavior.into(),
        }
    }
}

/// The declaration of one environment variable.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// Field of the settings struct: the name of the variable in lower case.
    pub field: &'static str,
    /// Documentation of the variable.
    pub doc: &'static str,
    /// Default, and whether the variable is required.
    pub kind: Kind,
}

impl Variable {
    /// Name of the variable.
    pub fn name(&self) -> String {
        self.field.to_uppercase()
    }

    /// Whether `name` is the name of the variable, or `NAME_FILE` of a secret.
    pub fn is_named(&self, name: &str) -> bool {
        let own = self.name();
        name == own || (self.kind.is_secret() && name.strip_suffix("_FILE") == Some(own.as_str()))
    }
}

/// Declares a settings struct with one field per variable. The documentation of a field is the text
/// of `--help`.
///
/// ```
/// service::settings! {
///     /// The variables of the example.
///     pub struct Settings {
///         /// Kafka bootstrap servers, `host:port`, separated by commas.
///         kafka_broker: service::Kind::Required,
///         /// Topic.
///         kafka_topic: service::Kind::Default("events.raw"),
///     }
/// }
/// assert_eq!(Settings::VARIABLES[0].name(), "KAFKA_BROKER");
/// ```
#[macro_export]
macro_rules! settings {
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($(#[doc = $doc:literal])+ $field:ident: $kind:expr),+ $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Default, serde::Deserialize)]
        $vis struct $name {
            $($(#[doc = $doc])+ #[serde(default)] pub $field: Option<String>,)+
        }
        impl $name {
            /// All variables, in the order of the manual.
            pub const VARIABLES: &'static [$crate::Variable] = &[
                $($crate::Variable { field: stringify!($field), doc: concat!($($doc),+), kind: $kind },)+
            ];
        }
    };
}

crate::settings! {
    /// The settings of the logs.
    pub(crate) struct CommonSettings {
        /// `json` (one object per line) or `text`.
        log_format: Kind::Optional("`text` on a terminal, else `json`"),
        /// Filter of the log lines, for example `info` or `warn,consumer=debug`.
        rust_log: Kind::Default("info"),
    }
}

/// The variables that every process has in addition to its own.
pub const COMMON: &[Variable] = CommonSettings::VARIABLES;

/// All errors of a configuration: pairs of variable and problem. `Display` prints one line per
/// error.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<(String, String)>);

impl ConfigErrors {
    /// Adds the errors of variables that have no error yet.
    ///
    /// A variable that could not be read would otherwise also be reported as missing.
    pub fn merge(&mut self, more: Self) {
        let new = more.0.into_iter().filter(|(name, _)| self.0.iter().all(|(named, _)| named != name));
        let new: Vec<_> = new.collect();
        self.0.extend(new);
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration is wrong:")?;
        self.0.iter().try_for_each(|(name, problem)| write!(f, "\n  {name}: {problem}"))
    }
}

impl std::error::Error for ConfigErrors {}

/// Parses the values of a settings struct and collects the errors.
#[derive(Debug)]
pub struct ConfigReader {
    variables: &'static [Variable],
    /// Names of the variables that were read from a file.
    from_files: Vec<String>,
    errors: ConfigErrors,
}

impl ConfigReader {
    /// Reads `environment` and the files of `NAME_FILE` into the settings struct `T`.
    ///
    /// Names must be in upper case. envy alone would also accept `kafka_topic` for `KAFKA_TOPIC`,
    /// and fail if both are set. [`ConfigReader::finish`] returns the errors.
    pub fn read<T: DeserializeOwned + Default>(
        variables: &'static [Variable],
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> (T, Self) {
        let mut reader = Self { variables, from_files: Vec::new(), errors: ConfigErrors::default() };
        let is_declared = |name: &str| variables.iter().any(|variable| variable.is_named(name));
        let mut values: BTreeMap<String, String> = environment
            .into_iter()
            .filter(|(name, value)| is_declared(name) && !value.trim().is_empty())
            .collect();
        for name in variables.iter().filter(|v| v.kind.is_secret()).map(Variable::name) {
            reader.read_secret_file(&name, &mut values);
        }
        let settings = envy::from_iter(values).unwrap_or_else(|error| {
            reader.add_error("environment", error.to_string());
            T::default()
        });
        (settings, reader)
    }

    fn read_secret_file(&mut self, name: &str, values: &mut BTreeMap<String, String>) {
        let file_name = format!("{name}_FILE");
        let Some(path) = values.get(&file_name) else { return };
        if values.contains_key(name) {
            return self.add_error(&file_name, format!("set together with {name}; set one of them"));
        }
        // The path is not shown, because it may be the secret itself, set by mistake.
        match std::fs::read_to_string(path) {
            Ok(text) if text.trim().is_empty() => self.add_error(&file_name, "names a file that is empty"),
            Ok(text) => {
                values.insert(name.to_owned(), text.trim_end_matches(['\r', '\n']).to_owned());
                self.from_files.push(name.to_owned());
            }
            Err(error) => self.add_error(&file_name, format!("names a file that cannot be read: {error}")),
        }
    }

    /// Whether the value of `name` is from the file that `NAME_FILE` names.
    pub fn is_from_file(&self, name: &str) -> bool {
        self.from_files.iter().any(|from_file| from_file == name)
    }

    /// Adds an error of the variable `name`.
    pub fn add_error(&mut self, name: &str, problem: impl Into<String>) {
        self.errors.0.push((name.to_owned(), problem.into()));
    }

    /// Parses `value` of the field `field`, or its default. Returns `None` and adds an error on
    /// failure.
    pub fn value<T>(
        &mut self,
        field: &str,
        value: Option<&String>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let variable = self.variables.iter().find(|variable| variable.field == field);
        let kind = variable.map_or(Kind::Required, |variable| variable.kind);
        let name = field.to_uppercase();
        let text = match (value, kind) {
            (Some(text), _) => text.trim(),
            (None, Kind::Default(text)) => text,
            (None, _) => {
                let is_reported =
                    self.errors.0.iter().any(|(variable, _)| *variable == format!("{name}_FILE"));
                if !is_reported {
                    let doc = variable.map_or("", |variable| variable.doc.trim());
                    self.add_error(&name, format!("not set, and required: {doc}"));
                }
                return None;
            }
        };
        match parse(text) {
            Ok(parsed) => Some(parsed),
            Err(problem) if kind.is_secret() => {
                self.add_error(&name, problem);
                None
            }
            Err(problem) => {
                self.add_error(&name, format!("{:?} {problem}", redact(text)));
                None
            }
        }
    }

    /// As [`ConfigReader::value`], but `Some(None)` if the variable is unset.
    pub fn optional<T>(
        &mut self,
        field: &str,
        value: Option<&String>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        if value.is_none() { Some(None) } else { self.value(field, value, parse).map(Some) }
    }

    /// Returns the configuration if there are no errors.
    ///
    /// # Errors
    /// All errors since [`ConfigReader::read`].
    pub fn finish<T>(self, config: Option<T>) -> Result<T, ConfigErrors> {
        match config {
            Some(config) if self.errors.0.is_empty() => Ok(config),
            _ => Err(self.errors),
        }
    }
}

/// A value without the parts that may contain a password, for messages: in a URL, the user before
/// `@` and the query.
pub fn redact(text: &str) -> String {
    let text = text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, host)| format!("***@{host}"));
    match text.split_once('?') {
        Some((url, _)) if url.contains("://") || url.starts_with("***") => format!("{url}?***"),
        _ => text,
    }
}

/// A password, a key, or a URI that contains one. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one call that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The environment of the process as UTF-8 text: pairs of name and value.
pub type Environment = Vec<(String, String)>;

const NOT_UTF_8: &str = "is not UTF-8";

/// Reads the environment of this process, without names and values that are not UTF-8.
///
/// The errors are the variables of `variables` whose values are not UTF-8.
pub fn read_environment(variables: &[&[Variable]]) -> (Environment, ConfigErrors) {
    decode_environment(std::env::vars_os(), variables)
}

fn decode_environment(
    pairs: impl IntoIterator<Item = (OsString, OsString)>,
    variables: &[&[Variable]],
) -> (Environment, ConfigErrors) {
    let is_declared =
        |name: &str| variables.iter().copied().flatten().any(|variable| variable.is_named(name));
    let (mut environment, mut errors) = (Environment::new(), ConfigErrors::default());
    for (name, value) in pairs {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => environment.push((name, value)),
            Err(_) if is_declared(&name) => errors.0.push((name, NOT_UTF_8.into())),
            Err(_) => {}
        }
    }
    (environment, errors)
}

/// The trimmed value of a variable. An empty value counts as unset.
pub fn environment_value<'a>(environment: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let value = environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.trim());
    value.filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn a_value_that_is_not_utf_8_is_an_error_only_if_declared() {
        let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let pairs = [
            (text(b"LANG"), text(b"caf\xe9")),
            (text(b"NAME_\xff"), text(b"1")),
            (text(b"MONGODB_URI_FILE"), text(b"/run/\xff")),
            (text(b"LISTEN_ADDR"), text(b"\xff")),
            (text(b"KAFKA_TOPIC"), text("caf\u{e9}".as_bytes())),
        ];
        let variable = |field, kind| Variable { field, doc: "", kind };
        let variables = [
            variable("mongodb_uri", Kind::RequiredSecret),
            variable("listen_addr", Kind::Default("0.0.0.0:8080")),
            variable("kafka_topic", Kind::Default("events.raw")),
        ];
        let (environment, errors) = decode_environment(pairs, &[&variables]);
        assert_eq!(environment, [("KAFKA_TOPIC".to_owned(), "caf\u{e9}".to_owned())]);
        let named: Vec<&str> = errors.0.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(named, ["MONGODB_URI_FILE", "LISTEN_ADDR"]);
    }
}
