//! Violations of the rules for an input. All violations of an input are collected, each with its
//! location.

use std::fmt;

use serde::Serialize;

/// Maximum number of listed violations. One more entry counts the others.
const MAX_VIOLATIONS: usize = 100;
/// Maximum bytes of all locations, except the first. Otherwise deep nesting of long names could
/// make the response many times as large as the body.
const MAX_LOC_BYTES: usize = 32 * 1024;
/// Bytes of a step besides its name: quotes, a comma, the digits of an index.
const STEP_BYTES: usize = 4;
/// Names in a location are cut at this length, so that the response stays in proportion to the
/// body.
const MAX_NAME_CHARS: usize = 256;

/// One step of a location: a field's name or an array's index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Loc {
    /// The name of a field.
    Name(String),
    /// The index in an array, from 0.
    Index(usize),
}

/// A violation of one rule. Serializes as FastAPI's `{loc, msg, type}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The location of the value. In an HTTP body it starts with `body`.
    pub loc: Vec<Loc>,
    /// The description. It never contains the value.
    pub msg: String,
    /// The machine-readable kind: `missing`, `string_type`, `extra_forbidden`, …
    #[serde(rename = "type")]
    pub kind: &'static str,
}

impl fmt::Display for Violation {
    /// Writes `payload.points[3].x: Input should …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (step, loc) in self.loc.iter().enumerate() {
            match loc {
                Loc::Name(name) if step == 0 => f.write_str(name)?,
                Loc::Name(name) => write!(f, ".{name}")?,
                Loc::Index(index) => write!(f, "[{index}]")?,
            }
        }
        write!(f, ": {}", self.msg)
    }
}

/// A broken rule without its location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BrokenRule {
    pub(crate) kind: &'static str,
    pub(crate) msg: String,
}

impl BrokenRule {
    pub(crate) fn new(kind: &'static str, msg: impl Into<String>) -> Self {
        Self { kind, msg: msg.into() }
    }

    pub(crate) fn not_unicode() -> Self {
        Self::new("string_unicode", "Input should be valid Unicode, without an unpaired surrogate")
    }

    pub(crate) fn missing() -> Self {
        Self::new("missing", "Field required")
    }
}

/// The location of a value as a linked list on the stack. It costs nothing while there is no
/// violation.
#[derive(Clone, Copy)]
pub(crate) enum Path<'p> {
    Root,
    Name(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

/// The start of all locations in an HTTP body.
pub(crate) const BODY: Path<'static> = Path::Name(&Path::Root, "body");

impl Path<'_> {
    /// Maximum bytes of the location in a response, without escapes.
    fn bytes(&self) -> usize {
        let (mut bytes, mut step) = (0, self);
        loop {
            let (parent, own) = match step {
                Path::Root => return bytes,
                Path::Name(parent, name) => {
                    (parent, name.char_indices().nth(MAX_NAME_CHARS).map_or(name.len(), |(end, _)| end))
                }
                Path::Index(parent, _) => (parent, 0),
            };
            bytes += own + STEP_BYTES;
            step = parent;
        }
    }

    fn locs(&self) -> Vec<Loc> {
        let mut locs = Vec::new();
        let mut step = self;
        loop {
            step = match step {
                Path::Root => break,
                Path::Name(parent, name) => {
                    locs.push(Loc::Name(name.chars().take(MAX_NAME_CHARS).collect()));
                    parent
                }
                Path::Index(parent, index) => {
                    locs.push(Loc::Index(*index));
                    parent
                }
            }
        }
        locs.reverse();
        locs
    }
}

/// The violations found so far.
#[derive(Default)]
pub(crate) struct Violations {
    list: Vec<Violation>,
    loc_bytes: usize,
    unlisted: usize,
}

