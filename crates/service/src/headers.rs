//! The headers of a record as Kafka has them: a name is bytes. rdkafka's own readers panic at a name that is not UTF-8,
//! which anybody may write.

use std::ffi::CStr;
use std::ptr;

use rdkafka::bindings::{rd_kafka_header_get_all, rd_kafka_headers_t};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Message};

/// One header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawHeader<'m> {
    /// Its name.
    pub name: &'m [u8],
    /// Its value; an empty one is not a null one.
    pub value: Option<&'m [u8]>,
}

/// The headers of `message`, in order.
pub fn raw_headers<'m>(message: &'m BorrowedMessage<'_>) -> impl Iterator<Item = RawHeader<'m>> {
    let headers = message.headers();
    (0..).map_while(move |index| get(headers?, index))
}

#[expect(unsafe_code, reason = "rdkafka's own readers of a header take its name for UTF-8")]
fn get(headers: &BorrowedHeaders, index: usize) -> Option<RawHeader<'_>> {
    let list = ptr::from_ref(headers).cast::<rd_kafka_headers_t>();
    let (mut name, mut value, mut length) = (ptr::null(), ptr::null(), 0);
    // SAFETY: a `BorrowedHeaders` is what librdkafka's list lies behind, and is used nowhere else in this call; the call
    // reads it, and writes the three places only if it succeeds.
    let outcome =
        unsafe { rd_kafka_header_get_all(list, index, &raw mut name, &raw mut value, &raw mut length) };
    if outcome != rdkafka::bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return None;
    }
    // SAFETY: it succeeded: the name ends with a NUL, the value is null or has `length` bytes, and both live in the list.
    let (name, value) = unsafe {
        let value = (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), length));
        (CStr::from_ptr(name).to_bytes(), value)
    };
    Some(RawHeader { name, value })
}
