//! A record with a header that rdkafka cannot make: its name is not UTF-8.

use std::ffi::CString;

use rdkafka::ClientConfig;
use rdkafka::bindings as native;
use rdkafka::bindings::rd_kafka_vtype_t::*;
use rdkafka::producer::{BaseProducer, Producer};

use crate::trial::{SOON, Trial};

/// The header's name.
pub const NAME: &[u8] = b"\xffname";
const VALUE: &[u8] = b"v";

/// Writes it to partition 0 of the trial's topic, and waits until it is there.
#[expect(unsafe_code, reason = "rdkafka takes the names of headers as text only")]
pub fn send(trial: &Trial, key: &str, value: &str) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", &trial.bootstrap).create().unwrap();
    let topic = CString::new(trial.topic.as_str()).unwrap();
    // SAFETY: all pointers live until the call returns, which copies what they point to (F_COPY) and takes the headers.
    let outcome = unsafe {
        let headers = native::rd_kafka_headers_new(1);
        let (name, content) = (NAME.as_ptr().cast(), VALUE.as_ptr().cast());
        native::rd_kafka_header_add(headers, name, NAME.len() as isize, content, VALUE.len() as isize);
        native::rd_kafka_producev(
            producer.client().native_ptr(),
            RD_KAFKA_VTYPE_TOPIC,
            topic.as_ptr(),
            RD_KAFKA_VTYPE_PARTITION,
            0_i32,
            RD_KAFKA_VTYPE_MSGFLAGS,
            native::RD_KAFKA_MSG_F_COPY,
            RD_KAFKA_VTYPE_VALUE,
            value.as_ptr(),
            value.len(),
            RD_KAFKA_VTYPE_KEY,
            key.as_ptr(),
            key.len(),
            RD_KAFKA_VTYPE_HEADERS,
            headers,
            RD_KAFKA_VTYPE_END,
        )
    };
    assert_eq!(outcome, native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
    producer.flush(SOON).unwrap();
}
