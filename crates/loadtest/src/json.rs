//! The JSON text of a document, in the order of its fields and with every digit of its numbers. The
//! code is independent of the pipeline's, so that `verify` does not repeat its faults.

use std::fmt::Write;

use bson::{Bson, Document};

/// The text of a document that contains only values with a JSON form.
pub fn text(document: &Document) -> String {
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
    use super::*;
    use bson::doc;

    #[test]
    fn the_text_has_every_digit_and_every_character() {
        let decimal: bson::Decimal128 = "1.50E+400".parse().unwrap();
        let document = doc! {
            "z": 1, "a\"": [i64::MIN, 3.0, 5e-324, -0.0, decimal], "": { "n": null, "t": true, "s": "\n\u{0}é" }, "e": [],
        };
        let right = "{\"z\":1,\"a\\\"\":[-9223372036854775808,3.0,5e-324,-0.0,1.50E+400],\
                     \"\":{\"n\":null,\"t\":true,\"s\":\"\\n\\u0000é\"},\"e\":[]}";
        assert_eq!(text(&document), right);
    }
}
