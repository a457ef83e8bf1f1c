//! The YAML of a sources file as a tree with positions.
//!
//! The tree is generic, because typed deserialization stops at the first fault.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Location, Spanned};

use crate::fault::{Fault, Position};

/// A value with its position.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) value: Value,
}

/// A value of a YAML document.
#[derive(Debug)]
pub(crate) enum Value {
    Null,
    Boolean(bool),
    Integer(i128),
    Real,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
    /// A fault of the value is already reported.
    Faulty,
}

/// The key of a map with its position.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) at: Position,
}

impl Value {
    /// The kind of the value in messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "empty",
            Self::Boolean(_) => "a boolean",
            Self::Integer(_) | Self::Real => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
            Self::Faulty => "faulty",
        }
    }
}

/// Parses YAML text with limits against alias bombs and deep nesting. A syntax error is the only
/// fault, because nothing behind it can be read.
pub(crate) fn parse(text: &str) -> Result<Node, Fault> {
    let limits = serde_saphyr::budget! {
        max_events: 200_000,
        max_aliases: 1_000,
        max_anchors: 1_000,
        max_depth: 32,
        max_documents: 1,
        max_nodes: 100_000,
        max_total_scalar_bytes: 4 * 1024 * 1024,
        max_merge_keys: 1_000,
    };
    let options = serde_saphyr::options! {
        budget: limits,
        // Each duplicate is reported later, with its path.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        strict_booleans: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        // A message must not show a line of the file, because a secret may stand there.
        with_snippet: false,
    };
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options) {
        Ok(root) => Ok(node(root)),
        Err(error) => {
            let at = error.location().map(position).unwrap_or_default();
            let text = error.without_snippet().to_string();
            // The position stands behind the message.
            let message =
                text.lines().next().unwrap_or_default().split(" at line ").next().unwrap_or_default();
            let message = match message.strip_prefix("budget breached: ") {
                Some(limit) => {
                    format!("it exceeds the limit of {}", limit.split(' ').next().unwrap_or_default())
                }
                None => message.to_owned(),
            };
            Err(Fault { at, path: String::new(), message: format!("the YAML cannot be read: {message}") })
        }
    }
}

fn position(location: Location) -> Position {
    Position { line: location.line(), column: location.column() }
}

/// What the visitor makes. A key can be any value here.
enum Raw {
    Value(Value),
    Map(Vec<(Spanned<Self>, Spanned<Self>)>),
    List(Vec<Spanned<Self>>),
}

fn node(raw: Spanned<Raw>) -> Node {
    let at = position(raw.referenced);
    let value = match raw.value {
        Raw::Value(value) => value,
        Raw::List(items) => Value::List(items.into_iter().map(node).collect()),
        Raw::Map(members) => {
            let members = members.into_iter().map(|(key, value)| {
                let key = node(key);
                let name = match key.value {
                    Value::Text(name) => name,
                    Value::Integer(number) => number.to_string(),
                    Value::Boolean(boolean) => boolean.to_string(),
                    _ => String::new(),
                };
                (Key { name, at: key.at }, node(value))
            });
            Value::Map(members.collect())
        }
    };
    Node { at, value }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E: Error>(self) -> Result<Raw, E> {
        Ok(Raw::Value(Value::Null))
    }

    fn visit_none<E: Error>(self) -> Result<Raw, E> {
        Ok(Raw::Value(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(Self)
    }

    fn visit_bool<E: Error>(self, boolean: bool) -> Result<Raw, E> {
        Ok(Raw::Value(Value::Boolean(boolean)))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Raw, E> {
        Ok(Raw::Value(Value::Integer(number.into())))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Raw, E> {
        Ok(Raw::Value(Value::Integer(number.into())))
    }

    fn visit_i128<E: Error>(self, number: i128) -> Result<Raw, E> {
        Ok(Raw::Value(Value::Integer(number)))
    }

    fn visit_u128<E: Error>(self, number: u128) -> Result<Raw, E> {
        Ok(Raw::Value(i128::try_from(number).map_or(Value::Real, Value::Integer)))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Value(Value::Real))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Value(Value::Text(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(member) = members.next_entry()? {
            map.push(member);
        }
        Ok(Raw::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::{Node, Value, parse};
    use crate::fault::Position;

    fn member<'n>(node: &'n Node, name: &str) -> &'n Node {
        let Value::Map(members) = &node.value else { panic!("{node:?}") };
        &members.iter().find(|(key, _)| key.name == name).unwrap_or_else(|| panic!("{name}")).1
    }

    #[test]
    fn each_value_and_key_has_its_position() {
        let tree = parse("a: 1\nb:\n  c: [x, {d: true}]\n").unwrap();
        let list = member(member(&tree, "b"), "c");
        assert_eq!(list.at, Position { line: 3, column: 6 });
        let Value::List(items) = &list.value else { panic!() };
        assert_eq!(items[0].at, Position { line: 3, column: 7 });
        let Value::Map(members) = &items[1].value else { panic!() };
        assert_eq!((members[0].0.name.as_str(), members[0].0.at), ("d", Position { line: 3, column: 11 }));
        assert!(matches!(members[0].1.value, Value::Boolean(true)));
    }

    #[test]
    fn duplicate_keys_are_kept_for_the_walker() {
        let tree = parse("a: 1\na: 2\n").unwrap();
        let Value::Map(members) = tree.value else { panic!() };
        assert_eq!(members.len(), 2);
        assert_eq!(members[1].0.at, Position { line: 2, column: 1 });
    }

    #[test]
    fn merged_fields_are_read() {
        let tree = parse("base: &base {every: 1s, x: 1}\na:\n  <<: *base\n  x: 2\n").unwrap();
        let a = member(&tree, "a");
        assert!(matches!(&member(a, "every").value, Value::Text(text) if text == "1s"));
        assert!(matches!(&member(a, "x").value, Value::Integer(2)));
        let Value::Map(members) = &a.value else { panic!() };
        assert_eq!(members.len(), 2);
    }

    #[test]
    fn a_syntax_error_has_its_position_and_no_text_of_the_file() {
        for text in [
            "a: \"s3cret",
            "a: [s3cret",
            "a:\n\t- s3cret",
            "a: *s3",
            "s3cret: {s3cret",
            "- s3cret\nb: s3cret",
        ] {
            let fault = parse(text).unwrap_err();
            assert!(!fault.message.contains("s3cret"), "{fault:?}");
            assert!(fault.at.line > 0, "{fault:?}");
        }
    }

    #[test]
    fn an_alias_bomb_and_deep_nesting_end_with_an_error() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let before = level - 1;
            let items = vec![format!("*a{before}"); 10].join(",");
            bomb += &format!("a{level}: &a{level} [{items}]\n");
        }
        let fault = parse(&bomb).unwrap_err();
        assert!(fault.message.contains("it exceeds the limit of"), "{fault:?}");
        assert!(parse(&("[".repeat(20_000) + &"]".repeat(20_000))).is_err());
        assert!(parse(&"- ".repeat(20_000)).is_err());
        assert!(parse(&format!("a: \"{}\"", "x".repeat(5 * 1024 * 1024))).is_err());
    }
}
