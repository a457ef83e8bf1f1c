//! Generated payloads: ordinary ones, about the size of an aircraft, and hostile ones, which are
//! valid but unusual. Each has two forms: the JSON text to send, and the fields to be stored. The
//! JSON text has the order of the fields and every digit of the numbers. Its code is independent of
//! the pipeline's, so that `verify` does not repeat its faults.

use std::fmt::Write;

use bson::{Bson, Decimal128, Document, doc};
use serde::{Deserialize, Serialize};

/// The begin of a hostile payload. The last value of a repeated key wins.
const REPEATED: &str = "{\"n\":\"replaced\",";

/// Nesting levels of a deep payload; the payload itself is level 1.
const DEEP_LEVELS: usize = 80;

/// A payload.
#[derive(Debug, Clone, PartialEq)]
pub struct Payload {
    /// The fields of its document.
    pub fields: Document,
    /// The JSON text to send.
    pub text: String,
}

/// Where the id and the timestamp of an event are in the record of a source that is pushed: the names
/// of a JSON Pointer. The rest of the record is a generated payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordForm {
    /// The id, a text.
    pub id: Vec<String>,
    /// The timestamp, in epoch milliseconds. Absent: the time of acceptance.
    pub timestamp: Option<Vec<String>>,
}

impl RecordForm {
    /// Whether both places can be in one record.
    pub fn is_possible(&self) -> bool {
        let Some(timestamp) = &self.timestamp else { return !self.id.is_empty() };
        // A place within the other one would replace it.
        !timestamp.starts_with(&self.id) && !self.id.starts_with(timestamp)
    }

    /// The record of an event with this payload.
    pub fn record(&self, payload: Payload, id: &str, timestamp: i64) -> Payload {
        let own = || std::iter::once(&self.id).chain(&self.timestamp).filter_map(|path| path.first());
        let mut fields = payload.fields;
        for name in own() {
            fields.remove(name);
        }
        set(&mut fields, &self.id, id.into());
        if let Some(path) = &self.timestamp {
            set(&mut fields, path, timestamp.into());
        }
        let text = json_text(&fields);
        // A hostile payload repeats its first key; here, too.
        let repeats = payload.text.starts_with(REPEATED) && own().all(|name| name != "n");
        let text = if repeats { format!("{REPEATED}{}", text.trim_start_matches('{')) } else { text };
        Payload { fields, text }
    }
}

/// Sets the value at a path of names. Documents in between are created.
fn set(document: &mut Document, path: &[String], value: Bson) {
    match path {
        [] => {}
        [name] => drop(document.insert(name, value)),
        [name, rest @ ..] => {
            let mut inner = match document.remove(name) {
                Some(Bson::Document(inner)) => inner,
                _ => Document::new(),
            };
            set(&mut inner, rest, value);
            document.insert(name, inner);
        }
    }
}

