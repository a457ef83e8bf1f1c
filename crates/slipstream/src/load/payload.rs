//! Payloads: ordinary ones, about the size of an aircraft, and hostile ones, which are accepted but awkward. Each is
//! known in both forms: the JSON text that is sent, and the fields that must be stored for it.

use bson::{Bson, Decimal128, Document, doc};

use super::json;
use super::random::Random;

/// Levels of a deep payload, its own included.
const DEEP: usize = 80;

/// A payload.
#[derive(Debug, Clone, PartialEq)]
pub struct Payload {
    /// What it says, as a document holds it.
    pub fields: Document,
    /// What is sent.
    pub text: String,
}

/// Of event `n`.
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
        "odometer_m": integer(random.next() >> 20),
        "speed_kt": speed,
        "position": position,
        "squawks": [integer(random.below(7_777).into()), integer(random.below(7_777).into())],
        "on_ground": random.chance(500_000),
        "url_photo": Bson::Null,
        "remarks": "climbing through the inversion ".repeat(random.below(6) as usize),
    };
    Payload { text: json::text(&fields), fields }
}

/// Of event `n`: one of the kinds below, and always with a name that is given twice.
pub fn hostile(n: u64, key: u64, random: &mut Random) -> Payload {
    const KINDS: [fn(&mut Random) -> Document; 8] =
        [names, numbers, metadata, large, deep, wide, texts, nothing];
    let kind = KINDS[random.below(KINDS.len() as u32) as usize];
    let mut fields = doc! { "n": integer(n), "mode_s": mode_s(key) };
    fields.extend(kind(random));
    // Of a name that is given twice the last one counts.
    let text = format!("{{\"n\":\"replaced\",{}", json::text(&fields).trim_start_matches('{'));
    Payload { fields, text }
}

/// Names that mean something to MongoDB. Those of Extended JSON, as `$date`, are not among them: the database that `up`
/// starts makes dates of them when it updates a document, which MongoDB does not.
fn names(random: &mut Random) -> Document {
    doc! {
        "a.b": { "c.d": integer(random.next() >> 8), "e.": [{ ".f": 1 }] },
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
        "_id": { "a": [integer(random.next() >> 8)] },
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
    let innermost = integer(random.next() >> 8);
    let value = (1..DEEP).fold(innermost, |value, level| {
        if level % 2 == 0 { Bson::Array(vec![value]) } else { Bson::Document(doc! { "d": value }) }
    });
    doc! { "deep": value }
}

fn wide(random: &mut Random) -> Document {
    (0..500).map(|place| (format!("field {place}"), integer(random.next() >> 40))).collect()
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
        // One of the two fields of the look-up index may be a list.
        "mode_s": [format!("{:06X}", random.below(1 << 24)), "A"],
    }
}

/// As the contract says: the smallest form that holds it.
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
    let place = random.below(words.len() as u32) as usize;
    words.get(place).copied().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_payloads_are_as_large_and_as_deep_as_they_are_meant_to_be() {
        let texts: Vec<String> = (0..200).map(|n| hostile(n, n, &mut Random::of(1, n)).text).collect();
        let longest = texts.iter().map(String::len).max().unwrap();
        assert!((55_000..65_000).contains(&longest), "{longest}");
        let depth = |text: &str| {
            let step = |(now, most): (i32, i32), c| match c {
                '{' | '[' => (now + 1, most.max(now + 1)),
                '}' | ']' => (now - 1, most),
                _ => (now, most),
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
}
