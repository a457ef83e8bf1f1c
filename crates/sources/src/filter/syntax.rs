//! The allow-list over the syntax tree of a filter, and the growth that the tree permits.
//!
//! jaq limits neither steps nor memory nor depth. So a filter may only contain constructs whose
//! work is linear in the record, apart from sorting. The walk computes a bound of the text that a
//! filter can make; [`Growth::allows`] compares it with each record before the filter runs.

use jaq_core::load::lex::StrPart;
use jaq_core::load::parse::{BinaryOp, Pattern, Term};
use jaq_core::{ops::Math, path::Part};

use super::functions::{Arguments, Function, function, refusal};

/// Maximum number of nodes in a syntax tree.
const MAX_NODES: usize = 2000;
/// Maximum depth of a syntax tree. A pipe adds a level to its right side.
const MAX_DEPTH: usize = 64;
/// Maximum text that a filter may make of one record.
const MAX_TEXT: f64 = 64.0 * 1024.0 * 1024.0;
/// A filter that may exceed [`MAX_TEXT`] on a record of this size is refused.
const SMALL_RECORD: f64 = 4096.0;
/// Maximum whole number that a value may be multiplied with, because `*` also repeats strings.
const MAX_REPEAT: f64 = 100_000.0;
/// Maximum record of a filter with `gsub`, whose time is not linear, or with a regular expression
/// for each value, which is compiled each time.
const MAX_SLOW_RECORD: usize = 64 * 1024;
/// Bytes that a computed number can have more than its operands.
const NUMBER: f64 = 25.0;
/// Bytes of an escaped character in a string.
const ESCAPED: f64 = 6.0;

/// A bound of the text that a filter makes of a record of `n` bytes: `per_byte * n + fixed`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Growth {
    per_byte: f64,
    fixed: f64,
    /// The product of the whole numbers that the filter multiplies with.
    pub(crate) repeat: f64,
    /// Whether [`MAX_SLOW_RECORD`] holds.
    slow: bool,
}

impl Growth {
    /// Whether a record of `bytes`, whose longest string has `longest_string` bytes, stays below
    /// the limit.
    pub(crate) fn allows(&self, bytes: usize, longest_string: usize) -> bool {
        (!self.slow || bytes <= MAX_SLOW_RECORD)
            && self.bound(bytes) <= MAX_TEXT
            && (self.repeat <= 1.0 || self.bound(longest_string) * self.repeat <= MAX_TEXT)
    }

    /// The maximum text that the filter makes of a record of `bytes`, without multiplications.
    pub(crate) fn bound(&self, bytes: usize) -> f64 {
        self.per_byte.mul_add(to_float(bytes), self.fixed)
    }
}

fn to_float(bytes: usize) -> f64 {
    u32::try_from(bytes).map_or(f64::INFINITY, f64::from)
}

/// The number of outputs of a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Count {
    /// At most one.
    One,
    /// More than one, by `,`.
    Few,
    /// As many as the record has values, by `[]`.
    Each,
}

/// What a term can do with an input of `n` bytes.
#[derive(Debug, Clone, Copy)]
struct Cost {
    per_byte: f64,
    fixed: f64,
    count: Count,
    /// The number of outputs that `,` causes.
    outputs: f64,
}

impl Cost {
    const INPUT: Self = Self { per_byte: 1.0, fixed: 0.0, count: Count::One, outputs: 1.0 };

    fn fixed(bytes: usize) -> Self {
        Self { per_byte: 0.0, fixed: to_float(bytes), count: Count::One, outputs: 1.0 }
    }

    /// Both terms get the same input.
    fn and(self, other: Self) -> Self {
        Self {
            per_byte: self.per_byte + other.per_byte,
            fixed: self.fixed + other.fixed,
            count: self.count.max(other.count),
            outputs: self.outputs.max(other.outputs),
        }
    }

    /// The other term gets each output of this one.
    fn pipe(self, next: Self) -> Self {
        let (per_byte, fixed) = match self.count {
            // Each output has at least a byte of the input.
            Count::Each => {
                (self.per_byte.mul_add(next.per_byte, next.fixed), self.fixed * next.per_byte + next.fixed)
            }
            _ => {
                (self.per_byte * next.per_byte, self.fixed.mul_add(next.per_byte, self.outputs * next.fixed))
            }
        };
        Self { per_byte, fixed, count: self.count.max(next.count), outputs: self.outputs * next.outputs }
    }