/// Pseudo-random numbers (SplitMix64), the same in every version of this program and on every
/// machine: `verify` generates the events of a ledger again.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The numbers of event `n` in a run with this seed.
    pub fn of(seed: u64, n: u64) -> Self {
        let run = Self(seed).next_u64();
        Self(Self(run.wrapping_add(n)).next_u64())
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`; `limit` must not be 0.
    pub fn below(&mut self, limit: u32) -> u32 {
        u32::try_from(self.next_u64() % u64::from(limit)).unwrap_or_default()
    }

    /// True for `ppm` millionths of the calls.
    pub fn chance(&mut self, ppm: u32) -> bool {
        self.below(1_000_000) < ppm
    }
}

/// An ordinary payload of event `n`.
pub fn ordinary(n: u64, key: u64, random: &mut Random) -> Payload {
    let models = ["737 MAX 8", "A320-214", "G Hot Air Balloon", "72-600", "PA-28-181 \"Archer\""];
    let owners = ["Loganair", "Türk Hava Yolları", "Aerolíneas Argentinas", "日本航空", "Private"];
    let mut real = |limit: u32| f64::from(random.below(limit)) / 1_000.0;
    let position = doc! { "latitude": real(90_000), "longitude": real(180_000) };
    let speed = real(900_000);
    let fields = doc! {
        "n": integer(n),
        "mode_s": mode_s(key),
        "registration": format!("N{key}"),
        "type": one_of(&models, random),
        "registered_owner": one_of(&owners, random),
        "altitude_ft": integer(random.below(45_000).into()),
        "odometer_m": integer(random.next_u64() >> 20),
        "speed_kt": speed,
        "position": position,
        "squawks": [integer(random.below(7_777).into()), integer(random.below(7_777).into())],
        "on_ground": random.chance(500_000),
        "url_photo": Bson::Null,
        "remarks": "climbing through the inversion ".repeat(random.below(6) as usize),
    };
    Payload { text: json_text(&fields), fields }
}

/// A hostile payload of event `n`: one of the kinds below, always with a repeated key.
pub fn hostile(n: u64, key: u64, random: &mut Random) -> Payload {
    const KINDS: [fn(&mut Random) -> Document; 8] =
        [names, numbers, metadata, large, deep, wide, texts, nothing];
    let kind = KINDS[random.below(KINDS.len() as u32) as usize];
    let mut fields = doc! { "n": integer(n), "mode_s": mode_s(key) };
    fields.extend(kind(random));
    let text = format!("{REPEATED}{}", json_text(&fields).trim_start_matches('{'));
    Payload { fields, text }
}

/// Names with a meaning in MongoDB. Names of Extended JSON such as `$date` are missing: the
/// database that `up` starts converts them to dates when it updates a document. MongoDB does not.
fn names(random: &mut Random) -> Document {
    doc! {
        "a.b": { "c.d": integer(random.next_u64() >> 8), "e.": [{ ".f": 1 }] },
        "$set": { "$inc": { "n": 1 } },
        "": "empty",
        "$": "$",
        "0": "a number",
        "value": "$n",
        "root": "$$ROOT",
        "expression": { "$where": "1", "$literal": ["$n"] },
    }
}

fn numbers(random: &mut Random) -> Document {
    let digits = format!("{}{}", 1 + random.below(9), "7".repeat(33));
    doc! {
        "integers": [i32::MAX, i32::MIN, 1_i64 << 31, i64::MAX, i64::MIN, decimal("9223372036854775808"), decimal(&digits)],
        "reals": [5e-324, f64::MAX, -0.0, 1.0 / 3.0, 3.0, decimal("1.50E+400"), decimal("-1E-400")],
    }
}

fn metadata(random: &mut Random) -> Document {
    doc! {
        "_id": { "a": [integer(random.next_u64() >> 8)] },
        "event_id": 5,
        "event_timestamp": "never",
        "ingested_at": Bson::Null,
        "api_version": [1, 2],
        "event_timestamp_iso": true,
        "ingested_at_iso": {},
        "payload_conflicts": { "event_id": "x" },
        "envelope_extra": 1.5,
        "plain": { "_id": 1, "event_id": 2 },
    }
}

fn large(random: &mut Random) -> Document {
    doc! { "large": format!("{:05} bytes ", random.below(99_999)).repeat(5_000) }
}

fn deep(random: &mut Random) -> Document {
    let innermost = integer(random.next_u64() >> 8);
    let value = (1..DEEP_LEVELS).fold(innermost, |value, level| {
        if level % 2 == 0 { Bson::Array(vec![value]) } else { Bson::Document(doc! { "d": value }) }
    });
    doc! { "deep": value }
}

fn wide(random: &mut Random) -> Document {
    (0..500).map(|n| (format!("field {n}"), integer(random.next_u64() >> 40))).collect()
}

fn texts(random: &mut Random) -> Document {
    doc! {
        "é\n": "tab\t nul\u{0} quote\" back\\slash / line\u{2028}",
        "日本": "日本語 العربية עברית",
        "\u{feff}": "👩\u{200d}✈\u{fe0f} 🛩",
        "control": "\u{1}\u{1f}\u{7f}\u{85}",
        "combining": ["e\u{301}", "\u{e9}"],
        "number": format!("{}", random.below(1_000)),
    }
}

fn nothing(random: &mut Random) -> Document {
    doc! {
        "nothing": Bson::Null,
        "list": [],
        "object": {},
        "nulls": [Bson::Null, [Bson::Null], { "x": Bson::Null }],
        "text": "",
        // One of the two fields of the lookup index may be an array.
        "mode_s": [format!("{:06X}", random.below(1 << 24)), "A"],
    }
}

/// The smallest BSON type that holds the number: int32, int64, else Decimal128.
fn integer(number: u64) -> Bson {
    match (i32::try_from(number), i64::try_from(number)) {
        (Ok(small), _) => Bson::Int32(small),
        (_, Ok(large)) => Bson::Int64(large),
        _ => decimal(&number.to_string()),
    }
}

fn decimal(text: &str) -> Bson {
    text.parse::<Decimal128>().map_or(Bson::Null, Bson::Decimal128)
}

fn mode_s(key: u64) -> String {
    format!("{key:06X}")
}

fn one_of(words: &[&str], random: &mut Random) -> String {
    let index = random.below(words.len() as u32) as usize;
    words.get(index).copied().unwrap_or_default().to_owned()
}

/// The text of a document that contains only values with a JSON form.
fn json_text(document: &Document) -> String {
    let mut text = String::with_capacity(512);
    object(document, &mut text);
    text
}

fn object(document: &Document, text: &mut String) {
    text.push('{');
    for (index, (name, field)) in document.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        string(name, text);
        text.push(':');
        value(field, text);
    }
    text.push('}');
}

fn array(values: &[Bson], text: &mut String) {
    text.push('[');
    for (index, item) in values.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        value(item, text);
    }
    text.push(']');
}

fn string(string: &str, text: &mut String) {
    text.push_str(&serde_json::Value::from(string).to_string());
}

fn value(bson: &Bson, text: &mut String) {
    // Writing to a string cannot fail.
    _ = match bson {
        Bson::Document(document) => return object(document, text),
        Bson::Array(values) => return array(values, text),
        Bson::String(this) => return string(this, text),
        // Always with a dot or an exponent, so that it is read as a real number again.
        Bson::Double(real) => write!(text, "{real:?}"),
        Bson::Int32(integer) => write!(text, "{integer}"),
        Bson::Int64(integer) => write!(text, "{integer}"),
        Bson::Decimal128(decimal) => write!(text, "{decimal}"),
        Bson::Boolean(truth) => write!(text, "{truth}"),
        _ => write!(text, "null"),
    };
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;

    #[test]
    fn random_numbers_are_those_of_the_published_algorithm() {
        let mut random = Random(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.next_u64()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn chance_is_true_for_its_share_of_the_calls() {
        let hits = (0..100_000).filter(|n| Random::of(7, *n).chance(100_000)).count();
        assert!((9_500..10_500).contains(&hits), "{hits}");
    }

    #[test]
    fn hostile_payloads_have_the_intended_size_and_depth() {
        let texts: Vec<String> = (0..200).map(|n| hostile(n, n, &mut Random::of(1, n)).text).collect();
        let longest = texts.iter().map(String::len).max().unwrap();
        assert!((55_000..65_000).contains(&longest), "{longest}");
        let depth = |text: &str| {
            let step = |(level, max): (i32, i32), c| match c {
                '{' | '[' => (level + 1, max.max(level + 1)),
                '}' | ']' => (level - 1, max),
                _ => (level, max),
            };
            text.chars().fold((0, 0), step).1
        };
        assert_eq!(texts.iter().map(|text| depth(text)).max(), Some(80));
        for part in
            ["\"\":\"empty\"", "9223372036854775808", "1.50E+400", "\"_id\":", "\\u0000", "\"list\":[]"]
        {
            assert!(texts.iter().any(|text| text.contains(part)), "{part}");
        }
        assert!(texts.iter().all(|text| text.starts_with("{\"n\":\"replaced\",\"n\":")));
    }

    #[test]
    fn the_text_has_every_digit_and_every_character() {
        let decimal: Decimal128 = "1.50E+400".parse().unwrap();
        let document = doc! {
            "z": 1, "a\"": [i64::MIN, 3.0, 5e-324, -0.0, decimal], "": { "n": null, "t": true, "s": "\n\u{0}é" }, "e": [],
        };
        let right = "{\"z\":1,\"a\\\"\":[-9223372036854775808,3.0,5e-324,-0.0,1.50E+400],\
                     \"\":{\"n\":null,\"t\":true,\"s\":\"\\n\\u0000é\"},\"e\":[]}";
        assert_eq!(json_text(&document), right);
    }
}
