//! jq filters over one record.
//!
//! The crate's documentation says what a filter may contain, and what it keeps of numbers.

mod functions;
mod syntax;
mod value;

use std::cell::OnceCell;
use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use events::{Unit, timestamp_from_number, timestamp_from_text};
use jaq_core::load::{Arena, File, Loader, parse};
use jaq_core::native::{Fun, bome, run, v};
use jaq_core::{Compiler, Ctx, Error, Vars, unwrap_valr};
use jaq_json::{Val, read};

pub use functions::function_names;
use syntax::Growth;
use value::{Data, NO_NUMBERS, NO_RESULT, TooLarge, Value};

/// Maximum length of a filter's text.
const MAX_FILTER_BYTES: usize = 4096;
/// Stack of the thread that parses a filter: 32 KiB for each byte, because the parser recurses.
/// Only what it uses takes memory.
const PARSER_STACK_BYTES: usize = 128 * 1024 * 1024;
/// Maximum nesting of a record that a filter gets, as in a payload.
const MAX_DEPTH: usize = 90;
/// Maximum keys and values of a record that a filter gets. Each takes up to 100 bytes of memory.
const MAX_VALUES: usize = 1_000_000;
/// Maximum digits of a number that a filter gets. Longer numbers cannot be stored anyway.
const MAX_NUMBER_BYTES: usize = 1100;
/// Maximum bytes of a filter's output.
const MAX_OUTPUT_BYTES: usize = 16 * 1024 * 1024;
/// Maximum length of the key of a record in a map.
const MAX_KEY_BYTES: usize = 1024;
/// Definitions instead of those of the library. That of `sub` copies its result for each match.
const OWN_DEFINITIONS: &str = r#"
    def sub(re; f; flags):
        [split_matches(re; flags)[] | if isarray then capture_of_match | f end] | reduce .[] as $x (""; . + $x);
    def sub(re; f): sub(re; f; "");
    def gsub(re; f): sub(re; f; "g");
"#;
/// Messages of the functions in this crate.
const OWN_MESSAGES: [&str; 5] = [NO_NUMBER, NO_SECONDS, NO_DATE, NO_NUMBERS, NO_RESULT];
const NO_NUMBER: &str = "tonumber needs a number or a text that is a number";
const NO_SECONDS: &str = "todate needs seconds of the years 1970 to 9999";
const NO_DATE: &str = "fromdate needs an RFC 3339 time with an offset";
const TOO_LARGE: &str = "the record is too large for this jq filter";
/// Maximum length of a message that the filter contains.
const MAX_MESSAGE_CHARS: usize = 200;

/// A compiled filter.
pub struct Filter {
    text: String,
    program: jaq_core::Filter<Data>,
    growth: Growth,
}

impl Filter {
    /// Parses, checks and compiles a filter. The error continues the sentence `path: …`.
    ///
    /// # Errors
    /// The text is not a jq filter, or it contains something that is not allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_FILTER_BYTES {
            return Err(format!("is a jq filter of more than {MAX_FILTER_BYTES} bytes"));
        }
        let (growth, program) = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(PARSER_STACK_BYTES);
            let handle = thread.spawn_scoped(scope, || {
                let term = parse(text, |parser| parser.term()).ok_or_else(|| syntax_error(text))?;
                let growth = syntax::check(&term)
                    .map_err(|reason| format!("is not an allowed jq filter: {reason}"))?;
                Ok::<_, String>((growth, compile(text)?))
            });
            let result = handle.map_err(|error| format!("cannot be parsed: {error}"))?.join();
            result.unwrap_or_else(|_| Err("cannot be parsed as a jq filter".to_owned()))
        })?;
        Ok(Self { text: text.to_owned(), program, growth })
    }

    /// The filter as written in the file.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Runs the filter. Returns the text of its only output.
    ///
    /// # Errors
    /// The record exceeds a limit, the filter fails, or it has not exactly one output that is JSON.
    pub fn apply(&self, input: &Input<'_>) -> Result<String, String> {
        if !self.growth.allows(input.written()) {
            return Err(TOO_LARGE.into());
        }
        let value = Value(input.value()?);
        let key = Value(input.key.map_or(Val::Null, |key| Val::from(key.to_owned())));
        value::reset();
        // A panic in jaq is an error of this record and must not end the task.
        let run = AssertUnwindSafe(|| self.run(value, key));
        catch_unwind(run).unwrap_or_else(|payload| {
            let reason = if payload.is::<TooLarge>() { TOO_LARGE } else { "the jq filter failed" };
            Err(reason.into())
        })
    }

    fn run(&self, value: Value, key: Value) -> Result<String, String> {
        let context = Ctx::<Data>::new(&self.program.lut, Vars::new([key]));
        let mut outputs = self.program.id.run((context, value)).map(unwrap_valr);
        let output = match outputs.next() {
            None => return Err("the jq filter has no output".into()),
            Some(Err(error)) => return Err(format!("the jq filter failed: {}", self.reason(&error))),
            Some(Ok(output)) => output,
        };
        if outputs.next().is_some() {
            return Err("the jq filter has more than one output".into());
        }
        let mut text = Bounded(String::new());
        if write!(text, "{output}").is_err() {
            return Err(format!("the output of the jq filter has more than {MAX_OUTPUT_BYTES} bytes"));
        }
        let text = text.0;
        // jaq writes NaN, Infinity and byte strings, which are not JSON.
        match serde_json::from_str::<&serde_json::value::RawValue>(&text) {
            Ok(_) => Ok(text),
            Err(_) => Err("the output of the jq filter is not JSON: it has NaN or Infinity in it".into()),
        }
    }
}

