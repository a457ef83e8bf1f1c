//! The connection string: checked where the configuration is read, shown nowhere. No message here repeats any part of
//! it that may belong to a password.

use std::time::Duration;

use bson::{RawDocumentBuf, raw::cstr, rawdoc};
use mongodb::options::{Acknowledgment, ClientOptions, ConnectionString, WriteConcern};
use service::Secret;

const EXAMPLE: &str = "is not a MongoDB URI such as mongodb://user:password@host:27017/?authSource=admin";

/// Reads MONGODB_URI.
///
/// # Errors
/// What is wrong, to complete a sentence that begins with the variable's name.
pub fn check_uri(text: &str) -> Result<Secret, String> {
    let uri = parse(text)?;
    match uri.write_concern.and_then(|concern| concern.w) {
        Some(Acknowledgment::Nodes(0)) => {
            Err("asks with w=0 for writes that nobody acknowledges; leave w out (majority) or set it to 1 or more".into())
        }
        _ => Ok(Secret::new(text)),
    }
}

fn parse(text: &str) -> Result<ConnectionString, String> {
    ConnectionString::parse(text).map_err(|_| explain(text))
}

/// Says what is wrong with a URI from what is left of it without user and password.
fn explain(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return EXAMPLE.into() };
    let Some((_, public)) = rest.rsplit_once('@') else { return EXAMPLE.into() };
    let secret_options = ["password", "authmechanismproperties"];
    if secret_options.iter().any(|name| public.to_ascii_lowercase().contains(name)) {
        return EXAMPLE.into();
    }
    match ConnectionString::parse(format!("{scheme}://{public}")) {
        Err(error) => format!("is no usable MongoDB URI: {}", error.kind),
        Ok(_) => {
            format!("{EXAMPLE}; in user and password, the characters : / ? # [ ] @ % must be percent-encoded")
        }
    }
}

/// The write concern of every command. `run_command` adds none, so it is put into the command.
///
/// # Errors
/// A connection string that [`check_uri`] refuses.
pub fn write_concern(uri: &Secret) -> Result<RawDocumentBuf, String> {
    let concern: WriteConcern = parse(uri.expose())?.write_concern.unwrap_or_default();
    let mut document = match concern.w {
        Some(Acknowledgment::Nodes(nodes)) => rawdoc! { "w": i32::try_from(nodes).unwrap_or(i32::MAX) },
        Some(Acknowledgment::Custom(name)) => rawdoc! { "w": name },
        _ => rawdoc! { "w": "majority" },
    };
    if let Some(journal) = concern.journal {
        document.append(cstr!("j"), journal);
    }
    if let Some(limit) = concern.w_timeout {
        document.append(cstr!("wtimeout"), i64::try_from(limit.as_millis()).unwrap_or(i64::MAX));
    }
    Ok(document)
}

/// Where the URI is silent, the driver is set to notice within seconds that a server went away and that it came back.
pub(super) fn set_defaults(options: &mut ClientOptions) {
    // The driver's 10 s would hold up every attempt of an outage.
    options.connect_timeout.get_or_insert(Duration::from_secs(2));
    // Attempts fail soon and are repeated for ever, instead of one attempt waiting for 30 s.
    options.server_selection_timeout.get_or_insert(Duration::from_secs(2));
    // A server that is back is seen within a second, not within 10.
    options.heartbeat_freq.get_or_insert(Duration::from_millis(500));
    // A connection for each lane that writes; the driver's 10 would make lanes wait for one another.
    options.max_pool_size.get_or_insert(64);
    options.app_name.get_or_insert_with(|| "slipstream-consumer".to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usable_uri_is_taken_as_it_is() {
        for uri in [
            "mongodb://localhost",
            "mongodb://root:p%40ss@a:27017,b:27018/?authSource=admin&replicaSet=rs&w=2",
            "mongodb+srv://u:p@cluster.example.net/?w=majority",
        ] {
            assert_eq!(check_uri(uri).as_ref().map(Secret::expose), Ok(uri));
        }
    }

    #[test]
    fn a_wrong_uri_is_explained_without_its_password() {
        let wrong = [
            ("hunter2", "is not a MongoDB URI"),
            ("mongodb//root:hunter2@host", "is not a MongoDB URI"),
            ("mongodb://root:hunter2", "is not a MongoDB URI"),
            ("mongodb://root:hunter2/x@host", "percent-encoded"),
            ("mongodb://root:hunter2@extra@host", "percent-encoded"),
            ("mongodb://root:100%hunter2@host", "percent-encoded"),
            ("mongodb://root:hunter2@host:port", "port"),
            ("mongodb://root:hunter2@host/?tls=maybe", "tls"),
            ("http://root:hunter2@host", "scheme"),
            ("mongodb://root:x@host/?tls=no&tlsCertificateKeyFilePassword=hunter2", "is not a MongoDB URI"),
            ("mongodb://root:hunter2@host/?w=0", "w=0"),
            ("mongodb://host/?w=0", "w=0"),
        ];
        for (uri, part) in wrong {
            let error = check_uri(uri).expect_err(uri);
            assert!(!error.contains("hunter2"), "{uri}: {error}");
            assert!(error.contains(part), "{uri}: {error}");
        }
    }

    #[test]
    fn the_write_concern_of_the_uri_goes_into_the_command_and_is_majority_by_default() {
        let concern = |uri: &str| write_concern(&Secret::new(uri)).expect("a URI");
        assert_eq!(concern("mongodb://h"), rawdoc! { "w": "majority" });
        assert_eq!(concern("mongodb://h/?w=1"), rawdoc! { "w": 1 });
        assert_eq!(concern("mongodb://h/?w=rack"), rawdoc! { "w": "rack" });
        let all = concern("mongodb://h/?w=majority&journal=true&wtimeoutMS=500");
        assert_eq!(all, rawdoc! { "w": "majority", "j": true, "wtimeout": 500_i64 });
    }
}
