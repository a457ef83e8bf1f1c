//! The environment as texts. A variable of others may hold anything; one of ours that is no text is a wrong
//! configuration.

use std::ffi::OsString;

use crate::config::{ConfigErrors, Variable};

/// Names and values.
pub type Environment = Vec<(String, String)>;

/// What is wrong with a value that is not UTF-8.
const NOT_TEXT: &str = "is not UTF-8";

/// Reads the environment of this process; names and values that are not UTF-8 are left out. Those of `variables` that
/// have such a value are the faults.
pub fn read(variables: &[&[Variable]]) -> (Environment, ConfigErrors) {
    texts(std::env::vars_os(), variables)
}

fn texts(
    pairs: impl IntoIterator<Item = (OsString, OsString)>,
    variables: &[&[Variable]],
) -> (Environment, ConfigErrors) {
    let ours = |name: &str| variables.iter().copied().flatten().any(|variable| variable.is_named(name));
    let (mut environment, mut faults) = (Environment::new(), ConfigErrors::default());
    for (name, value) in pairs {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => environment.push((name, value)),
            Err(_) if ours(&name) => faults.0.push((name, NOT_TEXT.into())),
            Err(_) => {}
        }
    }
    (environment, faults)
}

/// The value of a variable; an empty one counts as not set.
pub fn value<'a>(environment: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.trim());
    found.filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::Kind;

    #[test]
    fn what_is_not_utf_8_is_a_fault_if_it_is_ours_and_left_out_if_it_is_not() {
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
        let (environment, faults) = texts(pairs, &[&variables]);
        assert_eq!(environment, [("KAFKA_TOPIC".to_owned(), "caf\u{e9}".to_owned())]);
        let named: Vec<&str> = faults.0.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(named, ["MONGODB_URI_FILE", "LISTEN_ADDR"]);
    }
}
