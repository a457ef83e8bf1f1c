//! Configuration from the environment.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use service::{ConfigErrors, ConfigReader, Kind, Secret, parse};
use sources::{Secrets, Sources};
use url::Url;

service::settings! {
    /// The variables of the poller.
    pub struct Settings {
        /// URL of the producer, for example `http://api-producer:8080`.
        producer_base_url: Kind::Required,
        /// Sources file: APIs to fetch and senders of records, each with its own documents.
        sources_file: Kind::Optional("every setting is as without a file"),
        /// Sources that are fetched, separated by commas: `adsbdb` and pull sources of
        /// SOURCES_FILE, or `*` for all pull sources of the file.
        poll_sources: Kind::Default("adsbdb"),
        /// Time from one call to the next for `adsbdb`, in seconds; fractions are allowed. Other
        /// sources have the interval of the file.
        interval_sec: Kind::Default("3"),
        /// Duration of the polling in seconds, from the time that the producer is ready; 0 means no
        /// end.
        duration_sec: Kind::Default("120"),
        /// Seconds after which a call without a response fails.
        call_timeout_sec: Kind::Default("30"),
        /// Key sent to the producer as `Authorization: Bearer …`.
        producer_api_key: Kind::OptionalSecret("no key is sent"),
        /// PEM file with the certificate of an https producer, or with the certificates of its
        /// authorities.
        producer_ca_file: Kind::Optional("those of the system"),
        /// Address of `/health`, `/livez`, `/readyz` and `/metrics`.
        listen_addr: Kind::Default("0.0.0.0:8082"),
    }
}

/// Minimum of the interval and of the call timeout, in seconds.
const MIN_SECONDS: f64 = 0.001;

/// A valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Base URL of the producer, without user, query and fragment.
    pub producer: Url,
    /// The sources that are fetched.
    pub sources: Vec<PolledSource>,
    /// Whether ADSBDB is fetched, and SOURCES_FILE does not have it.
    pub is_adsbdb_unlisted: bool,
    /// Time from the first tick to the end of the schedule. `None` means no end.
    pub duration: Option<Duration>,
    /// Deadline of a call.
    pub call_timeout: Duration,
    /// API key of the producer.
    pub api_key: Option<Secret>,
    /// Certificates in DER that are trusted instead of those of the system.
    pub ca_certificates: Option<Vec<CertificateDer<'static>>>,
    /// Address of the health listener.
    pub listen_addr: SocketAddr,
}

/// A source that is fetched on a schedule of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolledSource {
    /// The name, in the path of the call.
    pub name: String,
    /// Time between two ticks, above zero.
    pub interval: Duration,
}

impl Config {
    /// Reads and checks the environment.
    ///
    /// # Errors
    /// Every error, by variable.
    pub fn from_environment(
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let environment: Vec<_> = environment.into_iter().collect();
        let (settings, mut reader) =
            ConfigReader::read::<Settings>(Settings::VARIABLES, environment.iter().cloned());
        let producer = reader.value("producer_base_url", settings.producer_base_url.as_ref(), base_url);
        let interval =
            reader.value("interval_sec", settings.interval_sec.as_ref(), parse::seconds(MIN_SECONDS));
        let file =
            Sources::of_process(&mut reader, settings.sources_file.as_ref(), &environment, Secrets::Skip);
        let file = file.as_ref().map(Option::as_ref);
        // The names are checked only against a file without faults.
        let sources = file.zip(interval).and_then(|(file, interval)| {
            let is_interval_set = settings.interval_sec.is_some();
            let adsbdb = |every: Option<Duration>| every.filter(|_| !is_interval_set).unwrap_or(interval);
            reader.value("poll_sources", settings.poll_sources.as_ref(), |text| polled(text, file, adsbdb))
        });
        let duration = reader.value("duration_sec", settings.duration_sec.as_ref(), parse::seconds(0.0));
        let call_timeout =
            reader.value("call_timeout_sec", settings.call_timeout_sec.as_ref(), parse::seconds(MIN_SECONDS));
        let api_key = reader.optional("producer_api_key", settings.producer_api_key.as_ref(), api_key);
        let ca_certificates =
            reader.optional("producer_ca_file", settings.producer_ca_file.as_ref(), certificates);
        let listen_addr = reader.value("listen_addr", settings.listen_addr.as_ref(), parse::address);
        let config = (|| {
            Some(Self {
                producer: producer?,
                is_adsbdb_unlisted: file.flatten().is_some_and(|file| file.get(ADSBDB).is_none())
                    && sources.as_ref()?.iter().any(|source| source.name == ADSBDB),
                sources: sources?,
                duration: duration.map(|duration| Some(duration).filter(|duration| !duration.is_zero()))?,
                call_timeout: call_timeout?,
                api_key: api_key?,
                ca_certificates: ca_certificates?,
                listen_addr: listen_addr?,
            })
        })();
        reader.finish(config)
    }
}

