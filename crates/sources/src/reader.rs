//! Reads fields out of the tree of a sources file and collects all faults.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::fault::{Fault, Position};
use crate::tree::{Key, Node, Value};

/// The faults found so far.
#[derive(Default)]
pub(crate) struct Report(Vec<Fault>);

impl Report {
    pub(crate) fn add(&mut self, at: Position, path: &str, message: impl Into<String>) {
        self.0.push(Fault { at, path: path.to_owned(), message: message.into() });
    }

    pub(crate) fn into_faults(self) -> Vec<Fault> {
        self.0
    }
}

/// A value with its path.
#[derive(Clone)]
pub(crate) struct At<'n> {
    pub(crate) node: &'n Node,
    pub(crate) path: String,
}

/// The fields of a map. Each field is known, and none occurs twice.
pub(crate) struct Fields<'n> {
    at: Position,
    pub(crate) path: String,
    members: Vec<(&'n Key, &'n Node)>,
}

impl<'n> At<'n> {
    /// Reports a fault of this value.
    pub(crate) fn fault(&self, report: &mut Report, message: impl Into<String>) {
        report.add(self.node.at, &self.path, message);
    }

    fn wrong(&self, report: &mut Report, wanted: &str) {
        if !matches!(self.node.value, Value::Faulty) {
            self.fault(report, format!("should be {wanted} and is {}", self.node.value.kind()));
        }
    }

    /// The result of a parser, whose error continues the sentence `path: …`.
    pub(crate) fn take<T>(&self, report: &mut Report, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.fault(report, message)).ok()
    }

    /// A text that is not empty.
    pub(crate) fn text(&self, report: &mut Report) -> Option<&'n str> {
        match &self.node.value {
            Value::Text(text) if text.is_empty() => self.fault(report, "should not be an empty text"),
            Value::Text(text) => return Some(text),
            Value::Integer(_) | Value::Real | Value::Boolean(_) => {
                let kind = self.node.value.kind();
                self.fault(report, format!("should be a text and is {kind}: write it in quotes"));
            }
            _ => self.wrong(report, "a text"),
        }
        None
    }

    /// A text that a parser takes.
    pub(crate) fn parsed<T>(
        &self,
        report: &mut Report,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(report)?;
        self.take(report, parse(text))
    }

    pub(crate) fn boolean(&self, report: &mut Report) -> Option<bool> {
        match &self.node.value {
            Value::Boolean(boolean) => Some(*boolean),
            // A variable is a text.
            Value::Text(text) if text == "true" => Some(true),
            Value::Text(text) if text == "false" => Some(false),
            _ => {
                self.wrong(report, "true or false");
                None
            }
        }
    }

    /// A whole number within a range.
    pub(crate) fn number(&self, report: &mut Report, min: u32, max: u32) -> Option<u32> {
        let number = match &self.node.value {
            Value::Integer(number) => u32::try_from(*number).ok(),
            Value::Text(text) => text.parse().ok(),
            _ => None,
        };
        let number = number.filter(|number| (min..=max).contains(number));
        if number.is_none() && !matches!(self.node.value, Value::Faulty) {
            self.fault(report, format!("should be a whole number from {min} to {max}"));
        }
        number
    }

    /// A duration within a range, such as `500ms`, `10s`, `5m`, `2h` or `1d`.
    pub(crate) fn duration(&self, report: &mut Report, min: &str, max: &str) -> Option<Duration> {
        const WANTED: &str = "a duration such as 500ms, 10s, 5m, 2h or 1d";
        let Value::Text(text) = &self.node.value else {
            self.wrong(report, WANTED);
            return None;
        };
        let (Some(least), Some(most)) = (duration(min), duration(max)) else { return None };
        match duration(text) {
            None => self.fault(report, format!("should be {WANTED}")),
            Some(found) if found < least || found > most => {
                self.fault(report, format!("should be a duration from {min} to {max}"));
            }
            Some(found) => return Some(found),
        }
        None
    }

    /// The items of a list with at least one item.
    pub(crate) fn list(&self, report: &mut Report, wanted: &str) -> Vec<Self> {
        match &self.node.value {
            Value::List(items) if items.is_empty() => {
                self.fault(report, format!("should be {wanted} and is empty"));
            }
            Value::List(_) => return self.items(),
            _ => self.wrong(report, wanted),
        }
        Vec::new()
    }

    /// The items of a list. The list of another value is empty.
    pub(crate) fn items(&self) -> Vec<Self> {
        let Value::List(items) = &self.node.value else { return Vec::new() };
        let with_path = |(index, node)| At { node, path: format!("{}[{index}]", self.path) };
        items.iter().enumerate().map(with_path).collect()
    }

    pub(crate) fn is_empty_text(&self) -> bool {
        matches!(&self.node.value, Value::Text(text) if text.is_empty())
    }

    pub(crate) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    pub(crate) fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    /// The members of a map with names of the user's own. Reports names that occur twice.
    pub(crate) fn members(&self, report: &mut Report, wanted: &str) -> Vec<(&'n Key, Self)> {
        let Value::Map(members) = &self.node.value else {
            self.wrong(report, wanted);
            return Vec::new();
        };
        let mut names = BTreeSet::new();
        let mut found = Vec::new();
        for (key, node) in members {
            let path = child(&self.path, &key.name);
            if names.insert(key.name.as_str()) {
                found.push((key, At { node, path }));
            } else {
                report.add(key.at, &path, "this name occurs twice");
            }
        }
        found
    }

    /// The fields of a map. Reports unknown ones and those that occur twice. `refused` fields are
    /// known to people, and each has its own message.
    pub(crate) fn fields(
        &self,
        report: &mut Report,
        known: &[&str],
        refused: &[(&str, &str)],
    ) -> Option<Fields<'n>> {
        if !self.is_map() {
            self.wrong(report, "a map of fields");
            return None;
        }
        let mut fields = Fields { at: self.node.at, path: self.path.clone(), members: Vec::new() };
        for (key, at) in self.members(report, "a map of fields") {
            if known.contains(&key.name.as_str()) {
                fields.members.push((key, at.node));
            } else if let Some((_, message)) = refused.iter().find(|(name, _)| *name == key.name) {
                report.add(key.at, &at.path, *message);
            } else {
                report.add(key.at, &at.path, format!("unknown field; known fields: {}", known.join(", ")));
            }
        }
        Some(fields)
    }
}