    fn times(self, factor: f64) -> Self {
        Self { per_byte: self.per_byte * factor, fixed: self.fixed * factor, ..self }
    }

    fn plus(self, bytes: f64) -> Self {
        Self { fixed: self.fixed + bytes, ..self }
    }
}

/// Checks a syntax tree. The error lists everything that is refused.
pub(crate) fn check(term: &Term<&str>) -> Result<Growth, String> {
    let mut walk =
        Walk { nodes: 0, repeat: 1.0, slow: false, variables: vec![("$key", false)], faults: Vec::new() };
    let cost = walk.term(term, Scope { depth: 0, each: false });
    let growth = Growth { per_byte: cost.per_byte, fixed: cost.fixed, repeat: walk.repeat, slow: walk.slow };
    if walk.faults.is_empty() && growth.per_byte.mul_add(SMALL_RECORD, growth.fixed) > MAX_TEXT {
        walk.fault("its result can become too large: it copies its input too often");
    }
    if walk.faults.is_empty() && growth.repeat > MAX_REPEAT {
        let reason = "* with a whole number above 100000 is not allowed, because it repeats strings; write the \
                      number with an exponent, such as 1e6";
        walk.fault(reason);
    }
    if walk.faults.is_empty() { Ok(growth) } else { Err(walk.faults.join("; ")) }
}

/// Where a term stands.
#[derive(Debug, Clone, Copy)]
struct Scope {
    depth: usize,
    /// Whether the term gets each value of an iteration.
    each: bool,
}

struct Walk<'t> {
    nodes: usize,
    repeat: f64,
    slow: bool,
    /// The variables in scope, and whether each was bound in an iteration.
    variables: Vec<(&'t str, bool)>,
    faults: Vec<String>,
}

impl<'t> Walk<'t> {
    fn fault(&mut self, fault: impl Into<String>) {
        let fault = fault.into();
        if !self.faults.contains(&fault) && self.faults.len() < 10 {
            self.faults.push(fault);
        }
    }

    fn term(&mut self, term: &'t Term<&'t str>, scope: Scope) -> Cost {
        self.nodes += 1;
        if self.nodes > MAX_NODES || scope.depth > MAX_DEPTH {
            self.fault("it is too long or too deeply nested");
            return Cost::INPUT;
        }
        let scope = Scope { depth: scope.depth + 1, ..scope };
        match term {
            Term::Id => Cost::INPUT,
            Term::Num(number) => Cost::fixed(number.len()),
            Term::Str(None, parts) => self.string(parts, scope),
            Term::Str(Some(_), _) => self.refuse("@ formats are not allowed"),
            Term::Arr(None) => Cost::fixed(2),
            Term::Arr(Some(inner)) => {
                let cost = self.term(inner, scope).plus(2.0);
                Cost { count: Count::One, outputs: 1.0, ..cost }
            }
            Term::Obj(members) => self.object(members, scope),
            Term::Neg(inner) => self.one(inner, scope).plus(1.0),
            Term::BinOp(left, op, right) => self.operation(left, op, right, scope),
            Term::TryCatch(inner, catch) => {
                let cost = self.term(inner, scope);
                catch.as_ref().map_or(cost, |catch| cost.and(self.term(catch, scope)))
            }
            Term::IfThenElse(branches, otherwise) => self.condition(branches, otherwise.as_deref(), scope),
            Term::Call(name, arguments) => self.call(name, arguments, scope),
            Term::Var(name) => self.variable(name, scope),
            Term::Path(head, path) => {
                let mut cost = self.term(head, scope);
                for (part, _) in &path.0 {
                    cost = self.part(part, cost, scope);
                }
                cost
            }
            Term::Recurse => self.refuse(".. is not allowed"),
            Term::Fold(name, ..) => self.refuse(format!("{name} is not allowed")),
            Term::Label(..) | Term::Break(_) => self.refuse("label and break are not allowed"),
            Term::Def(..) => self.refuse("def is not allowed"),
        }
    }