/// The built-in source, which needs no file.
const ADSBDB: &str = "adsbdb";

/// The sources of POLL_SOURCES. `adsbdb_interval` gets the interval of the file, if it has one.
fn polled(
    text: &str,
    file: Option<&Sources>,
    adsbdb_interval: impl Fn(Option<Duration>) -> Duration,
) -> Result<Vec<PolledSource>, String> {
    let every = |name: &str| Some(file?.get(name)?.pull.as_ref()?.every);
    let polled = |name: &str| match every(name) {
        every if name == ADSBDB => Ok(PolledSource { name: name.into(), interval: adsbdb_interval(every) }),
        Some(interval) => Ok(PolledSource { name: name.into(), interval }),
        None if file.is_none() => Err(format!("names {name}, which needs SOURCES_FILE")),
        None => Err(format!("names {name}, which is no pull source of SOURCES_FILE")),
    };
    if text == "*" {
        let file = file.ok_or("means all pull sources of SOURCES_FILE, which is not set")?;
        let pulled = file.iter().filter(|source| source.pull.is_some());
        return pulled.map(|source| polled(source.name.as_str())).collect();
    }
    let mut seen = BTreeSet::new();
    let sources = text.split(',').map(str::trim).map(|name| match name {
        "" => Err("has an empty name; write adsbdb, several names separated by commas, or *".to_owned()),
        name if !seen.insert(name) => Err(format!("names {name} twice")),
        name => polled(name),
    });
    sources.collect()
}

fn base_url(text: &str) -> Result<Url, String> {
    parse::base_url(text).map_err(|error| match text.contains('@') {
        true => format!("{error}; set the key in PRODUCER_API_KEY"),
        false => error,
    })
}

/// Reads the certificates of a PEM file.
fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err("has no certificate in PEM".into()),
        Ok(certificates) => match root_store(&certificates) {
            Ok(_) => Ok(certificates),
            Err(error) => Err(format!("has an invalid certificate: {error}")),
        },
        Err(error) => Err(format!("is not PEM: {error}")),
    }
}

/// The certificates as trust anchors.
///
/// # Errors
/// One of them is invalid.
pub fn root_store(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    certificates.iter().try_for_each(|certificate| roots.add(certificate.clone()))?;
    Ok(roots)
}

