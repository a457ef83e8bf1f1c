//! Support for the tests of the whole: real servers, real processes, and verbs to use them with.
//!
//! Everything here belongs to tests: what cannot be had ends the test that asked for it, with the reason.

#![expect(clippy::expect_used, reason = "support of tests only")]

pub mod binaries;
pub mod gate;
pub mod http;
pub mod kafka;
pub mod load;
pub mod mongodb;
pub mod process;
pub mod stack;
pub mod wait;

pub use gate::Gate;
pub use load::Load;
pub use process::Process;
pub use stack::{Names, Stack};
pub use wait::eventually;
