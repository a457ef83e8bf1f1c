//! The values that filters compute with: those of jaq, whose memory is counted before it is taken.
//!
//! The bound of [`super::syntax`] is computed from the filter's text. This count is the second
//! line: it ends a run that makes more than the bound foresees, before the memory is taken.

use std::cell::Cell;
use std::fmt::{self, Write};
use std::ops::{Add, Div, Mul, Neg, Rem, Sub};
use std::panic::resume_unwind;

use jaq_core::box_iter::box_once;
use jaq_core::data::JustLut;
use jaq_core::native::{Fun, bome, run, unary, v};
use jaq_core::ops::Math;
use jaq_core::path::Opt;
use jaq_core::val::Range;
use jaq_core::{Error, Exn, ValT, ValX};
use jaq_json::{Map, Num, Rc, Val};
use jaq_std::ValT as StdValT;

/// Maximum memory that a run may take in total, also if it is free again.
const MAX_SPENT: usize = 256 * 1024 * 1024;
/// Memory of an item of an array.
const ITEM_BYTES: usize = 32;
const ITERABLE: &str = "iterable (array or object)";
pub(super) const NO_NUMBERS: &str = "* needs numbers on both sides";
pub(super) const NO_RESULT: &str = "values cannot be calculated with each other";

type Result<T = Value, E = Error<Value>> = std::result::Result<T, E>;

thread_local! {
    static SPENT: Cell<Spent> = const { Cell::new(Spent { text: 0, items: 0 }) };
}

/// What a run has taken so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Spent {
    /// Bytes of texts and long numbers.
    pub(super) text: usize,
    /// Items of arrays, and keys and values of objects.
    pub(super) items: usize,
}

/// The payload of the unwinding that ends a run, which no `try` of a filter catches.
pub(super) struct TooLarge;

pub(super) type Data = JustLut<Value>;

/// Starts the count of a run.
pub(super) fn reset() {
    SPENT.set(Spent::default());
}

/// The count of this thread's run.
#[cfg(test)]
pub(super) fn spent() -> Spent {
    SPENT.get()
}

fn spend(text: usize, items: usize) {
    let before = SPENT.get();
    let now = Spent { text: before.text.saturating_add(text), items: before.items.saturating_add(items) };
    SPENT.set(now);
    if now.items.saturating_mul(ITEM_BYTES).saturating_add(now.text) > MAX_SPENT {
        // Not a panic, so that nothing is printed.
        resume_unwind(Box::new(TooLarge));
    }
}

fn spend_text(bytes: usize) {
    spend(bytes, 0);
}

fn spend_items(items: usize) {
    spend(0, items);
}

/// Counts the copy of a container that another value uses too.
fn spend_copy<T>(shared: &Rc<T>, items: usize) {
    if Rc::strong_count(shared) > 1 {
        spend_items(items);
    }
}

/// A value of a filter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Value(pub(super) Val);

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Counted(f), "{}", self.0)
    }
}

/// Counts a text before it is written.
struct Counted<'f, 'b>(&'f mut fmt::Formatter<'b>);

impl Write for Counted<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        spend_text(text.len());
        self.0.write_str(text)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self(value.into())
    }
}

impl From<isize> for Value {
    fn from(value: isize) -> Self {
        Self(value.into())
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self(value.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        spend_text(text.len());
        Self(text.into())
    }
}

impl From<Range<Self>> for Value {
    fn from(range: Range<Self>) -> Self {
        Self((range.start.map(|from| from.0)..range.end.map(|to| to.0)).into())
    }
}

impl FromIterator<Self> for Value {
    fn from_iter<I: IntoIterator<Item = Self>>(items: I) -> Self {
        spend_items(1);
        let items = items.into_iter().map(|item| {
            spend_items(1);
            item.0
        });
        Self(items.collect())
    }
}

/// The digits of a number that has its own memory.
fn digits(number: &Num) -> usize {
    match number {
        Num::BigInt(number) => usize::try_from(number.bits()).unwrap_or(usize::MAX) / 3 + 1,
        Num::Dec(text) => text.len(),
        Num::Int(_) | Num::Float(_) => 0,
    }
}

/// A calculation with two numbers.
fn calculate(left: Num, op: Math, right: Num) -> Result {
    spend_text(digits(&left) + digits(&right));
    op.run(Val::Num(left), Val::Num(right)).map(Value).map_err(|_| Error::str(NO_RESULT))
}

fn wrap(result: std::result::Result<Val, Error<Val>>) -> Result {
    result.map(Value).map_err(|_| Error::str(NO_RESULT))
}

impl Add for Value {
    type Output = Result;