impl Filter {
    /// Why the filter failed, without values of the record.
    fn reason(&self, error: &Error<Value>) -> String {
        let text = error.to_string();
        if let Some((_, kind)) = text.strip_prefix("cannot use ").and_then(|rest| rest.rsplit_once(" as ")) {
            return format!("a value cannot be used as {kind}");
        }
        if text.starts_with("cannot calculate ") {
            return NO_RESULT.into();
        }
        if text.starts_with("cannot index ") {
            return "a value cannot be indexed like this".into();
        }
        // A text that stands in the filter, or is that of a function here, is no value of the record.
        let message: Option<String> = serde_json::from_str(&text).ok();
        let known =
            |message: &String| self.text.contains(message) || OWN_MESSAGES.contains(&message.as_str());
        let message = message.filter(known).map(|message| message.chars().take(MAX_MESSAGE_CHARS).collect());
        message.unwrap_or_else(|| "an error with a value of the record".into())
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({:?})", self.text)
    }
}

impl PartialEq for Filter {
    /// Compares the texts.
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// A record as the input of filters. It is parsed once, when the first filter needs it.
pub struct Input<'t> {
    text: &'t str,
    key: Option<&'t str>,
    shape: OnceCell<Shape>,
    value: OnceCell<Result<Val, String>>,
}

impl<'t> Input<'t> {
    /// Wraps the text of a record, which is valid JSON, and the record's key in a map.
    pub fn new(text: &'t str, key: Option<&'t str>) -> Self {
        Self { text, key, shape: OnceCell::new(), value: OnceCell::new() }
    }

    /// The text of the record.
    pub fn text(&self) -> &'t str {
        self.text
    }

    /// The key of the record in a map.
    pub fn key(&self) -> Option<&'t str> {
        self.key
    }

    /// Bytes of the record and its key when jaq writes them.
    fn written(&self) -> usize {
        // A byte of the key has at most six when it is escaped. Without a key, `$key` is null.
        self.shape().written + self.key.map_or(4, |key| 6 * key.len() + 2)
    }

    fn shape(&self) -> Shape {
        *self.shape.get_or_init(|| Shape::of(self.text))
    }

    fn value(&self) -> Result<Val, String> {
        self.value.get_or_init(|| self.parse()).clone()
    }

    fn parse(&self) -> Result<Val, String> {
        let shape = self.shape();
        if shape.depth > MAX_DEPTH {
            return Err(format!("the record has more than {MAX_DEPTH} nesting levels"));
        }
        if shape.longest_scalar > MAX_NUMBER_BYTES {
            return Err(format!("the record has a number of more than {MAX_NUMBER_BYTES} bytes"));
        }
        if shape.values > MAX_VALUES {
            return Err(format!("the record has more than {MAX_VALUES} keys and values"));
        }
        if self.key.is_some_and(|key| key.len() > MAX_KEY_BYTES) {
            return Err(format!("the key of the record has more than {MAX_KEY_BYTES} bytes"));
        }
        read::parse_single(self.text.as_bytes()).map_err(|_| {
            "the record cannot be read by a jq filter: it has an unpaired surrogate in a string".into()
        })
    }
}

/// What limits a record before it is parsed with recursion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Shape {
    depth: usize,
    longest_scalar: usize,
    /// Bytes of the record when jaq writes it, which escapes a delete character.
    written: usize,
    /// Keys and values, at least.
    values: usize,
}

impl Shape {
    fn of(json: &str) -> Self {
        let deletes = memchr::memchr_iter(0x7f, json.as_bytes()).count();
        let mut shape = Self { written: json.len() + 5 * deletes, ..Self::default() };
        let (mut open, mut scalar) = (0_usize, 0_usize);
        let bytes = json.as_bytes();
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'"' => at = string_end(bytes, at + 1),
                b'{' | b'[' => {
                    open += 1;
                    shape.depth = shape.depth.max(open);
                    shape.values += 1;
                }
                b',' | b':' => shape.values += 1,
                b'}' | b']' => open = open.saturating_sub(1),
                _ => {}
            }
            scalar = if byte.is_ascii_alphanumeric() || b"+-.".contains(byte) { scalar + 1 } else { 0 };
            shape.longest_scalar = shape.longest_scalar.max(scalar);
            at += 1;
        }
        shape
    }
}

