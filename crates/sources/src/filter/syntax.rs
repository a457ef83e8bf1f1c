//! The allow-list over the syntax tree of a filter, and the growth that the tree permits.
//!
//! jaq limits neither steps nor memory nor depth. So a filter may only contain constructs whose
//! work is linear in the record, apart from sorting. The walk computes bounds of what a filter can
//! make of a record; [`Growth::allows`] compares them with each record before the filter runs.

use std::borrow::Cow;

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
/// Maximum text of all values that a filter may make on the way.
const MAX_WORK: f64 = 1024.0 * 1024.0 * 1024.0;
/// A filter that may exceed the limits on a record of this size is refused.
const SMALL_RECORD: usize = 4096;
/// Maximum record of a filter with `gsub`, whose time is not linear, or with a regular expression
/// for each value, which is compiled each time.
const MAX_SLOW_RECORD: usize = 64 * 1024;
/// Maximum places that an update may name with `,`, because it runs once for each.
const MAX_UPDATES: usize = 32;
/// Bytes that a computed number can have more than its operands.
const NUMBER: f64 = 25.0;
/// Bytes of an escaped character in a string.
const ESCAPED: f64 = 6.0;
/// Items of an array for each byte of its text: an item and a comma.
const ITEMS: f64 = 0.5;
/// Bytes of a message of the library, without the values in it.
const MESSAGE: f64 = 100.0;
/// Bytes that a call of a function takes, without its values.
const CALL: f64 = 20.0;
/// Work of compiling a class of characters, in bytes.
const CLASS: f64 = 64.0;
/// Bytes of the fields of a match, without its text.
const MATCH: f64 = 100.0;

/// Bounds of what a filter makes of a record of `n` bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Growth {
    /// The text of the output.
    output: Line,
    /// The text of all values on the way to it.
    work: Line,
    /// Whether [`MAX_SLOW_RECORD`] holds.
    slow: bool,
}

impl Growth {
    /// Whether a record of `bytes` stays below the limits.
    pub(crate) fn allows(&self, bytes: usize) -> bool {
        (!self.slow || bytes <= MAX_SLOW_RECORD)
            && self.output.at(bytes) <= MAX_TEXT
            && self.work.at(bytes) <= MAX_WORK
    }

    /// The maximum text that the filter makes of a record of `bytes`, and that of all values on the
    /// way.
    #[cfg(test)]
    pub(crate) fn bounds(&self, bytes: usize) -> (f64, f64) {
        (self.output.at(bytes), self.work.at(bytes))
    }
}

/// `per_byte * n + fixed` for a record of `n` bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Line {
    per_byte: f64,
    fixed: f64,
}

impl Line {
    const ONE: Self = Self { per_byte: 0.0, fixed: 1.0 };

    fn at(self, bytes: usize) -> f64 {
        self.per_byte.mul_add(to_float(bytes), self.fixed)
    }

    fn plus(self, other: Self) -> Self {
        Self { per_byte: self.per_byte + other.per_byte, fixed: self.fixed + other.fixed }
    }

    fn times(self, factor: f64) -> Self {
        Self { per_byte: self.per_byte * factor, fixed: self.fixed * factor }
    }

    /// How many times another line this one is, at most. Both are for the same variables.
    fn over(self, other: Self) -> f64 {
        let ratio = |one: f64, other: f64| if one <= other { 1.0 } else { one / other };
        ratio(self.per_byte, other.per_byte).max(ratio(self.fixed, other.fixed))
    }
}

fn to_float(bytes: usize) -> f64 {
    u32::try_from(bytes).map_or(f64::INFINITY, f64::from)
}

/// The number of outputs that a term has for one input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Count {
    /// At most one.
    One,
    /// More than one, by `,`.
    Few,
    /// As many as the input has values, by `[]`.
    Each,
}

/// The values that go into a term or come out of it, in a run of the whole filter.
#[derive(Debug, Clone, Copy)]
struct Flow {
    /// Their text in total.
    bytes: Line,
    /// Their number.
    number: Line,
    count: Count,
}

impl Flow {
    /// One output for each input, with so many bytes in total.
    fn one(self, bytes: Line) -> Self {
        Self { bytes, number: self.number, count: Count::One }
    }