    fn add(self, other: Self) -> Result {
        match (self.0, other.0) {
            (Val::Null, value) | (value, Val::Null) => Ok(Self(value)),
            (Val::Num(left), Val::Num(right)) => calculate(left, Math::Add, right),
            (Val::TStr(left), Val::TStr(right)) => {
                spend_text(right.len() + if left.is_unique() { 0 } else { left.len() });
                wrap(Val::TStr(left) + Val::TStr(right))
            }
            (Val::Arr(left), Val::Arr(right)) => {
                spend_copy(&left, left.len());
                spend_items(right.len());
                wrap(Val::Arr(left) + Val::Arr(right))
            }
            (Val::Obj(left), Val::Obj(right)) => {
                spend_copy(&left, 2 * left.len());
                spend_items(2 * right.len());
                wrap(Val::Obj(left) + Val::Obj(right))
            }
            (left, right) => Err(Error::math(Self(left), Math::Add, Self(right))),
        }
    }
}

impl Sub for Value {
    type Output = Result;

    fn sub(self, other: Self) -> Result {
        match (self.0, other.0) {
            (Val::Num(left), Val::Num(right)) => calculate(left, Math::Sub, right),
            (Val::Arr(left), Val::Arr(right)) => {
                spend_items(left.len() + right.len());
                wrap(Val::Arr(left) - Val::Arr(right))
            }
            (left, right) => Err(Error::math(Self(left), Math::Sub, Self(right))),
        }
    }
}

impl Mul for Value {
    type Output = Result;

    /// Multiplies numbers. jq's `*` also repeats strings and merges objects.
    fn mul(self, other: Self) -> Result {
        match (self.0, other.0) {
            (Val::Num(left), Val::Num(right)) => calculate(left, Math::Mul, right),
            _ => Err(Error::str(NO_NUMBERS)),
        }
    }
}

impl Div for Value {
    type Output = Result;

    fn div(self, other: Self) -> Result {
        match (self.0, other.0) {
            (Val::Num(left), Val::Num(right)) => calculate(left, Math::Div, right),
            (Val::TStr(left), Val::TStr(right)) => {
                spend_items(left.len() / right.len().max(1) + 1);
                wrap(Val::TStr(left) / Val::TStr(right))
            }
            (left, right) => Err(Error::math(Self(left), Math::Div, Self(right))),
        }
    }
}

impl Rem for Value {
    type Output = Result;

    fn rem(self, other: Self) -> Result {
        match (self.0, other.0) {
            (Val::Num(left), Val::Num(right)) => calculate(left, Math::Rem, right),
            (left, right) => Err(Error::math(Self(left), Math::Rem, Self(right))),
        }
    }
}

impl Neg for Value {
    type Output = Result;

    fn neg(self) -> Result {
        match self.0 {
            Val::Num(number) => {
                spend_text(digits(&number));
                wrap(-Val::Num(number))
            }
            other => Err(Error::typ(Self(other), "number")),
        }
    }
}

impl ValT for Value {
    fn from_num(number: &str) -> Result {
        spend_text(number.len());
        wrap(Val::from_num(number))
    }

    fn from_map<I: IntoIterator<Item = (Self, Self)>>(members: I) -> Result {
        spend_items(1);
        let members = members.into_iter().map(|(key, value)| {
            spend_items(2);
            (key.0, value.0)
        });
        Ok(Self(Val::obj(members.collect())))
    }

    fn key_values(self) -> Box<dyn Iterator<Item = Result<(Self, Self)>>> {
        match self.0 {
            Val::Arr(items) => {
                spend_items(items.len());
                let items = Rc::unwrap_or_clone(items).into_iter().enumerate();
                Box::new(items.map(|(index, item)| Ok((Self::from(index), Self(item)))))
            }
            Val::Obj(members) => {
                spend_items(2 * members.len());
                let members = Rc::unwrap_or_clone(members).into_iter();
                Box::new(members.map(|(key, value)| Ok((Self(key), Self(value)))))
            }
            other => box_once(Err(Error::typ(Self(other), ITERABLE))),
        }
    }

