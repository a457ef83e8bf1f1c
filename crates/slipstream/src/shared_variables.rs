//! Tests that a variable has the same rules in all processes and commands that read it.

use std::collections::BTreeSet;

use service::config::Environment;
use service::{ConfigErrors, Kind, Variable};

use ::sources::SOURCES_FILE;

use crate::{check, dedupe, load, sources};

/// A process or command: its variables, its required variables, and its parser.
struct Reader {
    name: &'static str,
    variables: Vec<Variable>,
    required: &'static [(&'static str, &'static str)],
    read: fn(Environment) -> Result<(), ConfigErrors>,
}

const BROKER: (&str, &str) = ("KAFKA_BROKER", "k:1");
const URI: (&str, &str) = ("MONGODB_URI", "mongodb://m");
const PRODUCER: (&str, &str) = ("PRODUCER_BASE_URL", "http://p:8080");

fn readers() -> [Reader; 7] {
    let (of_consumer, of_poller) = (consumer::Settings::VARIABLES, poller::Settings::VARIABLES);
    let of_check = [check::Settings::VARIABLES, of_consumer].concat();
    let of_load = [load::Settings::VARIABLES, of_poller].concat();
    let reader = |name, variables, required, read| Reader { name, variables, required, read };
    [
        reader("producer", producer::Settings::VARIABLES.to_vec(), &[BROKER], |all| {
            producer::Config::from_environment(all).map(drop)
        }),
        reader("consumer", of_consumer.to_vec(), &[BROKER, URI], |all| {
            consumer::Config::from_environment(all).map(drop)
        }),
        reader("poller", of_poller.to_vec(), &[PRODUCER], |all| {
            poller::Config::from_environment(all).map(drop)
        }),
        reader("check", of_check, &[BROKER, URI], |all| check::Config::from_environment(&all).map(drop)),
        reader("dedupe", dedupe::Settings::VARIABLES.to_vec(), &[URI], |all| {
            dedupe::Config::new(None, all).map(drop)
        }),
        reader("sources", sources::Settings::VARIABLES.to_vec(), &[], |all| {
            sources::Config::from_environment(all).map(drop)
        }),
        reader("load", of_load, &[PRODUCER], |all| load::target(None, &all).map(drop)),
    ]
}

/// All readers of a variable; empty if there is only one.
fn sharing<'r>(readers: &'r [Reader], name: &str) -> Vec<(&'r Reader, Kind)> {
    let kind = |reader: &'r Reader| {
        let variable = reader.variables.iter().find(|variable| variable.name() == name)?;
        Some((reader, variable.kind))
    };
    let sharing: Vec<_> = readers.iter().filter_map(kind).collect();
    if sharing.len() > 1 { sharing } else { Vec::new() }
}

fn is_accepted(reader: &Reader, name: &str, value: &str) -> bool {
    let others = reader.required.iter().filter(|(required, _)| *required != name);
    let all = others.copied().chain([(name, value)]);
    let all = all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    (reader.read)(all).err().is_none_or(|faults| faults.0.iter().all(|(wrong, _)| wrong != name))
}

/// Whether readers may differ in the value.
fn may_differ(reader: &Reader, name: &str, value: &str) -> bool {
    match (reader.name, name) {
        // The consumer reads several topics; the producer writes to one.
        ("consumer" | "check" | "sources", "KAFKA_TOPIC") => value.contains(','),
        // These commands need the name of one source.
        ("dedupe" | "load", "EXPECTED_SOURCE") => value == "*",
        _ => false,
    }
}