    /// One output for each input, with so many bytes each.
    fn fixed(self, bytes: f64) -> Self {
        self.one(self.number.times(bytes))
    }

    /// The same outputs with more bytes each.
    fn plus(self, bytes: f64) -> Self {
        Self { bytes: self.bytes.plus(self.number.times(bytes)), ..self }
    }

    /// The outputs of both.
    fn and(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.plus(other.bytes),
            number: self.number.plus(other.number),
            count: self.count.max(other.count),
        }
    }

    /// The items of these values.
    fn items(self) -> Self {
        Self { number: self.bytes.times(ITEMS), count: Count::Each, ..self }
    }
}

/// Checks a syntax tree. The error lists everything that is refused.
pub(crate) fn check(term: &Term<&str>) -> Result<Growth, String> {
    let mut walk = Walk::default();
    let record = Flow { bytes: Line { per_byte: 1.0, fixed: 0.0 }, number: Line::ONE, count: Count::One };
    walk.variables.push(Variable { name: "$key", value: record, in_each: false });
    let output = walk.term(term, record, Scope { depth: 0, each: false });
    // The message of an error can show any value.
    let message = record.one(walk.shown).plus(MESSAGE).bytes.times(2.0);
    let growth = Growth { output: output.bytes, work: walk.work.plus(message), slow: walk.slow };
    if walk.faults.is_empty() && !growth.allows(SMALL_RECORD) {
        walk.fault("its result can become too large: it copies its input too often");
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

impl Scope {
    fn in_each(self, each: bool) -> Self {
        Self { each: self.each || each, ..self }
    }
}

struct Variable<'t> {
    name: &'t str,
    /// The values that it gets.
    value: Flow,
    /// Whether it is bound in an iteration.
    in_each: bool,
}

#[derive(Default)]
struct Walk<'t> {
    nodes: usize,
    /// The text of all values so far.
    work: Line,
    /// The text of those that the message of an error can show, because no `try` catches it.
    shown: Line,
    /// The text of all keys in the paths so far.
    keys: Line,
    slow: bool,
    /// The variables in scope.
    variables: Vec<Variable<'t>>,
    faults: Vec<String>,
}

impl<'t> Walk<'t> {
    fn fault(&mut self, fault: impl Into<String>) {
        let fault = fault.into();
        if !self.faults.contains(&fault) && self.faults.len() < 10 {
            self.faults.push(fault);
        }
    }

    /// Adds values that are made beside the output of a term.
    fn make(&mut self, bytes: Line) {
        self.work = self.work.plus(bytes);
        self.shown = self.shown.plus(bytes);
    }

    fn term(&mut self, term: &'t Term<&'t str>, input: Flow, scope: Scope) -> Flow {
        self.nodes += 1;
        if self.nodes > MAX_NODES || scope.depth > MAX_DEPTH {
            self.fault("it is too long or too deeply nested");
            return input;
        }
        let scope = Scope { depth: scope.depth + 1, ..scope };
        let input = Flow { count: Count::One, ..input };
        let output = self.output(term, input, scope);
        // Two bytes for each value that takes memory without text.
        self.make(output.bytes.plus(output.number.times(2.0)));
        output
    }

    fn output(&mut self, term: &'t Term<&'t str>, input: Flow, scope: Scope) -> Flow {
        match term {
            Term::Id => input,
            Term::Num(number) => input.fixed(to_float(number.len())),
            Term::Str(None, parts) => self.string(parts, input, scope),
            Term::Str(Some(_), _) => self.refuse("@ formats are not allowed", input),
            Term::Arr(None) => input.fixed(2.0),
            Term::Arr(Some(inner)) => {
                let items = self.term(inner, input, scope);
                input.one(items.bytes.plus(items.number)).plus(2.0)
            }
            Term::Obj(members) => self.object(members, input, scope),
            Term::Neg(inner) => self.one(inner, input, scope).plus(1.0),
            Term::BinOp(left, op, right) => self.operation((left, op, right), input, scope),
            Term::TryCatch(inner, catch) => self.attempt(inner, catch.as_deref(), input, scope),
            Term::IfThenElse(branches, otherwise) => {
                self.condition(branches, otherwise.as_deref(), input, scope)
            }
            Term::Call(name, arguments) => self.call(name, arguments, input, scope),
            Term::Var(name) => self.variable(name, input, scope),
            Term::Path(head, path) => {
                let mut values = self.term(head, input, scope);
                for (part, _) in &path.0 {
                    values = self.part(part, values, input, scope);
                    self.make(values.bytes);
                }
                values
            }
            Term::Recurse => self.refuse(".. is not allowed", input),
            Term::Fold(name, ..) => self.refuse(format!("{name} is not allowed"), input),
            Term::Label(..) | Term::Break(_) => self.refuse("label and break are not allowed", input),
            Term::Def(..) => self.refuse("def is not allowed", input),
        }
    }

