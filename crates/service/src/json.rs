//! JSON from outside. A struct is read from a JSON object only: serde's derived readers also take an array, whose items
//! they assign to the fields in order.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// A `T` that is a JSON object. It stands around each struct, and each struct inside one, that is read from outside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members(PhantomData)).map(Self)
    }
}

struct Members<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(members))
    }
}

/// The `T` that the JSON object `bytes` is.
///
/// # Errors
/// Not JSON, not an object, or not a `T`.
pub fn object<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> serde_json::Result<T> {
    serde_json::from_slice::<Object<T>>(bytes).map(|Object(read)| read)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::value::RawValue;

    use super::{Object, object};

    #[derive(Debug, Deserialize)]
    struct Outer<'a> {
        #[serde(borrow)]
        raw: &'a RawValue,
        list: Option<Vec<Object<Inner>>>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        number: u8,
    }

    #[test]
    fn a_struct_is_read_from_an_object() {
        let read: Outer<'_> = object(br#" {"raw": [1.50], "list": [{"number": 7}], "other": 1}"#).unwrap();
        assert_eq!((read.raw.get(), read.list.unwrap()[0].0.number), ("[1.50]", 7));
    }

    #[test]
    fn a_struct_is_not_read_from_an_array() {
        assert!(serde_json::from_slice::<Outer<'_>>(b"[1, null]").is_ok(), "serde takes it");
        for wrong in
            [&b"[1, [[7]]]"[..], b"[1, null]", br#"{"raw": 1, "list": [[7]]}"#, b"null", b"1", b"\"\""]
        {
            let error = object::<Outer<'_>>(wrong).unwrap_err().to_string();
            assert!(error.contains("a JSON object"), "{error}");
        }
    }
}
