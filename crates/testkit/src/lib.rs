//! What the tests of several crates share: real servers and processes, networks with faults,
//! scripted servers.
//!
//! For tests only: a failure panics with the reason.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a test fails by panicking and prints figures")]

pub mod binaries;
pub mod certificate;
pub mod eventually;
pub mod fault_test;
pub mod holding_proxy;
pub mod http;
pub mod kafka;
pub mod load;
pub mod mongo;
pub mod monitor;
pub mod process;
pub mod proxy;
pub mod scripted_mongodb;
pub mod servers;
pub mod stack;
pub mod topic_load;

pub use eventually::eventually;
pub use fault_test::FaultTest;
pub use holding_proxy::HoldingProxy;
pub use monitor::Monitor;
pub use process::Process;
pub use proxy::Proxy;
pub use stack::{Names, Stack};
pub use testkit_macros::needs;
pub use topic_load::TopicLoad;
