//! Tests of the whole system, in `tests/it`. This library is empty.