    fn refuse(&mut self, fault: impl Into<String>, input: Flow) -> Flow {
        self.fault(fault);
        input
    }

    /// A term that is combined with others, and therefore must have one output.
    fn one(&mut self, term: &'t Term<&'t str>, input: Flow, scope: Scope) -> Flow {
        let output = self.term(term, input, scope);
        if output.count != Count::One {
            self.fault("a value with several outputs should stand in [ ], where it is combined with others");
        }
        output
    }

    fn string(&mut self, parts: &'t [StrPart<&'t str, Term<&'t str>>], input: Flow, scope: Scope) -> Flow {
        let mut text = input.fixed(2.0);
        for part in parts {
            text = match part {
                StrPart::Str(part) => text.plus(to_float(part.len())),
                StrPart::Char(_) => text.plus(ESCAPED),
                StrPart::Term(term) => {
                    let value = self.one(term, input, scope);
                    Flow { bytes: text.bytes.plus(value.bytes.times(ESCAPED)), ..text }
                }
            };
        }
        // The parts are added one by one from the end.
        self.make(text.bytes.times(to_float(parts.len())));
        text
    }

    fn object(
        &mut self,
        members: &'t [(Term<&'t str>, Option<Term<&'t str>>)],
        input: Flow,
        scope: Scope,
    ) -> Flow {
        let mut object = input.fixed(2.0);
        for (key, value) in members {
            let key = self.one(key, input, scope);
            let value = value.as_ref().map_or(input, |value| self.one(value, input, scope));
            object = Flow { bytes: object.bytes.plus(key.bytes).plus(value.bytes), ..object }.plus(4.0);
        }
        // The members are added one by one from the end.
        let members = to_float(members.len());
        self.make(input.number.times(2.0 * members * members));
        object
    }

    fn attempt(
        &mut self,
        inner: &'t Term<&'t str>,
        catch: Option<&'t Term<&'t str>>,
        input: Flow,
        scope: Scope,
    ) -> Flow {
        let before = std::mem::take(&mut self.shown);
        let output = self.term(inner, input, scope);
        // jaq makes the message of an error also if nothing catches it.
        let shown = std::mem::replace(&mut self.shown, before).plus(input.bytes);
        let message = input.one(shown).plus(MESSAGE);
        self.work = self.work.plus(message.bytes.times(2.0));
        let message = Flow { bytes: message.bytes.times(ESCAPED), ..message };
        match catch {
            Some(catch) => output.and(self.term(catch, message, scope)),
            None => output,
        }
    }

    fn condition(
        &mut self,
        branches: &'t [(Term<&'t str>, Term<&'t str>)],
        otherwise: Option<&'t Term<&'t str>>,
        input: Flow,
        scope: Scope,
    ) -> Flow {
        let mut output = otherwise.map_or(input, |otherwise| self.term(otherwise, input, scope));
        for (condition, then) in branches {
            self.one(condition, input, scope);
            output = self.either(output, then, input, scope);
        }
        output
    }

    /// The outputs of one of two terms.
    fn either(&mut self, one: Flow, other: &'t Term<&'t str>, input: Flow, scope: Scope) -> Flow {
        let other = self.term(other, input, scope);
        let both = one.and(other);
        // Terms with one output each have one output together.
        if both.count == Count::One { input.one(both.bytes) } else { both }
    }

