//! The binary's command line and configuration.

use std::process::{Command, Output};

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn a_wrong_configuration_names_every_variable_shows_no_password_and_exits_with_2() {
    let wrong = [
        ("MONGODB_URI", "mongodb://user:hunter2@h:port/"),
        ("BATCH_MAX_RECORDS", "abc"),
        ("KAFKA_BROKER", ""),
        ("LISTEN_ADDR", "nowhere"),
    ];
    let output = run(&[], &wrong);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{told}");
    for (name, _) in wrong {
        assert!(told.contains(&format!("{name}:")), "{name} is not named in {told}");
    }
    assert!(!told.contains("hunter2"), "{told}");
}

#[test]
fn an_unset_uri_is_named() {
    let output = run(&["--check-config"], &[("KAFKA_BROKER", "k:9092")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("MONGODB_URI: not set"));
}

#[test]
fn help_has_every_variable() {
    let output = run(&["--help"], &[]);
    let help = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for variable in consumer::Settings::VARIABLES {
        assert!(help.contains(&variable.name()), "{}", variable.name());
    }
}
