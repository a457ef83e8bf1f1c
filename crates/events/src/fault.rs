//! What is wrong with an input, and where: all faults of one input are collected, not only the first.

use std::fmt;

use serde::Serialize;

/// So many faults are listed one by one; a last one counts the rest.
const MAX_FAULTS: usize = 100;
/// The ways to the listed faults take no more than this, the first one excepted, so that deep nesting of long names
/// does not make the answer many times the body.
const MAX_LOC_BYTES: usize = 32 * 1024;
/// What a step takes beside its name: quotes, a comma, the digits of an index.
const STEP_BYTES: usize = 4;
/// Names inside a path are cut here, so that the answer stays in proportion to the body.
const MAX_NAME_CHARS: usize = 256;

/// One step of the way to a value: a field's name or an array's index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Loc {
    /// The name of a field.
    Name(String),
    /// The index in an array, from 0.
    Index(usize),
}

/// One rule that an input breaks. Serialises as FastAPI's `{loc, msg, type}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The way to the value; in an HTTP body it starts with `body`.
    pub loc: Vec<Loc>,
    /// What is wrong, for people. It never holds the value.
    pub msg: String,
    /// What is wrong, for programs: `missing`, `string_type`, `extra_forbidden`, …
    #[serde(rename = "type")]
    pub kind: &'static str,
}

impl fmt::Display for Fault {
    /// `payload.points[3].x: Input should …`
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

/// A broken rule whose place the caller knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Breach {
    pub(crate) kind: &'static str,
    pub(crate) msg: String,
}

impl Breach {
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

/// The way to a value, as a list on the stack: it costs nothing while there is no fault.
#[derive(Clone, Copy)]
pub(crate) enum Path<'p> {
    Root,
    Name(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

/// Where every fault of an HTTP body starts.
pub(crate) const BODY: Path<'static> = Path::Name(&Path::Root, "body");

impl Path<'_> {
    /// What the way takes at most in an answer, without escapes.
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

/// The faults found so far.
#[derive(Default)]
pub(crate) struct Faults {
    list: Vec<Fault>,
    loc_bytes: usize,
    unlisted: usize,
}

impl Faults {
    pub(crate) fn push(&mut self, path: &Path<'_>, breach: Breach) {
        // Once one does not fit, none is listed: the list has no gaps.
        let full = self.unlisted > 0 || self.list.len() == MAX_FAULTS;
        let loc_bytes = if full { 0 } else { self.loc_bytes + path.bytes() };
        if !full && (self.list.is_empty() || loc_bytes <= MAX_LOC_BYTES) {
            self.loc_bytes = loc_bytes;
            self.list.push(Fault { loc: path.locs(), msg: breach.msg, kind: breach.kind });
        } else {
            self.unlisted += 1;
        }
    }

    /// The value of `outcome`; its breach is kept under `path`.
    pub(crate) fn take<T>(&mut self, path: &Path<'_>, outcome: Result<T, Breach>) -> Option<T> {
        outcome.map_err(|breach| self.push(path, breach)).ok()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn count(&self) -> usize {
        self.list.len() + self.unlisted
    }

    pub(crate) fn into_list(mut self) -> Vec<Fault> {
        if self.unlisted > 0 {
            let msg = format!("{} more faults are not listed", self.unlisted);
            let loc = self.list.first().and_then(|fault| fault.loc.first().cloned()).into_iter().collect();
            self.list.push(Fault { loc, msg, kind: "too_many_faults" });
        }
        self.list
    }
}

#[cfg(test)]
mod tests {
    use super::{BODY, Breach, Faults, MAX_FAULTS, MAX_LOC_BYTES, Path};

    #[test]
    fn a_fault_serialises_as_fastapi_does() {
        let mut faults = Faults::default();
        let payload = Path::Name(&BODY, "payload");
        faults.push(&Path::Index(&payload, 3), Breach::missing());
        let json = serde_json::to_string(&faults.into_list()).unwrap();
        assert_eq!(json, r#"[{"loc":["body","payload",3],"msg":"Field required","type":"missing"}]"#);
    }

    #[test]
    fn a_fault_reads_as_a_path_and_a_reason() {
        let mut faults = Faults::default();
        let point = Path::Name(&Path::Root, "points");
        faults.push(&Path::Name(&Path::Index(&point, 3), "x"), Breach::missing());
        assert_eq!(faults.into_list()[0].to_string(), "points[3].x: Field required");
    }

    #[test]
    fn the_list_and_its_names_stay_short() {
        let mut faults = Faults::default();
        let name = "n".repeat(10_000);
        for _ in 0..MAX_FAULTS + 5 {
            faults.push(&Path::Name(&BODY, &name), Breach::missing());
        }
        let list = faults.into_list();
        assert_eq!(list.len(), MAX_FAULTS + 1);
        assert_eq!(list[MAX_FAULTS].kind, "too_many_faults");
        assert_eq!(list[MAX_FAULTS].to_string(), "body: 5 more faults are not listed");
        assert!(list[0].to_string().len() < 300);
    }

    #[test]
    fn deep_ways_to_many_faults_do_not_make_the_list_long() {
        fn push(faults: &mut Faults, path: &Path<'_>, depth: usize) {
            if depth == 0 {
                (0..100).for_each(|index| faults.push(&Path::Index(path, index), Breach::missing()));
            } else {
                push(faults, &Path::Name(path, &"n".repeat(256)), depth - 1);
            }
        }
        let mut faults = Faults::default();
        push(&mut faults, &BODY, 10);
        faults.push(&BODY, Breach::missing());
        assert_eq!(faults.count(), 101);
        let list = faults.into_list();
        assert_eq!((list.len(), list.last().unwrap().kind), (13, "too_many_faults"));
        assert_eq!(list[12].to_string(), "body: 89 more faults are not listed");
        assert!(serde_json::to_string(&list).unwrap().len() < MAX_LOC_BYTES + 4096);

        let mut faults = Faults::default();
        push(&mut faults, &BODY, 90);
        assert_eq!(faults.into_list().len(), 2, "one is told, however long the way to it is");
    }
}
