//! A broker, a database and an ADSBDB simulator on loopback, for `slipstream up` and for tests.
