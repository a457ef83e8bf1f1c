//! The environment of the process as UTF-8 text.
//!
//! A variable that is not UTF-8 is an error if it is declared, and is ignored otherwise.

use std::ffi::OsString;

use crate::config::{ConfigErrors, Variable};

/// Pairs of name and value.
pub type Environment = Vec<(String, String)>;

const NOT_UTF_8: &str = "is not UTF-8";

/// Reads the environment of this process, without names and values that are not UTF-8.
///
/// The errors are the variables of `variables` whose values are not UTF-8.
pub fn read(variables: &[&[Variable]]) -> (Environment, ConfigErrors) {
    decode(std::env::vars_os(), variables)
}

fn decode(
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
pub fn value<'a>(environment: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let value = environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.trim());
    value.filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::Kind;

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
        let (environment, errors) = decode(pairs, &[&variables]);
        assert_eq!(environment, [("KAFKA_TOPIC".to_owned(), "caf\u{e9}".to_owned())]);
        let named: Vec<&str> = errors.0.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(named, ["MONGODB_URI_FILE", "LISTEN_ADDR"]);
    }
}
