//! The event: schema, validation, JSON and BSON forms; no I/O, no async.