    fn refuse(&mut self, fault: impl Into<String>) -> Cost {
        self.fault(fault);
        Cost::INPUT
    }

    /// A term that is combined with others, and therefore must have one output.
    fn one(&mut self, term: &'t Term<&'t str>, scope: Scope) -> Cost {
        let cost = self.term(term, scope);
        if cost.count == Count::One {
            return cost;
        }
        self.fault("a value with several outputs should stand in [ ], where it is combined with others");
        Cost { count: Count::One, outputs: 1.0, ..cost }
    }

    fn string(&mut self, parts: &'t [StrPart<&'t str, Term<&'t str>>], scope: Scope) -> Cost {
        let mut cost = Cost::fixed(2);
        for part in parts {
            cost = match part {
                StrPart::Str(text) => cost.plus(to_float(text.len())),
                StrPart::Char(_) => cost.plus(ESCAPED),
                StrPart::Term(term) => cost.and(self.one(term, scope).times(ESCAPED)),
            };
        }
        cost
    }

    fn object(&mut self, members: &'t [(Term<&'t str>, Option<Term<&'t str>>)], scope: Scope) -> Cost {
        let mut cost = Cost::fixed(2);
        for (key, value) in members {
            cost = cost.and(self.one(key, scope)).plus(2.0);
            cost = match value {
                Some(value) => cost.and(self.one(value, scope)),
                None => cost.and(Cost::INPUT),
            };
        }
        cost
    }

    fn condition(
        &mut self,
        branches: &'t [(Term<&'t str>, Term<&'t str>)],
        otherwise: Option<&'t Term<&'t str>>,
        scope: Scope,
    ) -> Cost {
        let mut cost = otherwise.map_or(Cost::INPUT, |otherwise| self.term(otherwise, scope));
        for (condition, then) in branches {
            cost = cost.and(self.one(condition, scope));
            cost = cost.and(self.term(then, scope));
        }
        cost
    }

    fn operation(
        &mut self,
        left: &'t Term<&'t str>,
        op: &'t BinaryOp<&'t str>,
        right: &'t Term<&'t str>,
        scope: Scope,
    ) -> Cost {
        match op {
            BinaryOp::Pipe(None) => {
                let cost = self.term(left, scope);
                let next = self.term(right, Scope { each: scope.each || cost.count == Count::Each, ..scope });
                cost.pipe(next)
            }
            BinaryOp::Pipe(Some(pattern)) => {
                let cost = self.one(left, scope);
                let before = self.variables.len();
                self.pattern(pattern, scope);
                let body = self.term(right, scope);
                self.variables.truncate(before);
                // A use of the variable is counted as a use of the input. Its value may be larger.
                let per_byte = body.per_byte.mul_add(cost.per_byte.max(1.0), cost.per_byte);
                let fixed = body.per_byte.mul_add(cost.fixed, body.fixed + cost.fixed);
                Cost { per_byte, fixed, ..body }
            }
            BinaryOp::Comma => {
                let (one, other) = (self.term(left, scope), self.term(right, scope));
                let outputs = one.outputs + other.outputs;
                Cost { count: one.count.max(other.count).max(Count::Few), outputs, ..one.and(other) }
            }
            BinaryOp::Alt => self.term(left, scope).and(self.term(right, scope)),
            BinaryOp::Or | BinaryOp::And | BinaryOp::Cmp(_) => {
                self.one(left, scope).and(self.one(right, scope)).plus(5.0)
            }
            BinaryOp::Math(math) => {
                if *math == Math::Mul {
                    self.multiplication(&[left, right]);
                }
                self.one(left, scope).and(self.one(right, scope)).plus(NUMBER)
            }
            BinaryOp::Assign | BinaryOp::Update | BinaryOp::UpdateMath(_) | BinaryOp::UpdateAlt => {
                self.update(left, op, right, scope)
            }
        }
    }

