//! A JSON Schema for the records of a source, compiled when the file is read.

use std::fmt;

use events::Loc;
use jsonschema::error::ValidationErrorKind;
use jsonschema::paths::LocationSegment;
use jsonschema::{Draft, PatternOptions, ReferencingError, ValidationError, Validator};
use serde_json::Value;

/// Maximum number of listed faults of a record. One more entry counts the others.
const MAX_FAULTS: usize = 100;
/// Maximum bytes of all listed faults, except the first.
const MAX_BYTES: usize = 32 * 1024;
/// Maximum length of a message and of a name in a path.
const MAX_CHARS: usize = 256;
/// Maximum number of errors of a schema.
const MAX_ERRORS: usize = 20;
/// Steps of a regular expression with look-around or back references on one string.
const BACKTRACK_LIMIT: usize = 100_000;
/// Maximum size of a compiled regular expression.
const REGEX_BYTES: usize = 1024 * 1024;
const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// A compiled schema (draft 2020-12). `format` is checked.
pub struct Schema {
    validator: Validator,
    document: Value,
}

/// One fault of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaFault {
    /// The path of the value in the record.
    pub path: Vec<Loc>,
    /// The broken rule. It never contains the value.
    pub message: String,
}

impl Schema {
    /// Compiles a schema. Each error continues the sentence `path: …`.
    ///
    /// # Errors
    /// The text is not JSON, not a schema of draft 2020-12, or it has a reference to another file.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let document: Value = serde_json::from_str(text).map_err(|error| {
            vec![format!("is not JSON at line {} column {}", error.line(), error.column())]
        })?;
        if !document.is_object() && !document.is_boolean() {
            return Err(vec!["is not a JSON Schema: it should be an object".into()]);
        }
        if let Some(draft) = document.get("$schema")
            && draft.as_str().is_none_or(|draft| draft.trim_end_matches('#') != DRAFT)
        {
            return Err(vec![format!("is not of draft 2020-12: $schema should be {DRAFT} or absent")]);
        }
        let meta = jsonschema::draft202012::meta::validator();
        let errors: Vec<String> =
            meta.iter_errors(&document).take(MAX_ERRORS).map(|error| reason(&error)).collect();
        if !errors.is_empty() {
            return Err(errors);
        }
        let patterns = PatternOptions::fancy_regex()
            .backtrack_limit(BACKTRACK_LIMIT)
            .size_limit(REGEX_BYTES)
            .dfa_size_limit(REGEX_BYTES);
        let options = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .should_validate_formats(true)
            .with_pattern_options(patterns);
        let validator = options.build(&document).map_err(|error| vec![reason(&error)])?;
        Ok(Self { validator, document })
    }

    /// The schema itself, for the API's documentation.
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// All faults of a record, which is valid JSON. Without faults the list is empty.
    pub fn faults(&self, record: &str) -> Vec<SchemaFault> {
        let value: Value = match serde_json::from_str(record) {
            Ok(value) => value,
            Err(error) => {
                let message = error.to_string();
                let message = message.split(" at line ").next().unwrap_or_default();
                return vec![SchemaFault {
                    path: Vec::new(),
                    message: format!("cannot be checked: {message}"),
                }];
            }
        };
        if self.validator.is_valid(&value) {
            return Vec::new();
        }
        let mut faults = List::default();
        for error in self.validator.iter_errors(&value) {
            faults.push(&error);
        }
        faults.into_faults()
    }
}

/// Why a schema cannot be used.
fn reason(error: &ValidationError<'_>) -> String {
    if let ValidationErrorKind::Referencing(ReferencingError::Unretrievable { uri, .. }) = error.kind() {
        return format!("has a $ref to {uri}, but only references within the schema are allowed");
    }
    let at = error.instance_path().to_string();
    let at = if at.is_empty() { String::new() } else { format!(" at {at}") };
    format!("is not a valid JSON Schema{at}: {error}")
}

/// The faults of a record, with limits.
#[derive(Default)]
struct List {
    faults: Vec<SchemaFault>,
    bytes: usize,
    more: usize,
}

