//! Configuration: environment variables into one documented struct of texts, then one pass that collects every
//! fault. A value that is wrong or missing is named, never replaced by a default; a secret's value is never shown.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;

/// What becomes of a variable that is not set. An empty value counts as not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The process does not start without it.
    Required,
    /// As [`Kind::Required`], may be read from the file named by `NAME_FILE`, and is never shown.
    RequiredSecret,
    /// This text is used instead.
    Default(&'static str),
    /// Something else happens, which this text says.
    Optional(&'static str),
    /// As [`Kind::Optional`], may be read from the file named by `NAME_FILE`, and is never shown.
    OptionalSecret(&'static str),
}

impl Kind {
    /// Whether the value must not be shown.
    pub fn is_secret(self) -> bool {
        matches!(self, Self::RequiredSecret | Self::OptionalSecret(_))
    }

    /// The text for the column "default" of a table of variables.
    pub fn default_text(self) -> String {
        match self {
            Self::Required | Self::RequiredSecret => "required".into(),
            Self::Default(value) => format!("`{value}`"),
            Self::Optional(what) | Self::OptionalSecret(what) => what.into(),
        }
    }
}

/// One environment variable of a process: the manual, and what [`ConfigReader`] goes by.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// The field of the settings struct: the variable's name in lower case.
    pub field: &'static str,
    /// The field's documentation.
    pub doc: &'static str,
    /// What happens when it is not set.
    pub kind: Kind,
}

impl Variable {
    /// The name in the environment.
    pub fn name(&self) -> String {
        self.field.to_uppercase()
    }

    /// Whether `name` is this variable's, or that of the file that a secret is read from.
    pub fn is_named(&self, name: &str) -> bool {
        let own = self.name();
        name == own || (self.kind.is_secret() && name.strip_suffix("_FILE") == Some(own.as_str()))
    }
}

/// What every process reads besides its own variables.
pub const COMMON: &[Variable] = &[
    Variable {
        field: "log_format",
        doc: "`json` (one object a line) or `text`.",
        kind: Kind::Optional("`text` on a terminal, else `json`"),
    },
    Variable {
        field: "rust_log",
        doc: "Which log lines are written, as in `info` or `warn,consumer=debug`.",
        kind: Kind::Default("info"),
    },
];

/// Declares a settings struct: a field a variable, whose documentation is the manual that `--help` prints.
///
/// ```
/// service::settings! {
///     /// What the example reads from its environment.
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
            /// Every variable, in the order of the manual.
            pub const VARIABLES: &'static [$crate::Variable] = &[
                $($crate::Variable { field: stringify!($field), doc: concat!($($doc),+), kind: $kind },)+
            ];
        }
    };
}

/// Every fault of a configuration. `Display` is a line for each, with the variable's name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<(String, String)>);