    fn values(self) -> Box<dyn Iterator<Item = Result>> {
        match self.0 {
            Val::Arr(items) => {
                spend_items(items.len());
                Box::new(Rc::unwrap_or_clone(items).into_iter().map(|item| Ok(Self(item))))
            }
            Val::Obj(members) => {
                spend_items(2 * members.len());
                Box::new(Rc::unwrap_or_clone(members).into_iter().map(|(_, value)| Ok(Self(value))))
            }
            other => box_once(Err(Error::typ(Self(other), ITERABLE))),
        }
    }

    fn index(self, index: &Self) -> Result {
        let indexed = self.0.clone().index(&index.0);
        indexed.map(Self).map_err(|_| Error::index(self, index.clone()))
    }

    fn range(self, range: Range<&Self>) -> Result {
        if let Val::Arr(items) = &self.0 {
            spend_items(items.len());
        }
        let ranged = self.0.clone().range(range.start.map(|from| &from.0)..range.end.map(|to| &to.0));
        ranged.map(Self).map_err(|_| Error::typ(self, "rangeable (array or string)"))
    }

    fn map_values<'a, I: Iterator<Item = ValX<'a, Self>>>(
        self,
        opt: Opt,
        f: impl Fn(Self) -> I,
    ) -> ValX<'a, Self> {
        match self.0 {
            Val::Arr(items) => {
                spend_items(items.len());
                let items = Rc::unwrap_or_clone(items).into_iter().flat_map(|item| f(Self(item)));
                items.collect()
            }
            Val::Obj(members) => {
                spend_items(2 * members.len());
                let members = Rc::unwrap_or_clone(members).into_iter();
                let members = members.filter_map(|(key, value)| {
                    let value = f(Self(value)).next()?;
                    spend_items(2);
                    Some(value.map(|value| (key, value.0)))
                });
                Ok(Self(Val::obj(members.collect::<Result<Map, Exn<'a, Self>>>()?)))
            }
            other => opt.fail(Self(other), |other| Error::typ(other, ITERABLE).into()),
        }
    }

    fn map_index<'a, I: Iterator<Item = ValX<'a, Self>>>(
        self,
        index: &Self,
        opt: Opt,
        f: impl Fn(Self) -> I,
    ) -> ValX<'a, Self> {
        let first = |value: Val| f(Self(value)).next().transpose();
        match self.0 {
            Val::Obj(mut members) => {
                spend_copy(&members, 2 * members.len());
                spend_items(2);
                let map = Rc::make_mut(&mut members);
                let old = map.get_mut(&index.0).map(std::mem::take);
                match first(old.unwrap_or_default())? {
                    Some(Self(new)) => _ = map.insert(index.0.clone(), new),
                    // As in jaq, the last member moves to the gap.
                    None => _ = map.swap_remove(&index.0),
                }
                Ok(Self(Val::Obj(members)))
            }
            Val::Arr(mut items) => {
                let place = index.as_isize().and_then(|at| position(at, items.len()));
                let Some(place) = place else {
                    return opt
                        .fail(Self(Val::Arr(items)), |items| Error::index(items, index.clone()).into());
                };
                spend_copy(&items, items.len());
                let list = Rc::make_mut(&mut items);
                let old = list.get_mut(place).map(std::mem::take);
                match first(old.unwrap_or_default())? {
                    Some(Self(new)) => list.get_mut(place).into_iter().for_each(|item| *item = new.clone()),
                    None => _ = list.remove(place),
                }
                Ok(Self(Val::Arr(items)))
            }
            other => opt.fail(Self(other), |other| Error::typ(other, ITERABLE).into()),
        }
    }

    /// Puts the new slice between the parts before and after the old one.
    fn map_range<'a, I: Iterator<Item = ValX<'a, Self>>>(
        self,
        range: Range<&Self>,
        opt: Opt,
        f: impl Fn(Self) -> I,
    ) -> ValX<'a, Self> {
        let empty = match &self.0 {
            Val::Arr(_) => Self(Val::Arr(Rc::default())),
            Val::TStr(_) => Self(Val::utf8_str("")),
            _ => return opt.fail(self, |other| Error::typ(other, "array").into()),
        };
        let old = self.clone().range(range.clone())?;
        // Bounds that cross name the empty slice at the first one.
        let after = if old == empty { range.start } else { range.end };
        let head = match range.start {
            None => empty.clone(),
            start => self.clone().range(None..start)?,
        };
        let tail = match (after, old == empty) {
            (None, false) => empty.clone(),
            (after, _) => self.range(after..None)?,
        };
        let new = f(old).next().transpose()?.unwrap_or(empty);
        Ok(((head + new)? + tail)?)
    }

