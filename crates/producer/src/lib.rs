//! HTTP to topic: answers 202 only once the broker has acknowledged the event.