/// The position of the quote that ends the string whose content starts at `at`.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        match memchr::memchr2(b'"', b'\\', rest) {
            None => return bytes.len(),
            Some(found) if rest.get(found) == Some(&b'\\') => at += found + 2,
            Some(found) => return at + found,
        }
    }
}

/// A text with a maximum length.
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MAX_OUTPUT_BYTES {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

fn compile(text: &str) -> Result<jaq_core::Filter<Data>, String> {
    let defs = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs());
    // Only the definitions of the list, so that nothing else can be called.
    let defs = defs.filter(|def| functions::is_needed(def.name, def.args.len()));
    let defs = defs.chain(parse(OWN_DEFINITIONS, |parser| parser.defs()).unwrap_or_default());
    let funs = jaq_core::funs::<Data>().chain(jaq_std::funs());
    let funs = funs.filter(|(name, args, _)| functions::is_needed(name, args.len()));
    let arena = Arena::default();
    let modules = Loader::new(defs).load(&arena, File { code: text, path: () });
    let modules = modules.map_err(|_| syntax_error(text))?;
    let funs = funs.chain(own_functions()).chain(value::functions());
    let compiler = Compiler::default().with_funs(funs).with_global_vars(["$key"]);
    compiler.compile(modules).map_err(|errors| {
        let unknown = errors.iter().flat_map(|(_, errors)| errors).map(|(name, _)| *name).collect::<Vec<_>>();
        format!("is a jq filter with unknown names: {}", unknown.join(", "))
    })
}

/// Functions whose definition in the library overflows or recurses without limit.
fn own_functions() -> [Fun<Data>; 5] {
    [
        run(("tonumber", v(0), |cv| bome(to_number(&cv.1).ok_or_else(|| Error::str(NO_NUMBER))))),
        run(("todate", v(0), |cv| bome(to_date(&cv.1)))),
        run(("todateiso8601", v(0), |cv| bome(to_date(&cv.1)))),
        run(("fromdate", v(0), |cv| bome(from_date(&cv.1)))),
        run(("fromdateiso8601", v(0), |cv| bome(from_date(&cv.1)))),
    ]
}

fn to_number(value: &Value) -> Option<Value> {
    match &value.0 {
        Val::Num(_) => Some(value.clone()),
        Val::TStr(text) if text.len() <= MAX_NUMBER_BYTES && is_number(text) => {
            read::parse_single_num(text).map(Val::Num).map(Value)
        }
        _ => None,
    }
}

/// RFC 3339 text of epoch seconds. Fractions of a second are kept to the millisecond.
fn to_date(value: &Value) -> Result<Value, Error<Value>> {
    let number = match &value.0 {
        Val::Num(number) => number.to_string(),
        _ => String::new(),
    };
    let number = Some(number).filter(|number| is_number(number.as_bytes()));
    let time = number.and_then(|number| timestamp_from_number(&number, Unit::Seconds).ok());
    let iso = time.ok_or_else(|| Error::str(NO_SECONDS))?.iso();
    Ok(Value::from(iso.replace(".000Z", "Z")))
}

/// Epoch seconds of RFC 3339 text: a whole number if there are no milliseconds.
fn from_date(value: &Value) -> Result<Value, Error<Value>> {
    let text = match &value.0 {
        Val::TStr(text) => std::str::from_utf8(text).ok(),
        _ => None,
    };
    let time = text.and_then(|text| timestamp_from_text(text).ok()).ok_or_else(|| Error::str(NO_DATE))?;
    let (seconds, rest) = (time.get() / 1000, time.get() % 1000);
    let number = if rest == 0 { seconds.to_string() } else { format!("{seconds}.{rest:03}") };
    Ok(Value(read::parse_single_num(number.as_bytes()).map_or(Val::Null, Val::Num)))
}

fn is_number(text: &[u8]) -> bool {
    serde_json::from_slice::<&serde_json::value::RawValue>(text)
        .is_ok_and(|raw| raw.get().starts_with(|first: char| first == '-' || first.is_ascii_digit()))
        && !text.iter().any(u8::is_ascii_whitespace)
}

/// Where a text stops to be a filter.
fn syntax_error(text: &str) -> String {
    let arena = Arena::default();
    let place = match Loader::new([]).load(&arena, File { code: text, path: () }) {
        Ok(_) => None,
        Err(errors) => errors.into_iter().next().and_then(|(_, error)| {
            let rest = match error {
                jaq_core::load::Error::Lex(errors) => errors.first().map(|(_, rest)| *rest),
                jaq_core::load::Error::Parse(errors) => errors.first().map(|(_, rest)| *rest),
                jaq_core::load::Error::Io(_) => None,
            }?;
            let start = jaq_core::load::span(text, rest).start;
            text.get(..start).map(|before| before.chars().count() + 1)
        }),
    };
    match place {
        Some(place) => {
            format!("is neither a JSON Pointer nor a jq filter: the filter is wrong at character {place}")
        }
        None => "is neither a JSON Pointer nor a jq filter".into(),
    }
}

#[cfg(test)]
mod tests;
