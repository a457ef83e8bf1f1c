//! What `load` reads from the environment: the poller's variables say how to reach the producer, EXPECTED_SOURCE names
//! the source.

use events::Source;
use service::{ConfigErrors, ConfigReader, Kind};

use crate::dedupe::first_source;

service::settings! {
    /// Beside the poller's variables.
    pub struct Settings {
        /// Its first source is the one of the events, unless the command line names one.
        expected_source: Kind::Default("adsbdb"),
    }
}

/// Where events go, and of which source they are.
#[derive(Debug, Clone)]
pub struct Config {
    /// The producer, how long a call may take, its key and its certificates.
    pub producer: poller::Config,
    /// Source of the events.
    pub source: Source,
}

impl Config {
    /// Reads and checks the environment; `source` is the command line's.
    ///
    /// # Errors
    /// Every wrong variable, by name.
    pub fn new(source: Option<Source>, environment: &[(String, String)]) -> Result<Self, ConfigErrors> {
        let (s, mut check) = ConfigReader::read::<Settings>(Settings::VARIABLES, environment.iter().cloned());
        let source = match source {
            Some(source) => Some(source),
            None => check.value("expected_source", s.expected_source.as_ref(), first_source("--source")),
        };
        let producer = poller::Config::from_environment(environment.iter().cloned()).map_err(|faults| {
            faults.0.into_iter().for_each(|(name, problem)| check.add_error(&name, problem));
        });
        let config = (|| Some(Self { producer: producer.ok()?, source: source? }))();
        check.finish(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_variable_is_named_at_once() {
        let environment = [("PRODUCER_BASE_URL", "p:8080"), ("EXPECTED_SOURCE", "*")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let faults = Config::new(None, &environment).unwrap_err().0;
        let names: Vec<&str> = faults.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["EXPECTED_SOURCE", "PRODUCER_BASE_URL"]);
    }
}
