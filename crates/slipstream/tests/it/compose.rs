//! `docker-compose.yml` passes every declared variable to its process, with the declared default.

use std::collections::BTreeMap;

use service::Variable;
use service::config::COMMON;
use yaml_rust2::{Yaml, YamlLoader};

use crate::pages::read;

/// Values of Compose that differ from the default of the process.
const OTHER_DEFAULTS: [&str; 4] = ["KAFKA_BROKER", "LOG_FORMAT", "MONGODB_URI", "PRODUCER_BASE_URL"];

/// A service of the file, with its merge keys resolved.
fn service(name: &str) -> BTreeMap<String, Yaml> {
    let file = YamlLoader::load_from_str(&read("docker-compose.yml")).unwrap().remove(0);
    merged(&file["services"][name])
}

/// A map with the entries of its merge keys (`<<`). Its own entries take precedence, then the first
/// of several maps.
fn merged(map: &Yaml) -> BTreeMap<String, Yaml> {
    let mut all = BTreeMap::new();
    let own = map.as_hash().unwrap_or_else(|| panic!("no map: {map:?}"));
    let key = |key: &Yaml| key.as_str().unwrap().to_owned();
    all.extend(own.iter().map(|(name, value)| (key(name), value.clone())));
    let others = match all.remove("<<") {
        Some(Yaml::Array(others)) => others,
        Some(other) => vec![other],
        None => Vec::new(),
    };
    for (name, value) in others.iter().flat_map(merged) {
        all.entry(name).or_insert(value);
    }
    all
}

/// The variables that a service gets.
fn environment(name: &str) -> BTreeMap<String, String> {
    let environment = merged(&service(name)["environment"]);
    let text = |value: Yaml| value.into_string().expect("a text");
    environment.into_iter().map(|(name, value)| (name, text(value))).collect()
}

/// The services of our processes, with the variables of each process.
fn processes() -> [(&'static str, &'static [Variable]); 3] {
    [
        ("api-producer", producer::Settings::VARIABLES),
        ("adsbdb-consumer", consumer::Settings::VARIABLES),
        ("adsbdb-poller", poller::Settings::VARIABLES),
    ]
}

#[test]
fn each_process_gets_its_variables_with_their_defaults() {
    let mut wrong = Vec::new();
    for (service, variables) in processes() {
        let environment = environment(service);
        // The port is fixed: another container or the health check uses it.
        let all = variables.iter().chain(COMMON).filter(|variable| variable.name() != "LISTEN_ADDR");
        for variable in all {
            let name = variable.name();
            let Some(value) = environment.get(&name) else {
                wrong.push(format!("{service} does not get {name}"));
                continue;
            };
            let default = value.strip_prefix(&format!("${{{name}:-")).and_then(|rest| rest.strip_suffix('}'));
            let declared = variable.kind.default_text();
            let is_default = default.is_some_and(|default| {
                default.is_empty() || format!("`{default}`") == declared || OTHER_DEFAULTS.contains(&&*name)
            });
            if !is_default {
                wrong.push(format!("{service}: {name} is {value}, and the default is {declared}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_service_gets_a_variable_that_its_process_does_not_read() {
    for (service, variables) in processes() {
        for name in environment(service).into_keys() {
            let is_read = variables.iter().chain(COMMON).any(|variable| variable.is_named(&name));
            // The URLs of the example file contain it.
            assert!(is_read || name == "SIMULATOR_URL", "{service} gets {name}");
        }
    }
}

#[test]
fn tools_get_the_variables_of_the_consumer_and_the_addresses() {
    let (tools, consumer) = (environment("tools"), environment("adsbdb-consumer"));
    for (name, value) in &consumer {
        assert_eq!(tools.get(name), Some(value), "{name}");
    }
    for name in ["PRODUCER_BASE_URL", "PRODUCER_API_KEY", "PRODUCER_CA_FILE"] {
        assert_eq!(tools.get(name), environment("adsbdb-poller").get(name), "{name}");
    }
    assert_eq!(tools["CONSUMER_BASE_URL"], "http://adsbdb-consumer:8081");
}

#[test]
fn the_processes_and_tools_get_the_folder_of_the_sources_file() {
    for name in ["api-producer", "adsbdb-consumer", "adsbdb-poller", "tools"] {
        let volumes = service(name)["volumes"].clone();
        assert_eq!(volumes, Yaml::Array(vec![Yaml::String("./sources:/sources:ro".into())]), "{name}");
        let environment = environment(name);
        assert_eq!(environment["SOURCES_FILE"], "${SOURCES_FILE:-}", "{name}");
        assert_eq!(environment["SIMULATOR_URL"], "${SIMULATOR_URL:-}", "{name}");
    }
    assert_eq!(environment("adsbdb-poller")["POLL_SOURCES"], "${POLL_SOURCES:-adsbdb}");
    // Git keeps no empty folder, and Docker would create it with root as its owner.
    assert!(read("sources/README.md").contains("SOURCES_FILE=/sources/sources.yaml"));
}