impl<'n> Fields<'n> {
    /// A field, if it is there.
    pub(crate) fn get(&self, name: &str) -> Option<At<'n>> {
        let (_, node) = self.members.iter().find(|(key, _)| key.name == name)?;
        Some(At { node, path: child(&self.path, name) })
    }

    /// A field that must be there.
    pub(crate) fn required(&self, report: &mut Report, name: &str) -> Option<At<'n>> {
        let field = self.get(name);
        if field.is_none() {
            report.add(self.at, &child(&self.path, name), "this field is missing");
        }
        field
    }

    /// The one field of several that must be there.
    pub(crate) fn one_of(
        &self,
        report: &mut Report,
        names: &[&'static str],
    ) -> Option<(&'static str, At<'n>)> {
        let mut found = names.iter().filter_map(|name| Some((*name, self.get(name)?)));
        let (first, second) = (found.next(), found.next());
        if first.is_none() || second.is_some() {
            report.add(self.at, &self.path, format!("should have one of the fields {}", names.join(", ")));
            return None;
        }
        first
    }
}

/// The path of a field. Its name is shown without control characters and not too long.
fn child(path: &str, name: &str) -> String {
    let name: String = name.chars().map(|char| if char.is_control() { '?' } else { char }).take(64).collect();
    if path.is_empty() { name } else { format!("{path}.{name}") }
}

fn duration(text: &str) -> Option<Duration> {
    let split = text.find(|char: char| !char.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(split)?;
    let number: u64 = number.parse().ok()?;
    let ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(ms).map(Duration::from_millis)
}

/// Replaces `${NAME}` and `${NAME:-DEFAULT}` in each text by a variable, and `$$` by `$`. Names of
/// fields are not changed.
pub(crate) fn expand(
    node: &mut Node,
    path: &str,
    variable: &dyn Fn(&str) -> Option<String>,
    report: &mut Report,
) {
    match &mut node.value {
        Value::Text(text) if text.contains('$') => match expanded(text, variable) {
            Ok(new) => *text = new,
            Err(message) => {
                report.add(node.at, path, message);
                node.value = Value::Faulty;
            }
        },
        Value::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                expand(item, &format!("{path}[{index}]"), variable, report);
            }
        }
        Value::Map(members) => {
            for (key, value) in members {
                expand(value, &child(path, &key.name), variable, report);
            }
        }
        _ => {}
    }
}