/// A key that is valid in an HTTP header.
fn api_key(text: &str) -> Result<Secret, String> {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(Secret::new(text))
    } else {
        Err("has a space or a character other than printable ASCII, which an HTTP header cannot have".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
sources:
  adsbdb: {pull: {kind: adsbdb, every: 7s}}
  quakes: {pull: {url: 'https://example.com/q', every: 1m, records: ''}, event: {id: /id}}
  orders: {push: {}, event: {id: /no}}
";

    fn names(variables: &[(&str, &str)]) -> Result<Vec<(String, u64)>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sources.yaml");
        std::fs::write(&path, FILE).unwrap();
        let path = path.to_str().unwrap();
        let base = [("PRODUCER_BASE_URL", "http://p:8080")];
        let all = base.iter().chain(variables).map(|(name, value)| {
            ((*name).to_owned(), if *value == "FILE" { path.to_owned() } else { (*value).to_owned() })
        });
        let config = Config::from_environment(all).map_err(|faults| faults.to_string())?;
        Ok(config.sources.into_iter().map(|source| (source.name, source.interval.as_secs())).collect())
    }

    fn owned(list: &[(&str, u64)]) -> Vec<(String, u64)> {
        list.iter().map(|(name, seconds)| ((*name).to_owned(), *seconds)).collect()
    }

    #[test]
    fn without_a_file_only_adsbdb_is_fetched() {
        assert_eq!(names(&[]).unwrap(), owned(&[("adsbdb", 3)]));
        assert_eq!(
            names(&[("INTERVAL_SEC", "9"), ("POLL_SOURCES", "adsbdb")]).unwrap(),
            owned(&[("adsbdb", 9)])
        );
        for (names_, part) in [("*", "which is not set"), ("quakes", "needs SOURCES_FILE")] {
            let error = names(&[("POLL_SOURCES", names_)]).unwrap_err();
            assert!(error.contains("POLL_SOURCES") && error.contains(part), "{error}");
        }
    }

    #[test]
    fn each_source_of_the_file_has_its_own_interval() {
        let file = ("SOURCES_FILE", "FILE");
        assert_eq!(names(&[file]).unwrap(), owned(&[("adsbdb", 7)]));
        assert_eq!(names(&[file, ("POLL_SOURCES", "*")]).unwrap(), owned(&[("adsbdb", 7), ("quakes", 60)]));
        let interval = ("INTERVAL_SEC", "2");
        let both = names(&[file, interval, ("POLL_SOURCES", "quakes, adsbdb")]).unwrap();
        assert_eq!(both, owned(&[("quakes", 60), ("adsbdb", 2)]));
    }

    #[test]
    fn a_source_that_cannot_be_fetched_is_a_configuration_error() {
        let file = ("SOURCES_FILE", "FILE");
        for (polled, part) in [
            ("orders", "names orders, which is no pull source"),
            ("quakes,nothing", "names nothing, which is no pull source"),
            ("quakes,quakes", "names quakes twice"),
            ("quakes,", "has an empty name"),
            ("*,quakes", "names *, which is no pull source"),
        ] {
            let error = names(&[file, ("POLL_SOURCES", polled)]).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn adsbdb_that_the_file_does_not_have_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.yaml");
        std::fs::write(&path, "sources:\n  orders: {push: {}, event: {id: /no}}\n").unwrap();
        let file = ("SOURCES_FILE", path.to_str().unwrap());
        let is_unlisted = |variables: &[(&str, &str)]| {
            let base = [("PRODUCER_BASE_URL", "http://p:8080")];
            let all = base.iter().chain(variables).map(|(name, value)| ((*name).into(), (*value).into()));
            Config::from_environment(all).unwrap().is_adsbdb_unlisted
        };
        assert!(is_unlisted(&[file]));
        assert!(!is_unlisted(&[file, ("POLL_SOURCES", "*")]) && !is_unlisted(&[]));
        assert_eq!(names(&[file, ("POLL_SOURCES", "*")]).unwrap(), []);
    }

    #[test]
    fn a_faulty_file_is_reported_with_its_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.yaml");
        std::fs::write(&path, "sources:\n  a: {push: {}, event: {id: 7}}\n  b: 1\n").unwrap();
        let path = path.to_str().unwrap();
        let variables = [("PRODUCER_BASE_URL", "http://p:8080"), ("SOURCES_FILE", path)];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let text = Config::from_environment(variables).unwrap_err().to_string();
        assert!(text.contains(&format!("\n{path}:2:")) && text.contains(&format!("\n{path}:3:")), "{text}");
        assert!(!text.contains("POLL_SOURCES"), "{text}");
    }
}