impl List {
    fn push(&mut self, error: &ValidationError<'_>) {
        let path: Vec<Loc> = error.instance_path().into_iter().map(step).collect();
        match error.kind() {
            // The name of a property is part of the path, as that of a missing field is in a request.
            ValidationErrorKind::Required { property } => {
                self.add(&path, property.as_str(), "Property required");
            }
            ValidationErrorKind::AdditionalProperties { unexpected }
            | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
                for name in unexpected {
                    self.add(&path, Some(name), "Property is not permitted");
                }
            }
            // The library's text has the values.
            ValidationErrorKind::UnevaluatedItems { .. } => {
                self.add(&path, None, "Some items are not permitted");
            }
            ValidationErrorKind::FalseSchema => self.add(&path, None, "Value is not permitted"),
            _ => self.add(&path, None, &error.masked_with("Value").to_string()),
        }
    }

    fn add(&mut self, path: &[Loc], name: Option<&str>, message: &str) {
        if self.faults.len() >= MAX_FAULTS || self.bytes >= MAX_BYTES {
            self.more += 1;
            return;
        }
        let path: Vec<Loc> = path.iter().cloned().chain(name.map(|name| Loc::Name(cut(name)))).collect();
        let names = path.iter().map(|step| match step {
            Loc::Name(name) => name.len(),
            Loc::Index(_) => 8,
        });
        self.bytes += names.sum::<usize>() + message.len();
        self.faults.push(SchemaFault { path, message: cut(message) });
    }

    fn into_faults(mut self) -> Vec<SchemaFault> {
        if self.more > 0 {
            let message = format!("{} more faults are not listed", self.more);
            self.faults.push(SchemaFault { path: Vec::new(), message });
        }
        self.faults
    }
}

fn step(segment: LocationSegment<'_>) -> Loc {
    match segment {
        LocationSegment::Property(name) => Loc::Name(cut(&name)),
        LocationSegment::Index(index) => Loc::Index(index),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_CHARS).collect()
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Schema")
    }
}

impl PartialEq for Schema {
    /// Compares the documents.
    fn eq(&self, other: &Self) -> bool {
        self.document == other.document
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_CHARS, MAX_FAULTS, Schema};
    use events::Loc;

    fn faults(schema: &str, record: &str) -> Vec<(Vec<Loc>, String)> {
        let schema = Schema::parse(schema).unwrap();
        schema.faults(record).into_iter().map(|fault| (fault.path, fault.message)).collect()
    }