impl Violations {
    pub(crate) fn push(&mut self, path: &Path<'_>, broken_rule: BrokenRule) {
        // After the first violation that does not fit, none is listed: the list has no gaps.
        let full = self.unlisted > 0 || self.list.len() == MAX_VIOLATIONS;
        let loc_bytes = if full { 0 } else { self.loc_bytes + path.bytes() };
        if !full && (self.list.is_empty() || loc_bytes <= MAX_LOC_BYTES) {
            self.loc_bytes = loc_bytes;
            self.list.push(Violation { loc: path.locs(), msg: broken_rule.msg, kind: broken_rule.kind });
        } else {
            self.unlisted += 1;
        }
    }

    /// Returns the value of `outcome`, or records its broken rule at `path`.
    pub(crate) fn take<T>(&mut self, path: &Path<'_>, outcome: Result<T, BrokenRule>) -> Option<T> {
        outcome.map_err(|broken_rule| self.push(path, broken_rule)).ok()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn count(&self) -> usize {
        self.list.len() + self.unlisted
    }

    pub(crate) fn into_list(mut self) -> Vec<Violation> {
        if self.unlisted > 0 {
            let msg = format!("{} more violations are not listed", self.unlisted);
            let loc =
                self.list.first().and_then(|violation| violation.loc.first().cloned()).into_iter().collect();
            self.list.push(Violation { loc, msg, kind: "too_many_faults" });
        }
        self.list
    }
}

#[cfg(test)]
mod tests {
    use super::{BODY, BrokenRule, MAX_LOC_BYTES, MAX_VIOLATIONS, Path, Violations};

    #[test]
    fn a_violation_serializes_as_in_fastapi() {
        let mut violations = Violations::default();
        let payload = Path::Name(&BODY, "payload");
        violations.push(&Path::Index(&payload, 3), BrokenRule::missing());
        let json = serde_json::to_string(&violations.into_list()).unwrap();
        assert_eq!(json, r#"[{"loc":["body","payload",3],"msg":"Field required","type":"missing"}]"#);
    }

    #[test]
    fn a_violation_displays_its_path_and_reason() {
        let mut violations = Violations::default();
        let point = Path::Name(&Path::Root, "points");
        violations.push(&Path::Name(&Path::Index(&point, 3), "x"), BrokenRule::missing());
        assert_eq!(violations.into_list()[0].to_string(), "points[3].x: Field required");
    }

    #[test]
    fn the_list_and_its_names_are_limited() {
        let mut violations = Violations::default();
        let name = "n".repeat(10_000);
        for _ in 0..MAX_VIOLATIONS + 5 {
            violations.push(&Path::Name(&BODY, &name), BrokenRule::missing());
        }
        let list = violations.into_list();
        assert_eq!(list.len(), MAX_VIOLATIONS + 1);
        assert_eq!(list[MAX_VIOLATIONS].kind, "too_many_faults");
        assert_eq!(list[MAX_VIOLATIONS].to_string(), "body: 5 more violations are not listed");
        assert!(list[0].to_string().len() < 300);
    }

    #[test]
    fn the_total_length_of_locations_is_limited() {
        fn push(violations: &mut Violations, path: &Path<'_>, depth: usize) {
            if depth == 0 {
                (0..100).for_each(|index| violations.push(&Path::Index(path, index), BrokenRule::missing()));
            } else {
                push(violations, &Path::Name(path, &"n".repeat(256)), depth - 1);
            }
        }
        let mut violations = Violations::default();
        push(&mut violations, &BODY, 10);
        violations.push(&BODY, BrokenRule::missing());
        assert_eq!(violations.count(), 101);
        let list = violations.into_list();
        assert_eq!((list.len(), list.last().unwrap().kind), (13, "too_many_faults"));
        assert_eq!(list[12].to_string(), "body: 89 more violations are not listed");
        assert!(serde_json::to_string(&list).unwrap().len() < MAX_LOC_BYTES + 4096);

        let mut violations = Violations::default();
        push(&mut violations, &BODY, 90);
        assert_eq!(violations.into_list().len(), 2, "the first violation is listed whatever its length");
    }
}