    fn as_bool(&self) -> bool {
        self.0.as_bool()
    }

    fn into_string(self) -> Self {
        match self.0 {
            text @ Val::TStr(_) => Self(text),
            other => Self(Val::utf8_str(Self(other).to_string())),
        }
    }
}

/// The position of an index, which counts from the end if it is negative.
fn position(index: isize, len: usize) -> Option<usize> {
    let distance = index.unsigned_abs();
    if index < 0 { len.checked_sub(distance) } else { Some(distance).filter(|at| *at < len) }
}

impl StdValT for Value {
    fn into_seq<S: FromIterator<Self>>(self) -> Result<S, Self> {
        match self.0 {
            Val::Arr(items) => {
                spend_items(items.len());
                Ok(Rc::unwrap_or_clone(items).into_iter().map(Self).collect())
            }
            other => Err(Self(other)),
        }
    }

    fn is_int(&self) -> bool {
        self.0.is_int()
    }

    fn as_isize(&self) -> Option<isize> {
        self.0.as_isize()
    }

    fn as_f64(&self) -> Option<f64> {
        self.0.as_f64()
    }

    fn is_utf8_str(&self) -> bool {
        self.0.is_utf8_str()
    }

    fn as_bytes(&self) -> Option<&[u8]> {
        self.0.as_bytes()
    }

    fn as_sub_str(&self, part: &[u8]) -> Self {
        spend_items(1);
        Self(self.0.as_sub_str(part))
    }

    fn from_utf8_bytes(bytes: impl AsRef<[u8]> + Send + 'static) -> Self {
        spend_text(bytes.as_ref().len());
        Self(Val::from_utf8_bytes(bytes))
    }
}

/// Functions that the library has for its own type of values only.
pub(super) fn functions() -> [Fun<Data>; 4] {
    [
        run(("tojson", v(0), |cv| bome(Ok(Value(Val::utf8_str(cv.1.to_string())))))),
        run(("length", v(0), |cv| bome(length(cv.1)))),
        run(("has", v(1), |cv| unary(cv, has))),
        run(("contains", v(1), |cv| unary(cv, |value, other| Ok(contains(&value, &other).into())))),
    ]
}

fn length(value: Value) -> Result {
    match &value.0 {
        Val::Null => Ok(0_usize.into()),
        Val::Bool(_) => Err(Error::str(format_args!("{value} has no length"))),
        Val::Num(Num::Int(_) | Num::BigInt(_)) if value < Value::from(0_usize) => -value,
        Val::Num(Num::Int(_) | Num::BigInt(_)) => Ok(value),
        Val::Num(_) => Ok(value.as_f64().unwrap_or(f64::NAN).abs().into()),
        Val::TStr(text) | Val::BStr(text) => Ok(String::from_utf8_lossy(text).chars().count().into()),
        Val::Arr(items) => Ok(items.len().into()),
        Val::Obj(members) => Ok(members.len().into()),
    }
}

fn has(value: Value, key: Value) -> Result {
    match (&value.0, &key.0) {
        (Val::Null, _) => Ok(false.into()),
        (Val::Obj(members), key) => Ok(members.contains_key(key).into()),
        (Val::Arr(items), Val::Num(Num::Int(at))) => Ok(position(*at, items.len()).is_some().into()),
        _ => Err(Error::index(value, key)),
    }
}

/// Whether a string has a text in it. Another value contains what it is equal to.
fn contains(value: &Value, other: &Value) -> bool {
    match (&value.0, &other.0) {
        (Val::TStr(text), Val::TStr(part)) => memchr::memmem::find(text, part).is_some(),
        _ => value == other,
    }
}
