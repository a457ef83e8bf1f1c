//! The header `traceparent` of W3C Trace Context. As the recommendation requires, an invalid header
//! is ignored and removed.

use axum::http::{HeaderMap, HeaderName};

/// The header of requests and records.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A valid `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    pub trace_id: u128,
    /// The span of the client.
    pub parent_id: u64,
    /// Bit 0: the trace is sampled.
    pub flags: u8,
}

impl TraceParent {
    /// Parses the header, if the request has exactly one.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).into_iter();
        let (value, None) = (values.next()?, values.next()) else { return None };
        Self::parse(value.to_str().ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let mut field = |length: usize| {
            let digits = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            fields.next().filter(|field| field.len() == length && field.bytes().all(digits))
        };
        let (version, trace_id, parent_id, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        // Later versions may have more fields, but version 0 may not. Version ff is invalid.
        if version == "ff" || (version == "00" && fields.next().is_some()) {
            return None;
        }
        let parent = Self {
            trace_id: u128::from_str_radix(trace_id, 16).ok()?,
            parent_id: u64::from_str_radix(parent_id, 16).ok()?,
            flags: u8::from_str_radix(flags, 16).ok()?,
        };
        (parent.trace_id != 0 && parent.parent_id != 0).then_some(parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_valid_header_is_parsed() {
        let parent = TraceParent {
            trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
            parent_id: 0x00f0_67aa_0ba9_02b7,
            flags: 1,
        };
        assert_eq!(TraceParent::parse(RIGHT), Some(parent));
        assert_eq!(TraceParent::parse(&RIGHT.replacen("00", "cc", 1)), Some(parent));
        assert_eq!(TraceParent::parse(&format!("cc{}-what-comes-later", &RIGHT[2..])), Some(parent));
    }

    #[test]
    fn an_invalid_header_is_ignored() {
        for wrong in [
            "",
            "00-4bf92f-00f067aa0ba902b7-01",
            &RIGHT[..54],
            &format!("{RIGHT}-00"),
            &format!("{RIGHT}0"),
            &RIGHT.to_uppercase(),
            &RIGHT.replacen("00", "ff", 1),
            &RIGHT.replace('4', "x"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn two_headers_are_ignored() {
        let mut headers = HeaderMap::from_iter([(TRACEPARENT, RIGHT.parse().unwrap())]);
        assert!(TraceParent::of(&headers).is_some());
        headers.append(TRACEPARENT, RIGHT.parse().unwrap());
        assert_eq!(TraceParent::of(&headers), None);
    }
}