    fn operation(
        &mut self,
        (left, op, right): (&'t Term<&'t str>, &'t BinaryOp<&'t str>, &'t Term<&'t str>),
        input: Flow,
        scope: Scope,
    ) -> Flow {
        match op {
            BinaryOp::Pipe(None) => {
                let values = self.term(left, input, scope);
                let output = self.term(right, values, scope.in_each(values.count == Count::Each));
                Flow { count: output.count.max(values.count), ..output }
            }
            BinaryOp::Pipe(Some(pattern)) => {
                let value = self.one(left, input, scope);
                let before = self.variables.len();
                self.pattern(pattern, value, scope);
                let output = self.term(right, input, scope);
                self.variables.truncate(before);
                output
            }
            BinaryOp::Comma => {
                let (one, other) = (self.term(left, input, scope), self.term(right, input, scope));
                let both = one.and(other);
                Flow { count: both.count.max(Count::Few), ..both }
            }
            BinaryOp::Alt => {
                let one = self.term(left, input, scope);
                self.either(one, right, input, scope)
            }
            BinaryOp::Or | BinaryOp::And | BinaryOp::Cmp(_) => {
                let (one, other) = (self.one(left, input, scope), self.one(right, input, scope));
                self.make(one.bytes.plus(other.bytes));
                input.fixed(5.0)
            }
            BinaryOp::Math(math) => {
                if *math == Math::Mul {
                    self.multiplication(&[left, right]);
                }
                let (one, other) = (self.one(left, input, scope), self.one(right, input, scope));
                // A string that is divided becomes an array.
                let factor = if *math == Math::Div { 4.0 } else { 1.0 };
                input.one(one.bytes.times(factor).plus(other.bytes)).plus(NUMBER)
            }
            BinaryOp::Assign | BinaryOp::Update | BinaryOp::UpdateMath(_) | BinaryOp::UpdateAlt => {
                self.update((left, op, right), input, scope)
            }
        }
    }

    fn update(
        &mut self,
        (path, op, right): (&'t Term<&'t str>, &'t BinaryOp<&'t str>, &'t Term<&'t str>),
        input: Flow,
        scope: Scope,
    ) -> Flow {
        let Some(updates) = self.updates(path) else {
            self.fault("the left side of an update should be a path such as .a.b");
            return input;
        };
        let before = std::mem::take(&mut self.keys);
        let each = self.term(path, input, scope).count == Count::Each;
        let keys = std::mem::replace(&mut self.keys, before).plus(input.number.times(4.0));
        let mut output = input;
        if let BinaryOp::Update = op {
            // The places are updated one after another, so a place can get the result of another.
            for _ in 0..updates {
                let place = if each { output.items() } else { output };
                let value = self.one(right, place, scope.in_each(each));
                output = input.one(output.bytes.plus(value.bytes).plus(keys));
                self.make(output.bytes);
            }
            return output;
        }
        if each {
            self.fault("an update of each value should be written with |=");
        }
        if let BinaryOp::UpdateMath(Math::Mul) = op {
            self.multiplication(&[right]);
        }
        let value = self.one(right, input, scope);
        if let BinaryOp::UpdateMath(Math::Div) = op {
            output = input.one(output.bytes.times(4.0));
        }
        for _ in 0..updates {
            output = input.one(output.bytes.plus(value.bytes).plus(keys)).plus(NUMBER);
            self.make(output.bytes);
        }
        output
    }

    /// The number of places that a path names with `,`. `None` is no path.
    fn updates(&mut self, term: &'t Term<&'t str>) -> Option<usize> {
        let updates = branches(term)?;
        if updates > MAX_UPDATES {
            self.fault(format!("an update should have at most {MAX_UPDATES} places"));
        }
        Some(updates.min(MAX_UPDATES))
    }

    /// `*` also repeats strings and merges objects in jq. Here it only takes numbers.
    fn multiplication(&mut self, operands: &[&'t Term<&'t str>]) {
        if !operands.iter().any(|operand| literal_number(operand).is_some()) {
            self.fault("* needs a number such as 1000 on one side");
        }
    }

    /// A part of a path from `values`. `input` is that of the whole path.
    fn part(&mut self, part: &'t Part<Term<&'t str>>, values: Flow, input: Flow, scope: Scope) -> Flow {
        match part {
            Part::Index(index) if is_literal_index(index) || matches!(index, Term::Str(None, _)) => {
                let key = self.one(index, input, scope);
                self.keys = self.keys.plus(key.bytes);
                // A place that is not there is null.
                values.plus(4.0)
            }
            Part::Index(_) => {
                self.fault("an index should be a text or a number: write .[\"\\(.a)\"] for the value of .a");
                values
            }
            Part::Range(None, None) => {
                if scope.each || values.count == Count::Each {
                    self.fault("more than one [] in a nesting is not allowed");
                }
                values.items()
            }
            Part::Range(from, to) => {
                for bound in [from, to].into_iter().flatten() {
                    if !is_literal_index(bound) {
                        self.fault("a bound of a slice should be a number");
                    }
                }
                values
            }
        }
    }