#[test]
fn all_readers_of_a_variable_accept_the_same_values() {
    let readers = readers();
    let names: BTreeSet<String> =
        readers.iter().flat_map(|reader| reader.variables.iter().map(Variable::name)).collect();
    let bounds = (0..=6).flat_map(|power| [10_i64.pow(power) - 1, 10_i64.pow(power), 10_i64.pow(power) + 1]);
    let mut values: Vec<String> = bounds.map(|number| number.to_string()).collect();
    values.extend(
        [
            "-1",
            "1.5",
            "x",
            "X",
            "a,b",
            "a,",
            "a,$",
            "*",
            "a b",
            "k",
            "k:1",
            "k:0",
            "k:1;l:2",
            "SSL://k:1",
            "SASL_SSL://k:1",
            "http://h",
            "https://h:1/p",
            "http://h/?x=1",
            "ftp://h",
            "mongodb://m",
            "mongodb://m/?w=0",
            "client.rack=a",
            "client.rack",
            "acks=1",
            "group.instance.id=a",
            "no.such=1",
            r"client.rack=a\;b",
            "event_id",
            "_id",
            "a.b",
            "127.0.0.1:0",
            "true",
            "system.x",
        ]
        .map(str::to_owned),
    );
    for name in &names {
        for value in &values {
            let sharing = sharing(&readers, name);
            let compared = sharing.iter().filter(|(reader, _)| !may_differ(reader, name, value));
            let results: Vec<_> =
                compared.map(|(reader, _)| (reader.name, is_accepted(reader, name, value))).collect();
            let is_equal = results.windows(2).all(|pair| pair[0].1 == pair[1].1);
            assert!(is_equal, "{name}={value}: {results:?}");
        }
    }
}

#[test]
fn all_readers_of_a_variable_have_the_same_default_and_secrecy() {
    let readers = readers();
    let mut shared = BTreeSet::new();
    for name in readers.iter().flat_map(|reader| reader.variables.iter().map(Variable::name)) {
        for pair in sharing(&readers, &name).windows(2) {
            shared.insert(name.clone());
            let ((one, of_one), (other, of_other)) = (&pair[0], &pair[1]);
            let where_ = format!("{name}: {} and {}", one.name, other.name);
            assert_eq!(of_one.is_secret(), of_other.is_secret(), "{where_}");
            let defaults = [of_one, of_other].map(|kind| match kind {
                // Each process has its own port.
                Kind::Default(text) if name != "LISTEN_ADDR" => *text,
                _ => "",
            });
            assert_eq!(defaults[0], defaults[1], "{where_}");
        }
    }
    for name in
        ["KAFKA_BROKER", "KAFKA_PARTITIONS", "KAFKA_REPLICATION_FACTOR", "MONGODB_DB", "ADSBDB_BASE_URL"]
    {
        assert!(shared.contains(name), "{name} is not compared: {shared:?}");
    }
}

#[test]
fn sources_file_has_one_description_and_one_error_in_all_readers() {
    let readers = readers();
    let sharing = sharing(&readers, SOURCES_FILE);
    assert_eq!(sharing.len(), 6, "producer, consumer, poller, check, dedupe, load");
    let of_process = |reader: &&(&Reader, Kind)| ["producer", "consumer", "poller"].contains(&reader.0.name);
    let docs = sharing.iter().filter(of_process).map(|(reader, kind)| {
        let variable = reader.variables.iter().find(|variable| variable.name() == SOURCES_FILE);
        (variable.expect("declared").doc, kind.default_text())
    });
    assert_eq!(docs.collect::<BTreeSet<_>>().len(), 1);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.yaml").display().to_string();
    let file = "sources:\n  a: {push: {}, event: {id: /a}, colour: red}\n  b: {push: {}, event: {id: '/${EMPTY}'}}\n";
    std::fs::write(&path, file).unwrap();
    for (reader, _) in sharing {
        let own = [(SOURCES_FILE, &*path), ("EMPTY", "")];
        let all = reader.required.iter().copied().chain(own);
        let all = all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let ConfigErrors(errors) = (reader.read)(all).unwrap_err();
        let errors: Vec<_> = errors.iter().filter(|(name, _)| name == SOURCES_FILE).collect();
        let start = format!("has faults:\n{path}:2:");
        let second = format!("\n{path}:3:");
        let is_right = |text: &str| text.starts_with(&start) && text.contains(&second);
        assert!(errors.len() == 1 && is_right(&errors[0].1), "{}: {errors:?}", reader.name);
    }
}