    #[test]
    fn all_faults_are_returned_with_their_paths_and_without_values() {
        let schema = r#"{"type":"object","required":["no","changed_at"],"properties":{
            "no":{"type":"string","pattern":"^A[0-9]+$"},"changed_at":{"type":"string","format":"date-time"},
            "lines":{"type":"array","items":{"type":"object","required":["sku"],"properties":{"count":{"minimum":1}}}}}}"#;
        let found =
            faults(schema, r#"{"no":"s3cret","lines":[{"sku":"a"},{"count":0}],"changed_at":"soon"}"#);
        let paths: Vec<&[Loc]> = found.iter().map(|(path, _)| path.as_slice()).collect();
        let name = |name: &str| Loc::Name(name.into());
        for path in [
            &[name("no")][..],
            &[name("changed_at")],
            &[name("lines"), Loc::Index(1), name("sku")],
            &[name("lines"), Loc::Index(1), name("count")],
        ] {
            assert!(paths.contains(&path), "{path:?} in {found:?}");
        }
        assert_eq!(found.len(), 4);
        assert!(
            found.iter().all(|(_, message)| !message.contains("s3cret") && !message.contains("soon")),
            "{found:?}"
        );
        assert!(faults(schema, r#"{"no":"A1","changed_at":"2026-11-28T20:15:03Z"}"#).is_empty());
    }

    #[test]
    fn messages_have_rules_of_the_schema_and_no_values() {
        for (schema, record, path, message) in [
            (r#"{"type":"string"}"#, r#"["s3cret"]"#, vec![], r#"Value is not of type "string""#),
            (r#"{"enum":["a","b"]}"#, r#""s3cret""#, vec![], "Value is not one of"),
            (r#"{"const":1}"#, r#""s3cret""#, vec![], "1 was expected"),
            (r#"{"maxLength":2}"#, r#""s3cret""#, vec![], "Value is longer than 2 characters"),
            (r#"{"format":"email"}"#, r#""s3cret""#, vec![], r#"Value is not a "email""#),
            (r#"{"pattern":"^a"}"#, r#""s3cret""#, vec![], r#"Value does not match "^a""#),
            (
                r#"{"minimum":9007199254740993}"#,
                "9007199254740992",
                vec![],
                "Value is less than the minimum of 9007199254740993",
            ),
            (r#"{"uniqueItems":true}"#, r#"["s3cret","s3cret"]"#, vec![], "Value has non-unique elements"),
            (
                r#"{"prefixItems":[{}],"unevaluatedItems":false}"#,
                r#"[1,"s3cret"]"#,
                vec![],
                "Some items are not permitted",
            ),
            (
                r#"{"properties":{"b":{}},"unevaluatedProperties":false}"#,
                r#"{"a":"s3cret"}"#,
                vec!["a"],
                "Property is not permitted",
            ),
            (r#"{"properties":{"a":false}}"#, r#"{"a":"s3cret"}"#, vec!["a"], "Value is not permitted"),
            (r#"{"required":["a"]}"#, r#"{"b":"s3cret"}"#, vec!["a"], "Property required"),
            (r#"{"anyOf":[{"const":1},{"const":2}]}"#, r#""s3cret""#, vec![], "Value is not valid under any"),
        ] {
            let found = faults(schema, record);
            assert_eq!(found.len(), 1, "{schema}: {found:?}");
            let path: Vec<Loc> = path.into_iter().map(|name| Loc::Name(name.into())).collect();
            assert_eq!(found[0].0, path, "{schema}");
            assert!(found[0].1.starts_with(message) && !found[0].1.contains("s3cret"), "{schema}: {found:?}");
        }
    }

    #[test]
    fn a_schema_that_cannot_be_used_is_rejected() {
        for (schema, reason) in [
            ("{", "not JSON at line 1"),
            ("[]", "should be an object"),
            (r#"{"type":"strnig"}"#, "/type"),
            (r#"{"properties":{"a":{"minimum":"1"}}}"#, "/properties/a/minimum"),
            (r#"{"pattern":"("}"#, "/pattern"),
            (r#"{"$schema":"http://json-schema.org/draft-07/schema#"}"#, "draft 2020-12"),
            (r#"{"$ref":"https://example.com/other.json"}"#, "only references within"),
            (r#"{"$ref":"file:///etc/passwd"}"#, "only references within"),
            (r#"{"$ref":"other.json"}"#, "only references within"),
            (r##"{"$ref":"#/$defs/a"}"##, "a"),
        ] {
            let errors = Schema::parse(schema).unwrap_err();
            assert_eq!(errors.len(), 1);
            assert!(errors[0].contains(reason), "{schema}: {errors:?}");
        }
        let two = Schema::parse(r#"{"required":"a","properties":{"a":{"type":5}}}"#).unwrap_err();
        assert_eq!(two.len(), 2, "{two:?}");
    }

    #[test]
    fn a_local_reference_and_recursion_are_allowed() {
        let schema = r##"{"$defs":{"node":{"type":"object","properties":{"next":{"$ref":"#/$defs/node"}}}},"$ref":"#/$defs/node"}"##;
        assert!(faults(schema, r#"{"next":{"next":{}}}"#).is_empty());
        assert_eq!(faults(schema, r#"{"next":{"next":1}}"#).len(), 1);
        assert!(faults(r##"{"$ref":"#"}"##, "1").is_empty());
    }

    #[test]
    fn a_runaway_pattern_ends_as_a_fault() {
        let schema = r#"{"pattern":"^(?=(a+)+$)(a|aa)+b$"}"#;
        let record = format!("\"{}!\"", "a".repeat(1000));
        assert_eq!(faults(schema, &record).len(), 1);
    }

    #[test]
    fn the_list_of_faults_is_limited() {
        let record = format!("[{}1]", "1,".repeat(10_000));
        let found = faults(r#"{"items":{"type":"string"}}"#, &record);
        assert_eq!(found.len(), MAX_FAULTS + 1);
        assert!(found[MAX_FAULTS].1.contains("9901 more faults"));
        let names: String = (0..1000).map(|number| format!(r#","long name {number}":1"#)).collect();
        let schema = r#"{"properties":{"b":{}},"additionalProperties":false}"#;
        assert_eq!(faults(schema, &format!(r#"{{"a":1{names}}}"#)).len(), MAX_FAULTS + 1);
        let name = "n".repeat(10_000);
        let found = faults(schema, &format!(r#"{{"{name}":1}}"#));
        assert_eq!(found, [(vec![Loc::Name(name[..MAX_CHARS].into())], "Property is not permitted".into())]);
        let deep = format!("{}1{}", format!(r#"{{"{}":"#, "n".repeat(1000)).repeat(100), "}".repeat(100));
        let schema = r##"{"additionalProperties":{"$ref":"#"},"type":"array"}"##;
        let found = faults(schema, &deep);
        assert!(found.len() < 101 && found.last().unwrap().1.contains("more faults"), "{}", found.len());
        assert_eq!(faults("{}", "1e999").len(), 1);
        assert_eq!(faults("{}", &("[".repeat(1000) + &"]".repeat(1000))).len(), 1);
    }
}