    fn variable(&mut self, name: &'t str, input: Flow, scope: Scope) -> Flow {
        let Some(variable) = self.variables.iter().rev().find(|known| known.name == name) else {
            return self.refuse(format!("the variable {name} is not defined"), input);
        };
        let value = variable.value;
        if scope.each && !variable.in_each {
            self.fault(format!(
                "the variable {name} is used for each value of [], but bound outside, which could copy it often"
            ));
        }
        input.one(value.bytes.times(input.number.over(value.number)))
    }

    fn bind(&mut self, name: &'t str, value: Flow, scope: Scope) {
        if name == "$key" {
            self.fault("$key is the key of the record: choose another name for the variable");
        }
        self.make(value.fixed(to_float(name.len())).bytes);
        self.variables.push(Variable { name, value, in_each: scope.each });
    }

    fn pattern(&mut self, pattern: &'t Pattern<&'t str>, value: Flow, scope: Scope) {
        match pattern {
            Pattern::Var(name) => self.bind(name, value, scope),
            Pattern::Arr(items) => items.iter().for_each(|item| self.pattern(item, value, scope)),
            Pattern::Obj(members) => {
                for (key, pattern) in members {
                    if let Term::Var(name) = key {
                        self.bind(name, value, scope);
                    } else if !is_literal_index(key) {
                        self.fault("a key in a pattern should be a text");
                    }
                    self.one(key, value, scope);
                    self.pattern(pattern, value, scope);
                }
            }
        }
    }

    fn call(&mut self, name: &'t str, arguments: &'t [Term<&'t str>], input: Flow, scope: Scope) -> Flow {
        let Some(Function { arguments: kinds, growth, fixed }) = function(name, arguments.len()) else {
            return self.refuse(refusal(name, arguments.len()), input);
        };
        let itself = input.one(input.bytes.times(growth)).plus(fixed);
        // A definition of the library makes some values on the way.
        self.make(input.bytes.plus(itself.bytes).times(4.0).plus(input.number.times(CALL)));
        match kinds {
            Arguments::None => itself,
            Arguments::Literals => self.with_literals(name, arguments, (input, itself), scope),
            Arguments::Replacement => self.replacement(name, arguments, input, scope),
            Arguments::Filter => {
                let values = self.filters(arguments, input, scope, Count::One);
                if name == "error" { values } else { itself }
            }
            Arguments::Outputs => {
                let values = self.filters(arguments, input, scope, Count::Each);
                input.one(values.bytes)
            }
            Arguments::Each => {
                if scope.each {
                    self.fault(format!("more than one [] in a nesting is not allowed, and {name} has one"));
                }
                // Those of with_entries are larger: they are the entries.
                let items = if name == "with_entries" { itself } else { input };
                let items = Flow { bytes: items.bytes, ..input.items() };
                let values = self.filters(arguments, items, scope.in_each(true), Count::Each);
                self.make(values.bytes.times(4.0).plus(values.number.times(2.0 * CALL)));
                input.one(itself.bytes.plus(values.bytes).plus(values.number)).plus(2.0)
            }
            Arguments::Path => {
                for argument in arguments {
                    if self.updates(argument).is_none() {
                        self.fault(format!("an argument of {name} should be a path such as .a.b"));
                    }
                }
                self.filters(arguments, input, scope, Count::Each);
                itself
            }
        }
    }

    /// The outputs of the arguments of a function, which each get the same values.
    fn filters(&mut self, arguments: &'t [Term<&'t str>], input: Flow, scope: Scope, most: Count) -> Flow {
        let mut outputs = Flow { number: Line::default(), ..input.fixed(0.0) };
        for argument in arguments {
            let output = if most == Count::One {
                self.one(argument, input, scope)
            } else {
                self.term(argument, input, scope)
            };
            outputs = outputs.and(output);
        }
        outputs
    }