impl ConfigErrors {
    /// Adds those of variables that are not named yet: one whose value could not be read seems to be missing later.
    pub fn join(&mut self, more: Self) {
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

/// The one pass over a settings struct: takes each value through its parser and collects what is wrong.
#[derive(Debug)]
pub struct ConfigReader {
    variables: &'static [Variable],
    /// Names of the variables that were read from a file.
    from_files: Vec<String>,
    faults: ConfigErrors,
}

impl ConfigReader {
    /// Reads `environment` into the settings struct `T`, the files behind `NAME_FILE` included.
    ///
    /// Only the documented spelling of a name counts: envy alone would take `kafka_topic` for
    /// `KAFKA_TOPIC`, and fail where both are set. Nothing fails here: faults are kept for
    /// [`ConfigReader::finish`].
    pub fn read<T: DeserializeOwned + Default>(
        variables: &'static [Variable],
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> (T, Self) {
        let mut check = Self { variables, from_files: Vec::new(), faults: ConfigErrors::default() };
        let ours = |name: &str| variables.iter().any(|variable| variable.is_named(name));
        let mut values: BTreeMap<String, String> =
            environment.into_iter().filter(|(name, value)| ours(name) && !value.trim().is_empty()).collect();
        for name in variables.iter().filter(|v| v.kind.is_secret()).map(Variable::name) {
            check.read_secret_file(&name, &mut values);
        }
        let settings = envy::from_iter(values).unwrap_or_else(|error| {
            check.add_error("environment", error.to_string());
            T::default()
        });
        (settings, check)
    }

    fn read_secret_file(&mut self, name: &str, values: &mut BTreeMap<String, String>) {
        let file_name = format!("{name}_FILE");
        let Some(path) = values.get(&file_name) else { return };
        if values.contains_key(name) {
            return self.add_error(&file_name, format!("set together with {name}; set one of them"));
        }
        // The path is not shown: it may be the secret itself, set by mistake.
        match std::fs::read_to_string(path) {
            Ok(text) if text.trim().is_empty() => self.add_error(&file_name, "names a file that is empty"),
            Ok(text) => {
                values.insert(name.to_owned(), text.trim_end_matches(['\r', '\n']).to_owned());
                self.from_files.push(name.to_owned());
            }
            Err(error) => self.add_error(&file_name, format!("names a file that cannot be read: {error}")),
        }
    }

    /// Whether the value of the variable `name` was read from the file that `NAME_FILE` names.
    pub fn is_from_file(&self, name: &str) -> bool {
        self.from_files.iter().any(|read| read == name)
    }

    /// Records that the variable `name` is wrong.
    pub fn add_error(&mut self, name: &str, problem: impl Into<String>) {
        self.faults.0.push((name.to_owned(), problem.into()));
    }

    /// The value of the field `field`, or its default, taken through `parse`; `None` after a fault.
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
                let told = self.faults.0.iter().any(|(faulty, _)| *faulty == format!("{name}_FILE"));
                if !told {
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

    /// As [`ConfigReader::value`] for a variable that may be unset: `Some(None)` then.
    pub fn optional<T>(
        &mut self,
        field: &str,
        value: Option<&String>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        if value.is_none() { Some(None) } else { self.value(field, value, parse).map(Some) }
    }

    /// The configuration, if nothing was wrong.
    ///
    /// # Errors
    /// Every fault found since [`ConfigReader::read`].
    pub fn finish<T>(self, config: Option<T>) -> Result<T, ConfigErrors> {
        match config {
            Some(config) if self.faults.0.is_empty() => Ok(config),
            _ => Err(self.faults),
        }
    }
}

/// A wrong value as a message may show it: in a URL, the part before an `@` and the query may hold
/// a password.
pub fn redact(text: &str) -> String {
    let text = text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, host)| format!("***@{host}"));
    match text.split_once('?') {
        Some((url, _)) if url.contains("://") || url.starts_with("***") => format!("{url}?***"),
        _ => text,
    }
}

/// Parsers for [`ConfigReader::value`]; the error completes the sentence `NAME: "value" …`.
pub mod parse {
    use std::str::FromStr;

    /// Any text.
    ///
    /// # Errors
    /// None; the form is that of a parser.
    pub fn text(text: &str) -> Result<String, String> {
        Ok(text.to_owned())
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// Any other text (letter case aside; `1`, `0`, `yes` and `no` are taken as the original took them).
    pub fn boolean(text: &str) -> Result<bool, String> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" => Ok(true),
            "false" | "0" | "no" => Ok(false),
            _ => Err("is neither true nor false".into()),
        }
    }

    /// A whole number within `range`.
    ///
    /// # Errors
    /// Not a number, or outside.
    pub fn number<T>(range: std::ops::RangeInclusive<T>) -> impl FnOnce(&str) -> Result<T, String>
    where
        T: FromStr + PartialOrd + std::fmt::Display,
    {
        move |text| match text.parse::<T>() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(format!("is not a whole number from {} to {}", range.start(), range.end())),
        }
    }

    /// Seconds, fractions allowed, from `least` on.
    ///
    /// # Errors
    /// Not a number, below `least`, or above a year.
    pub fn seconds(least: f64) -> impl FnOnce(&str) -> Result<std::time::Duration, String> {
        move |text| match text.parse::<f64>() {
            Ok(seconds) if seconds >= least && seconds <= 31_536_000.0 => {
                Ok(std::time::Duration::from_secs_f64(seconds))
            }
            _ => Err(format!("is not a number of seconds from {least} to 31536000")),
        }
    }

    /// An address to listen on.
    ///
    /// # Errors
    /// Not `IP:port`.
    pub fn address(text: &str) -> Result<std::net::SocketAddr, String> {
        text.parse().map_err(|_| "is not an address such as 0.0.0.0:8080".into())
    }

    /// A base URL, `http` or `https`, without query, kept without a slash at the end. It is shown in
    /// logs and findings, so it has no user and no password.
    ///
    /// # Errors
    /// Not such a URL.
    pub fn base_url(text: &str) -> Result<url::Url, String> {
        match url::Url::parse(text.trim_end_matches('/')) {
            Ok(url)
                if matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none() =>
            {
                match (url.username(), url.password()) {
                    ("", None) => Ok(url),
                    _ => Err("contains a user or a password, which would be logged".into()),
                }
            }
            _ => Err("is not a URL such as http://api-producer:8080".into()),
        }
    }

    /// A Kafka topic's name.
    ///
    /// # Errors
    /// A name that Kafka refuses.
    pub fn topic(text: &str) -> Result<String, String> {
        let right = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if (1..=249).contains(&text.len()) && text.chars().all(right) && text != "." && text != ".." {
            Ok(text.to_owned())
        } else {
            Err("is not a topic name: 1 to 249 letters, digits, '.', '_' or '-'".into())
        }
    }
}
