//! Command line and configuration of the binary.

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
fn wrong_configuration_names_all_variables_hides_passwords_and_exits_2() {
    let wrong = [
        ("MONGODB_URI", "mongodb://user:hunter2@h:port/"),
        ("BATCH_MAX_RECORDS", "abc"),
        ("KAFKA_BROKER", ""),
        ("LISTEN_ADDR", "nowhere"),
    ];
    let output = run(&[], &wrong);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    for (name, _) in wrong {
        assert!(message.contains(&format!("{name}:")), "{name} is not named in {message}");
    }
    assert!(!message.contains("hunter2"), "{message}");
}

#[test]
fn unset_mongodb_uri_is_named_and_exits_2() {
    let output = run(&["--check-config"], &[("KAFKA_BROKER", "k:9092")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("MONGODB_URI: not set"));
}

#[test]
fn help_lists_every_variable() {
    let output = run(&["--help"], &[]);
    let help = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for variable in consumer::Settings::VARIABLES {
        assert!(help.contains(&variable.name()), "{}", variable.name());
    }
}
