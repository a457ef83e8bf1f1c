//! Support for the tests of the whole: real servers, real processes, and verbs to use them with.
//!
//! Everything here belongs to tests: what cannot be had ends the test that asked for it, with the reason.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "support of tests only")]

pub mod binaries;
pub mod gate;
pub mod http;
pub mod kafka;
pub mod ledger;
pub mod load;
pub mod mongodb;
pub mod process;
pub mod proxy;
pub mod stack;
pub mod trial;
pub mod wait;
pub mod watch;

pub use gate::Gate;
pub use load::Load;
pub use process::Process;
pub use proxy::Proxy;
pub use stack::{Names, Stack};
pub use trial::Trial;
pub use wait::eventually;