/// The value of a variable, without white space around it. An empty value counts as undefined.
pub(crate) fn value_of(variable: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn expanded(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut new = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        new.push_str(before);
        rest = if let Some(after) = after.strip_prefix('$') {
            new.push('$');
            after
        } else if let Some(after) = after.strip_prefix('{') {
            let (inside, after) = after.split_once('}').ok_or("has ${ without }; write $${ for ${ itself")?;
            let (name, default) = match inside.split_once(":-") {
                Some((name, default)) => (name, Some(default)),
                None => (inside, None),
            };
            let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if !is_name {
                return Err(
                    "has ${…} with something that is no name of a variable; write $${ for ${ itself".into()
                );
            }
            match (value_of(variable, name), default) {
                (Some(value), _) => new += &value,
                (None, Some(default)) => new += default,
                (None, None) => return Err(format!("the variable {name} is not defined, or it is empty")),
            }
            after
        } else {
            new.push('$');
            after
        };
    }
    new.push_str(rest);
    Ok(new)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{At, Report, duration, expand, expanded};
    use crate::tree::parse;

    #[test]
    fn durations_have_a_unit() {
        let ms = |text| duration(text).map(|found| found.as_millis());
        for (text, expected) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("0s", 0),
        ] {
            assert_eq!(ms(text), Some(expected), "{text}");
        }
        for text in
            ["", "10", "s", "1.5s", "-1s", "1 s", "1s ", "1S", "99999999999999999999s", "9999999999999999d"]
        {
            assert_eq!(ms(text), None, "{text}");
        }
        assert_eq!(duration("60s"), Some(Duration::from_secs(60)));
    }

    #[test]
    fn variables_are_replaced_once_and_dollars_can_be_written() {
        let variable = |name: &str| (name == "A_1").then(|| "x${A_1}".to_owned());
        let new = |text| expanded(text, &variable);
        assert_eq!(new("a ${A_1}/${A_1}!").unwrap(), "a x${A_1}/x${A_1}!");
        assert_eq!(new("$$ $${A_1} $key ^a$").unwrap(), "$ ${A_1} $key ^a$");
        assert_eq!(new("${B}").unwrap_err(), "the variable B is not defined, or it is empty");
        for text in ["${A_1", "${}", "${1}", "${A-B}", "${:-x}", "${A:-x"] {
            assert!(new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_default_replaces_a_variable_that_is_absent_or_empty() {
        let variable = |name: &str| match name {
            "SET" => Some("http://here".to_owned()),
            "EMPTY" => Some(String::new()),
            "SPACES" => Some(" a b\n".to_owned()),
            "BLANK" => Some(" ".to_owned()),
            _ => None,
        };
        let new = |text| expanded(text, &variable).unwrap();
        assert_eq!(new("${SET:-https://there}/a"), "http://here/a");
        assert_eq!(new("${EMPTY:-https://there:1}/a"), "https://there:1/a");
        assert_eq!(new("${NONE:-https://there}/${NONE:-}b"), "https://there/b");
        assert_eq!(new("<${SPACES}>${BLANK:-d}"), "<a b>d");
        for name in ["EMPTY", "BLANK"] {
            let error = expanded(&format!("${{{name}}}c"), &variable).unwrap_err();
            assert_eq!(error, format!("the variable {name} is not defined, or it is empty"));
        }
    }

    #[test]
    fn a_faulty_variable_is_reported_once() {
        let mut tree = parse("a: [\"${B}\", x]\n").unwrap();
        let mut report = Report::default();
        expand(&mut tree, "", &|_| None, &mut report);
        let root = At { node: &tree, path: String::new() };
        let fields = root.fields(&mut report, &["a"], &[]).unwrap();
        for item in fields.get("a").unwrap().list(&mut report, "a list") {
            item.text(&mut report);
            item.number(&mut report, 1, 2);
            item.duration(&mut report, "1s", "2s");
        }
        let faults = report.into_faults();
        let texts: Vec<String> =
            faults.iter().map(|fault| format!("{}: {}", fault.path, fault.message)).collect();
        assert_eq!(texts[0], "a[0]: the variable B is not defined, or it is empty");
        assert!(texts[1..].iter().all(|text| text.starts_with("a[1]: ")), "{texts:?}");
    }
}