    fn update(
        &mut self,
        path: &'t Term<&'t str>,
        op: &'t BinaryOp<&'t str>,
        right: &'t Term<&'t str>,
        scope: Scope,
    ) -> Cost {
        if !is_path(path) {
            self.fault("the left side of an update should be a path such as .a.b");
        }
        let place = self.term(path, scope);
        let each = place.count == Count::Each;
        if let BinaryOp::Update = op {
            let value = self.one(right, Scope { each: scope.each || each, ..scope });
            let value = Cost { count: place.count, ..Cost::INPUT }.pipe(value);
            return Cost { count: Count::One, outputs: 1.0, ..value.and(Cost::INPUT) }.plus(place.fixed);
        }
        if each {
            self.fault("an update of each value should be written with |=");
        }
        if let BinaryOp::UpdateMath(Math::Mul) = op {
            self.multiplication(&[right]);
        }
        let value = self.one(right, scope).times(place.outputs);
        Cost { count: Count::One, outputs: 1.0, ..value.and(Cost::INPUT) }.plus(place.fixed + NUMBER)
    }

    /// `*` repeats strings and merges objects, so it needs a number among its operands.
    fn multiplication(&mut self, operands: &[&'t Term<&'t str>]) {
        let Some(number) = operands.iter().find_map(|operand| literal_number(operand)) else {
            self.fault("* needs a number such as 1000 on one side");
            return;
        };
        if number.bytes().all(|byte| byte.is_ascii_digit()) {
            self.repeat *= number.parse::<f64>().unwrap_or(f64::INFINITY).max(1.0);
        }
    }

    fn part(&mut self, part: &'t Part<Term<&'t str>>, cost: Cost, scope: Scope) -> Cost {
        match part {
            Part::Index(index) if is_literal_index(index) => {
                self.nodes += 1;
                cost
            }
            Part::Index(index @ Term::Str(None, _)) => cost.and(self.one(index, scope)),
            Part::Index(_) => {
                self.fault("an index should be a text or a number: write .[\"\\(.a)\"] for the value of .a");
                cost
            }
            Part::Range(None, None) => {
                if scope.each || cost.count == Count::Each {
                    self.fault("more than one [] in a nesting is not allowed");
                }
                Cost { count: Count::Each, ..cost }
            }
            Part::Range(from, to) => [from, to].into_iter().flatten().fold(cost, |cost, bound| {
                if !is_literal_index(bound) {
                    self.fault("a bound of a slice should be a number");
                }
                cost
            }),
        }
    }

    fn variable(&mut self, name: &'t str, scope: Scope) -> Cost {
        match self.variables.iter().rev().find(|(known, _)| *known == name) {
            None => self.fault(format!("the variable {name} is not defined")),
            Some((_, bound_in_each)) if scope.each && !bound_in_each => self.fault(format!(
                "the variable {name} is used for each value of [], but bound outside, which could copy it often"
            )),
            Some(_) => {}
        }
        Cost::INPUT
    }

    fn bind(&mut self, name: &'t str, scope: Scope) {
        if name == "$key" {
            self.fault("$key is the key of the record: choose another name for the variable");
        }
        self.variables.push((name, scope.each));
    }

    fn pattern(&mut self, pattern: &'t Pattern<&'t str>, scope: Scope) {
        match pattern {
            Pattern::Var(name) => self.bind(name, scope),
            Pattern::Arr(items) => items.iter().for_each(|item| self.pattern(item, scope)),
            Pattern::Obj(members) => {
                for (key, pattern) in members {
                    if let Term::Var(name) = key {
                        self.bind(name, scope);
                    } else if !is_literal_index(key) {
                        self.fault("a key in a pattern should be a text");
                    }
                    self.pattern(pattern, scope);
                }
            }
        }
    }