    fn with_literals(
        &mut self,
        name: &str,
        arguments: &'t [Term<&'t str>],
        (input, itself): (Flow, Flow),
        scope: Scope,
    ) -> Flow {
        let Some(texts) = arguments.iter().map(literal_text).collect::<Option<Vec<_>>>() else {
            return self.refuse(format!("an argument of {name} should be a text or a number itself"), input);
        };
        let bytes = texts.iter().map(|text| to_float(text.len())).sum::<f64>();
        self.make(input.fixed(bytes).bytes);
        let first = texts.first().map_or("", |text| &**text);
        match name {
            "test" | "capture" => {
                if texts.get(1).is_some_and(|flags| flags.contains('g')) {
                    self.fault(format!("{name} needs only one match, so it has no flag g"));
                }
                let matches = self.regex(first, input, input.number, scope);
                if name == "capture" { matches } else { itself }
            }
            "join" => {
                let separators = input.bytes.times(ITEMS * bytes);
                let joined = input.one(itself.bytes.plus(separators));
                self.make(joined.bytes.times(4.0));
                joined
            }
            _ => itself,
        }
    }

    fn replacement(&mut self, name: &str, arguments: &'t [Term<&'t str>], input: Flow, scope: Scope) -> Flow {
        let [regex, replacement, ..] = arguments else { return input };
        let Some(regex) = literal_text(regex) else {
            return self.refuse(format!("the regular expression of {name} should be a text itself"), input);
        };
        let is_global = name == "gsub";
        self.slow |= is_global;
        // A match may be empty, so there are as many as characters, and one more.
        let number = if is_global { input.bytes.plus(input.number) } else { input.number };
        let matches = self.regex(&regex, input, number, scope);
        let replaced = self.one(replacement, matches, scope.in_each(true));
        let output = input.one(input.bytes.plus(replaced.bytes)).plus(2.0);
        self.make(output.bytes.times(2.0).plus(replaced.number.times(CALL)));
        output
    }

    /// The captures of each match of a regular expression. The engine is linear in the text, with
    /// the size of the expression as factor.
    fn regex(&mut self, regex: &str, input: Flow, number: Line, scope: Scope) -> Flow {
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
        // It is compiled each time, and a class can have hundreds of ranges.
        self.make(input.number.times(to_float(regex.len()) * repetitions(regex) * CLASS));
        // Each group captures at most the whole match.
        let groups = to_float(regex.matches('(').count() + 1);
        let bytes = input.bytes.times(groups).plus(number.times(groups * (MATCH + to_float(regex.len()))));
        self.make(bytes.times(4.0));
        Flow { bytes, number, count: Count::One }
    }
}

/// The largest number of `{n}` and `{n,m}` in a regular expression.
fn repetitions(regex: &str) -> f64 {
    let counts = regex
        .split('{')
        .skip(1)
        .filter_map(|rest| rest.split_once('}'))
        .flat_map(|(inside, _)| inside.split(','));
    counts.filter_map(|count| count.trim().parse().ok()).fold(1.0, f64::max)
}

/// The number of places that a path names with `,`. `None` is no path.
fn branches(term: &Term<&str>) -> Option<usize> {
    match term {
        Term::Id => Some(1),
        Term::Path(head, _) => branches(head),
        Term::BinOp(left, BinaryOp::Pipe(None), right) => branches(left)?.checked_mul(branches(right)?),
        Term::BinOp(left, BinaryOp::Comma, right) => Some(branches(left)? + branches(right)?),
        Term::TryCatch(inner, None) => branches(inner),
        Term::Call("select", _) => Some(1),
        _ => None,
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

/// The text of a term that is a text or a number itself.
fn literal_text<'t>(term: &Term<&'t str>) -> Option<Cow<'t, str>> {
    let Term::Str(None, parts) = term else { return literal_number(term).map(Cow::Borrowed) };
    if let [StrPart::Str(text)] = parts.as_slice() {
        return Some(Cow::Borrowed(text));
    }
    let mut text = String::new();
    for part in parts {
        match part {
            StrPart::Str(part) => text.push_str(part),
            StrPart::Char(char) => text.push(*char),
            StrPart::Term(_) => return None,
        }
    }
    Some(Cow::Owned(text))
}
