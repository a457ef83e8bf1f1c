//! The headers of a record as Kafka has them: a name is bytes. rdkafka's own readers panic at a name that is not UTF-8,
//! which anybody may write, and its writer takes none.

use std::ffi::CStr;
use std::ptr;

use rdkafka::bindings::{
    rd_kafka_header_add, rd_kafka_header_get_all, rd_kafka_headers_t, rd_kafka_resp_err_t,
};
use rdkafka::message::{BorrowedHeaders, OwnedHeaders};

const DONE: rd_kafka_resp_err_t = rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;

/// One header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawHeader<'m> {
    /// Its name, without a NUL.
    pub name: &'m [u8],
    /// Its value; an empty one is not a null one.
    pub value: Option<&'m [u8]>,
}

/// Headers that can be read whatever their names are.
pub trait RawHeaders {
    /// Each header, in order.
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

/// `headers` and one more behind them. Its name ends at a NUL.
#[must_use]
#[expect(unsafe_code, reason = "rdkafka takes the name of a header as text only")]
pub fn with_header(headers: OwnedHeaders, header: RawHeader<'_>) -> OwnedHeaders {
    let list = ptr::from_ref(headers.as_borrowed()).cast::<rd_kafka_headers_t>().cast_mut();
    let (value, length) = header.value.map_or((ptr::null(), 0), |value| (value.as_ptr(), value.len()));
    // Kafka has no longer ones.
    let size = |length: usize| isize::try_from(length).unwrap_or(isize::MAX);
    // SAFETY: a `BorrowedHeaders` is what librdkafka's list lies behind, and this one belongs to the caller alone; the call
    // copies the name and the value, which live until it returns.
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

#[expect(unsafe_code, reason = "rdkafka's own readers of a header take its name for UTF-8")]
fn get(headers: &BorrowedHeaders, index: usize) -> Option<RawHeader<'_>> {
    let list = ptr::from_ref(headers).cast::<rd_kafka_headers_t>();
    let (mut name, mut value, mut length) = (ptr::null(), ptr::null(), 0);
    // SAFETY: as above; the call reads the list, and writes the three places only if it succeeds.
    let outcome =
        unsafe { rd_kafka_header_get_all(list, index, &raw mut name, &raw mut value, &raw mut length) };
    if outcome != DONE {
        return None;
    }
    // SAFETY: it succeeded: the name ends with a NUL, the value is null or has `length` bytes, and both live in the list.
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
    fn any_name_and_value_comes_out_as_it_went_in() {
        let headers =
            [(&b"\xffname"[..], Some(&b"\x00\xff"[..])), (b"", Some(b"")), (b"null", None), (b"null", None)];
        let headers = headers.map(|(name, value)| RawHeader { name, value });
        let list = headers.into_iter().fold(OwnedHeaders::new(), with_header);
        assert_eq!(list.raw_headers().collect::<Vec<_>>(), headers);
        assert_eq!(OwnedHeaders::new().raw_headers().count(), 0);
    }
}