    fn call(&mut self, name: &'t str, arguments: &'t [Term<&'t str>], scope: Scope) -> Cost {
        let Some(Function { arguments: kinds, growth, fixed }) = function(name, arguments.len()) else {
            return self.refuse(refusal(name, arguments.len()));
        };
        let itself = Cost::INPUT.times(growth).plus(fixed);
        match kinds {
            Arguments::None => itself,
            Arguments::Literals => {
                let literals = arguments.iter().map(literal_text);
                let Some(texts) = literals.collect::<Option<Vec<_>>>() else {
                    return self.refuse(format!("an argument of {name} should be a text or a number itself"));
                };
                if matches!(name, "test" | "capture") {
                    self.regex(texts.first().copied().unwrap_or_default(), scope);
                }
                // join writes its argument once for each item.
                let bytes = texts.iter().map(|text| to_float(text.len())).sum::<f64>();
                Cost { per_byte: itself.per_byte + bytes, ..itself }
            }
            Arguments::Replacement => {
                let [regex, replacement, ..] = arguments else { return itself };
                let Some(regex) = literal_text(regex) else {
                    return self.refuse(format!("the regular expression of {name} should be a text itself"));
                };
                self.regex(regex, scope);
                self.slow |= name == "gsub";
                let replacement = self.one(replacement, Scope { each: true, ..scope });
                // A match may be empty, so there are as many as characters, and one more.
                Cost { per_byte: itself.per_byte + replacement.per_byte + replacement.fixed, ..itself }
                    .plus(replacement.fixed)
            }
            Arguments::Filter => {
                arguments.iter().fold(itself, |cost, argument| cost.and(self.one(argument, scope)))
            }
            Arguments::Outputs => {
                let cost = self.filters(arguments, scope, |cost| cost);
                Cost { count: Count::One, outputs: 1.0, ..cost }
            }
            Arguments::Each => {
                if scope.each {
                    self.fault(format!("more than one [] in a nesting is not allowed, and {name} has one"));
                }
                let each = Cost { count: Count::Each, ..itself };
                let cost = self.filters(arguments, Scope { each: true, ..scope }, |cost| each.pipe(cost));
                Cost { count: Count::One, outputs: 1.0, ..cost.and(itself) }.plus(2.0)
            }
            Arguments::Path => {
                if !arguments.iter().all(is_path) {
                    self.fault(format!("an argument of {name} should be a path such as .a.b"));
                }
                _ = self.filters(arguments, scope, |cost| cost);
                itself
            }
        }
    }

    fn filters(&mut self, arguments: &'t [Term<&'t str>], scope: Scope, join: impl Fn(Cost) -> Cost) -> Cost {
        let mut cost = Cost::fixed(0);
        for argument in arguments {
            let argument = self.term(argument, scope);
            cost = cost.and(join(argument));
        }
        cost
    }

    /// The engine is linear in the text, with the size of the expression as factor.
    fn regex(&mut self, regex: &str, scope: Scope) {
        self.slow |= scope.each;
        let counted = regex.match_indices('{').filter(|(at, _)| {
            regex
                .get(at + 1..)
                .unwrap_or_default()
                .starts_with(|next: char| next.is_ascii_digit() || next == ',')
        });
        if regex.len() > 200 || counted.count() > 1 {
            self.fault("a regular expression should have at most 200 bytes and one {n}");
        }
    }
}

/// Whether a term names places in its input.
fn is_path(term: &Term<&str>) -> bool {
    match term {
        Term::Id => true,
        Term::Path(head, _) => is_path(head),
        Term::BinOp(left, BinaryOp::Pipe(None) | BinaryOp::Comma, right) => is_path(left) && is_path(right),
        Term::TryCatch(inner, None) => is_path(inner),
        Term::Call("select", _) => true,
        _ => false,
    }
}

/// A text or number itself, or the key of the record, which is a text.
fn is_literal_index(term: &Term<&str>) -> bool {
    literal_text(term).is_some() || matches!(term, Term::Var("$key"))
}

fn literal_number<'t>(term: &Term<&'t str>) -> Option<&'t str> {
    match term {
        Term::Num(number) => Some(number),
        Term::Neg(inner) => literal_number(inner),
        _ => None,
    }
}

/// The text of a term that is a text or a number itself. An escaped text has the escapes removed.
fn literal_text<'t>(term: &Term<&'t str>) -> Option<&'t str> {
    match term {
        Term::Str(None, parts) => match parts.as_slice() {
            [] => Some(""),
            [StrPart::Str(text)] => Some(text),
            parts if parts.iter().all(|part| !matches!(part, StrPart::Term(_))) => Some("escaped text"),
            _ => None,
        },
        other => literal_number(other),
    }
}
