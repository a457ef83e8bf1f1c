//! Record headers with names that are not UTF-8.
//!
//! In Kafka a name is bytes. rdkafka panics when it reads a name that is not UTF-8, and cannot write
//! one. Any client may have written such a header.

use std::ffi::CStr;
use std::ptr;

use rdkafka::bindings::{
    rd_kafka_header_add, rd_kafka_header_get_all, rd_kafka_headers_t, rd_kafka_resp_err_t,
};
use rdkafka::message::{BorrowedHeaders, OwnedHeaders};

const NO_ERROR: rd_kafka_resp_err_t = rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;

/// A header with its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawHeader<'m> {
    /// Name, without NUL.
    pub name: &'m [u8],
    /// Value. `None` is a null value, which differs from an empty one.
    pub value: Option<&'m [u8]>,
}

/// Access to headers with any name.
pub trait RawHeaders {
    /// All headers in order.
    fn raw_headers(&self) -> impl Iterator<Item = RawHeader<'_>>;
}

impl RawHeaders for BorrowedHeaders {
    fn raw_headers(&self) -> impl Iterator<Item = RawHeader<'_>> {
        (0..).map_while(|index| get(self, index))
    }
}

impl RawHeaders for OwnedHeaders {
    fn raw_headers(&self) -> impl Iterator<Item = RawHeader<'_>> {
        self.as_borrowed().raw_headers()
    }
}

/// Appends `header`. Its name ends at the first NUL.
#[must_use]
#[expect(unsafe_code, reason = "rdkafka accepts only a UTF-8 name")]
pub fn with_header(headers: OwnedHeaders, header: RawHeader<'_>) -> OwnedHeaders {
    let list = ptr::from_ref(headers.as_borrowed()).cast::<rd_kafka_headers_t>().cast_mut();
    let (value, length) = header.value.map_or((ptr::null(), 0), |value| (value.as_ptr(), value.len()));
    // Kafka has no longer names and values.
    let size = |length: usize| isize::try_from(length).unwrap_or(isize::MAX);
    // SAFETY: a reference to `BorrowedHeaders` is a pointer to librdkafka's list, and `headers` is its
    // only owner. The call copies name and value.
    let _ = unsafe {
        rd_kafka_header_add(
            list,
            header.name.as_ptr().cast(),
            size(header.name.len()),
            value.cast(),
            size(length),
        )
    };
    headers
}

#[expect(unsafe_code, reason = "rdkafka's own functions expect a UTF-8 name")]
fn get(headers: &BorrowedHeaders, index: usize) -> Option<RawHeader<'_>> {
    let list = ptr::from_ref(headers).cast::<rd_kafka_headers_t>();
    let (mut name, mut value, mut length) = (ptr::null(), ptr::null(), 0);
    // SAFETY: the pointer is valid as above. The call reads the list and writes the three variables only
    // on success.
    let code =
        unsafe { rd_kafka_header_get_all(list, index, &raw mut name, &raw mut value, &raw mut length) };
    if code != NO_ERROR {
        return None;
    }
    // SAFETY: after success the name ends with NUL, and the value is null or has `length` bytes. Both
    // live as long as the list.
    let (name, value) = unsafe {
        let value = (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), length));
        (CStr::from_ptr(name).to_bytes(), value)
    };
    Some(RawHeader { name, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_with_any_name_and_value_is_read_as_written() {
        let headers =
            [(&b"\xffname"[..], Some(&b"\x00\xff"[..])), (b"", Some(b"")), (b"null", None), (b"null", None)];
        let headers = headers.map(|(name, value)| RawHeader { name, value });
        let list = headers.into_iter().fold(OwnedHeaders::new(), with_header);
        assert_eq!(list.raw_headers().collect::<Vec<_>>(), headers);
        assert_eq!(OwnedHeaders::new().raw_headers().count(), 0);
    }
}
