//! Tests of the whole system: real processes on real servers.

#![cfg(test)]
#![expect(clippy::duplicate_mod, reason = "ADSBDB is tested as a built-in source and as an entry of a file")]

mod apis;
// The same tests with ADSBDB as an entry of a sources file.
#[path = "main_path.rs"]
mod as_entry_main_path;
#[path = "poller.rs"]
mod as_entry_poller;
#[path = "processes.rs"]
mod as_entry_processes;
mod cli;
mod faults;
mod guarantees;
mod main_path;
mod poller;
mod processes;

#[test]
fn as_entry_tests_start_each_process_with_the_file() {
    for name in ["producer", "consumer", "poller"] {
        let command = testkit::process::command(name, &[]);
        let mut variables = command.as_std().get_envs();
        assert!(variables.any(|(name, file)| name == "SOURCES_FILE" && file.is_some()), "{name}");
    }
    let plain = std::thread::spawn(testkit::process::as_entry).join();
    assert_eq!(plain.unwrap(), None, "other tests have none");
}
