//! The connection string, checked with the configuration and never printed. As in the Python
//! driver, an option that the driver does not have is ignored with a warning. No message here
//! repeats a part of the URI that may belong to a password.

use std::time::Duration;

use bson::{RawDocumentBuf, raw::cstr, rawdoc};
use futures::FutureExt;
use mongodb::error::{Error, ErrorKind};
use mongodb::options::{Acknowledgment, ClientOptions, ConnectionString, Tls, WriteConcern};
use service::Secret;

const EXAMPLE: &str = "is not a MongoDB URI such as mongodb://user:password@host:27017/?authSource=admin";
const ENCODING_HINT: &str = "in user and password, the characters : / ? # [ ] @ % must be percent-encoded";
const SUPPORTED_LOGINS: &str = "log in with user and password (SCRAM), or with a certificate (MONGODB-X509)";
/// The compressors that the driver is built with.
const COMPRESSORS: [&str; 2] = ["zlib", "zstd"];

/// A connection string without the valid options that the Rust driver would reject.
struct DriverUri {
    text: String,
    /// The options that were removed.
    ignored: Vec<String>,
}

/// Checks MONGODB_URI.
///
/// # Errors
/// The reason, which completes a sentence that begins with the variable's name.
pub fn check_uri(text: &str) -> Result<Secret, String> {
    let uri = parse(text)?;
    check_tls_files(&uri)?;
    match uri.write_concern.and_then(|concern| concern.w) {
        Some(Acknowledgment::Nodes(0)) => Err(
            "has w=0, which asks for unacknowledged writes; leave w out (majority) or set it to 1 or more"
                .into(),
        ),
        _ => Ok(Secret::new(text)),
    }
}

/// Checks that the certificate files can be read. The driver opens them only when it connects.
fn check_tls_files(uri: &ConnectionString) -> Result<(), String> {
    let Some(Tls::Enabled(tls)) = &uri.tls else { return Ok(()) };
    let files = [("tlsCAFile", &tls.ca_file_path), ("tlsCertificateKeyFile", &tls.cert_key_file_path)];
    for (option, path) in files {
        if let Some(path) = path
            && let Err(error) = std::fs::read(path)
        {
            return Err(format!("has {option}={}, a file that cannot be read: {error}", path.display()));
        }
    }
    Ok(())
}

/// The connection string without the options that the driver does not support.
pub fn usable_uri(uri: &Secret) -> Secret {
    driver_uri(uri.expose()).map_or_else(|_| uri.clone(), |driver| Secret::new(driver.text))
}

/// The options of the connection string that have no effect.
pub fn ignored_options(uri: &Secret) -> Vec<String> {
    driver_uri(uri.expose()).map(|driver| driver.ignored).unwrap_or_default()
}

fn parse(text: &str) -> Result<ConnectionString, String> {
    let driver = driver_uri(text)?;
    verify(&driver.text).map_err(|_| explain(&driver.text))
}

/// Runs the driver's checks. The driver resolves the name of a `mongodb+srv` URI first, so for such
/// a URI only the options are checked.
fn verify(text: &str) -> Result<ConnectionString, Error> {
    let uri = ConnectionString::parse(text)?;
    if text.starts_with("mongodb://") {
        ClientOptions::parse(uri.clone()).into_future().now_or_never().transpose()?;
    }
    Ok(uri)
}

/// Removes options without effect, and rejects those that cannot work.
fn driver_uri(text: &str) -> Result<DriverUri, String> {
    let Some((before, options)) = text.split_once('?') else {
        return Ok(DriverUri { text: text.to_owned(), ignored: Vec::new() });
    };
    if !before.contains('@') && options.contains('@') {
        return Err(format!("{EXAMPLE}; {ENCODING_HINT}"));
    }
    let mut kept: Vec<(String, String)> = Vec::new();
    let mut ignored = Vec::new();
    let separator = if options.contains('&') { '&' } else { ';' };
    for pair in options.split(separator).filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(format!(
                "is not a usable MongoDB URI: the text after ? is not a list of name=value; {ENCODING_HINT}"
            ));
        };
        let written = name;
        let name = match name.to_ascii_lowercase().as_str() {
            "j" => "journal".to_owned(),
            "wtimeout" => "wtimeoutms".to_owned(),
            name => name.to_owned(),
        };
        if kept.iter().any(|(known, _)| *known == name) && name != "readpreferencetags" {
            kept.retain(|(known, _)| *known != name);
            ignored.push(format!("{written}, except its last value"));
        }
        if let Some(value) = check_option(&name, written, value, &mut ignored)? {
            kept.push((name, value));
        }
    }
    let kept: Vec<String> = kept.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    Ok(DriverUri { text: format!("{before}?{}", kept.join("&")), ignored })
}

/// The value of an option for the driver, or `None` if it is ignored. An ignored option is added to
/// `ignored` in its original spelling, `written`.
fn check_option(
    name: &str,
    written: &str,
    value: &str,
    ignored: &mut Vec<String>,
) -> Result<Option<String>, String> {
    let (kept, left_out) = match name {
        "authmechanism" => match value.to_ascii_uppercase().as_str() {
            // The default needs no option.
            "DEFAULT" => (None, None),
            mechanism @ ("MONGODB-AWS" | "GSSAPI") => {
                return Err(format!(
                    "has authMechanism={mechanism}, which Slipstream does not support; {SUPPORTED_LOGINS}"
                ));
            }
            _ => (Some(value.to_owned()), None),
        },
        "authmechanismproperties" if uses_cloud_tokens(value) => {
            return Err(format!(
                "asks for a login with tokens of a cloud provider, which Slipstream does not support; {SUPPORTED_LOGINS}"
            ));
        }
        "tlscertificatekeyfilepassword" => {
            return Err("has tlsCertificateKeyFilePassword, which Slipstream does not support; \
                        store the key without a password: openssl pkey -in KEY -out KEY_WITHOUT_PASSWORD"
                .into());
        }
        "compressors" => {
            let is_supported = |name: &&str| COMPRESSORS.contains(&name.to_ascii_lowercase().as_str());
            let (supported, unsupported): (Vec<&str>, Vec<&str>) = value.split(',').partition(is_supported);
            let list = |names: Vec<&str>| (!names.is_empty()).then(|| names.join(","));
            (list(supported), list(unsupported).map(|names| format!("{written}={names}")))
        }
        // Each call has its own deadline, and no document contains a UUID.
        "sockettimeoutms" | "uuidrepresentation" => (None, Some(written.to_owned())),
        // In other drivers 0 means no limit.
        "maxpoolsize" if value == "0" => (None, Some(written.to_owned())),
        _ if is_unknown(name, value) => (None, Some(written.to_owned())),
        _ => (Some(value.to_owned()), None),
    };
    // A removed option may be part of a password that is not encoded.
    if left_out.is_some() && (written.contains('@') || value.contains('@')) {
        return Err(format!("{EXAMPLE}; {ENCODING_HINT}"));
    }
    ignored.extend(left_out);
    Ok(kept)
}

/// A login with tokens of Azure or Google needs features of the driver that are not built in.
fn uses_cloud_tokens(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    ["environment:azure", "environment:gcp"].iter().any(|entry| value.split(',').any(|e| e == *entry))
}

fn is_unknown(name: &str, value: &str) -> bool {
    let unknown = format!("{name} is an invalid option");
    let alone = ConnectionString::parse(format!("mongodb://host/?{name}={value}"));
    alone.is_err_and(|error| error_text(&error).starts_with(&unknown))
}

/// The driver's reason, taken from a URI without anything that may be a secret.
fn explain(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return EXAMPLE.into() };
    if !["mongodb", "mongodb+srv"].contains(&scheme) {
        return format!("{EXAMPLE}: its scheme is neither mongodb nor mongodb+srv");
    }
    let public = match rest.rsplit_once('@') {
        Some((login, hosts)) if login.contains(':') => format!("user:password@{}", masked(hosts)),
        Some((_, hosts)) => format!("user@{}", masked(hosts)),
        None => masked(rest),
    };
    match verify(&format!("{scheme}://{public}")) {
        Err(error) => format!("is not a usable MongoDB URI: {}", error_text(&error)),
        Ok(_) => format!("{EXAMPLE}; {ENCODING_HINT}"),
    }
}

fn error_text(error: &Error) -> String {
    match &*error.kind {
        ErrorKind::InvalidArgument { message, .. } => message.clone(),
        kind => kind.to_string(),
    }
}

/// The part after the login, without secrets. A wrong port may be the password of a URI without
/// host.
fn masked(public: &str) -> String {
    let (before, options) = public.split_once('?').unwrap_or((public, ""));
    let (hosts, database) = before.split_at(before.find('/').unwrap_or(before.len()));
    let hosts: Vec<String> = hosts.split(',').map(masked_port).collect();
    let options: Vec<String> = options.split('&').map(masked_value).collect();
    let options = if options.concat().is_empty() { String::new() } else { format!("?{}", options.join("&")) };
    format!("{}{database}{options}", hosts.join(","))
}

fn masked_port(host: &str) -> String {
    // An IPv6 address is in brackets.
    let (address, rest) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, rest)) => (format!("[{address}]"), rest),
            None => return "[***".to_owned(),
        },
        None => {
            let (name, rest) = host.split_at(host.find(':').unwrap_or(host.len()));
            (name.to_owned(), rest)
        }
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    match rest.strip_prefix(':') {
        Some(port) if !is_port(port) => format!("{address}:***"),
        _ if rest.is_empty() || rest.starts_with(':') => host.to_owned(),
        _ => format!("{address}***"),
    }
}

fn masked_value(pair: &str) -> String {
    let Some((name, value)) = pair.split_once('=') else { return String::new() };
    let lower = name.to_ascii_lowercase();
    if lower == "authmechanismproperties" {
        let entry = |entry: &str| match entry.split_once(':') {
            Some((key, _)) if key.to_ascii_uppercase().contains("TOKEN") => format!("{key}:***"),
            Some(_) => entry.to_owned(),
            None => "***".to_owned(),
        };
        return format!("{name}={}", value.split(',').map(entry).collect::<Vec<_>>().join(","));
    }
    let is_secret = lower.contains("password") || lower == "proxyusername";
    if is_secret { format!("{name}=***") } else { pair.to_owned() }
}

/// The write concern of every command. `run_command` adds none, so each command contains it.
///
/// # Errors
/// [`check_uri`] rejects the connection string.
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

/// Defaults for options that the URI does not set. With them the driver notices within seconds that
/// a server is unavailable or available again.
pub(super) fn set_defaults(options: &mut ClientOptions) {
    // The driver's default of 10 s would delay every attempt of an outage.
    options.connect_timeout.get_or_insert(Duration::from_secs(2));
    // Attempts fail soon and are repeated without limit, instead of one attempt that waits for 30
    // s.
    options.server_selection_timeout.get_or_insert(Duration::from_secs(2));
    // The driver notices a server that is back within a second, not within 10 s.
    options.heartbeat_freq.get_or_insert(Duration::from_millis(500));
    // One connection for each partition worker that writes. With the driver's default of 10,
    // workers would wait for each other.
    options.max_pool_size.get_or_insert(64);
    options.app_name.get_or_insert_with(|| "slipstream-consumer".to_owned());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_usable_uri_is_kept_unchanged() {
        for uri in [
            "mongodb://localhost",
            "mongodb://root:p%40ss@a:27017,b:27018/?authSource=admin&replicaSet=rs&w=2",
            "mongodb+srv://u:p@cluster.example.net/?w=majority",
        ] {
            assert_eq!(check_uri(uri).as_ref().map(Secret::expose), Ok(uri));
        }
    }

    #[test]
    fn an_option_of_another_driver_is_removed_and_reported() {
        let none: [&str; 0] = [];
        let cases = [
            ("mongodb://h/?foo=bar", "mongodb://h/?", &["foo"][..]),
            ("mongodb://h/?Foo=bar&w=2", "mongodb://h/?w=2", &["Foo"]),
            (
                "mongodb://h/?socketTimeoutMS=5&tz_aware=true",
                "mongodb://h/?",
                &["socketTimeoutMS", "tz_aware"],
            ),
            ("mongodb://h/?uuidRepresentation=standard", "mongodb://h/?", &["uuidRepresentation"]),
            ("mongodb://h/?tlsAllowInvalidHostnames=true", "mongodb://h/?", &["tlsAllowInvalidHostnames"]),
            ("mongodb://h/?maxPoolSize=0", "mongodb://h/?", &["maxPoolSize"]),
            ("mongodb://h/?maxPoolSize=5", "mongodb://h/?maxpoolsize=5", &none),
            ("mongodb://h/?j=true&wtimeout=5", "mongodb://h/?journal=true&wtimeoutms=5", &none),
            ("mongodb://h/?w=1;tls=false", "mongodb://h/?w=1&tls=false", &none),
            ("mongodb://h/?w=1&w=2", "mongodb://h/?w=2", &["w, except its last value"]),
            ("mongodb://u:p@h/?authMechanism=DEFAULT", "mongodb://u:p@h/?", &none),
            ("mongodb://h/?compressors=snappy", "mongodb://h/?", &["compressors=snappy"]),
            (
                "mongodb://h/?compressors=snappy,zlib",
                "mongodb://h/?compressors=zlib",
                &["compressors=snappy"],
            ),
            (
                "mongodb+srv://h/?compressors=zstd,zlib&zlibCompressionLevel=9&timeoutMS=1",
                "mongodb+srv://h/?compressors=zstd,zlib&zlibcompressionlevel=9",
                &["timeoutMS"],
            ),
        ];
        for (uri, wanted, ignored) in cases {
            let secret = check_uri(uri).unwrap_or_else(|error| panic!("{uri}: {error}"));
            assert_eq!(usable_uri(&secret).expose(), wanted, "{uri}");
            assert_eq!(ignored_options(&secret), ignored, "{uri}");
        }
    }

    #[test]
    fn zlib_and_zstd_are_built_into_the_driver() {
        let uri = "mongodb://h/?compressors=zstd,zlib&zlibCompressionLevel=9";
        let driver = usable_uri(&check_uri(uri).expect("a URI"));
        let options = ClientOptions::parse(driver.expose()).into_future().now_or_never();
        let compressors = options.expect("at once").expect("options").compressors;
        let names = format!("{compressors:?}");
        assert!(names.contains("Zstd") && names.contains("Zlib { level: Some(9) }"), "{names}");
    }

    #[test]
    fn an_invalid_uri_is_explained_without_its_password() {
        let wrong = [
            ("hunter2", "is not a MongoDB URI"),
            ("mongodb//root:hunter2@host", "is not a MongoDB URI"),
            ("mongodb://root:hunter2", "the port must be an integer between 1 and 65535"),
            ("mongodb://root:hunter2/db", "the port must be"),
            ("mongodb://root:hun:ter2", "the port must be"),
            ("mongodb://h:99999", "the port must be an integer between 1 and 65535"),
            ("mongodb://u:hunter2@h:99999", "h:***: the port must be"),
            ("mongodb://[hunter2", "missing closing"),
            ("mongodb://[::1]hunter2", "the hostname can only be followed by a port"),
            ("mongodb://root:hunter2/x@host", "percent-encoded"),
            ("mongodb://root:hunter2?x@host", "percent-encoded"),
            ("mongodb://root:1?hunter2=x@host", "percent-encoded"),
            ("mongodb://root:a@b?hunter2=x@host", "percent-encoded"),
            ("mongodb://root:1?hunter2", "name=value"),
            ("mongodb://root:hunter2@extra@host", "percent-encoded"),
            ("mongodb://root:100%hunter2@host", "percent-encoded"),
            ("mongodb://root:hunter2@host:port", "port"),
            ("mongodb://root:hunter2@host/?tls=maybe", "tls"),
            ("http://root:hunter2@host", "scheme"),
            ("mongodb://root:x@host/?tls=no&tlsCertificateKeyFilePassword=hunter2", "openssl pkey"),
            ("mongodb://root:hunter2@host/?w=0", "w=0"),
            ("mongodb://host/?w=0", "w=0"),
            ("mongodb://u:hunter2@a,b/?directConnection=true", "directConnection"),
            ("mongodb+srv://u:hunter2@a,b/", "exactly one host"),
            ("mongodb://u:hunter2@h/?authMechanism=MONGODB-AWS", "SCRAM"),
            ("mongodb://u:hunter2@h/?authMechanism=GSSAPI", "SCRAM"),
            (
                "mongodb://h/?authMechanism=MONGODB-OIDC&authMechanismProperties=ENVIRONMENT:azure,TOKEN_RESOURCE:hunter2",
                "cloud provider",
            ),
            (
                "mongodb://u@h/?authMechanism=MONGODB-X509&authMechanismProperties=hunter2",
                "authMechanismProperties",
            ),
            ("mongodb://h/?connectTimeoutMS=soon", "connecttimeoutms"),
            ("mongodb://h/?readPreference=fastest", "fastest"),
            ("mongodb://h/?minPoolSize=x", "minpoolsize"),
            ("mongodb://h/?zlibCompressionLevel=10", "zlibCompressionLevel"),
            (
                "mongodb://u:hunter2@h/?tls=true&tlsCAFile=/missing/ca.pem",
                "tlsCAFile=/missing/ca.pem, a file",
            ),
            (
                "mongodb://u:hunter2@h/?tlsCertificateKeyFile=%2Fmissing",
                "tlsCertificateKeyFile=/missing, a file",
            ),
        ];
        for (uri, part) in wrong {
            let error = check_uri(uri).expect_err(uri);
            assert!(!error.contains("hunter2") && !error.contains("ter2"), "{uri}: {error}");
            assert!(error.contains(part), "{uri}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_message_contains_a_part_of_a_password(
            password in "[A-Z]{6}[:/?#\\[\\]@%&=;,. ]{0,2}[A-Z]{6}",
            form in 0_usize..8,
            rest in "(:port|:0|/d\\$b|/\\?tls=maybe|/\\?foo=1&w=0|/\\?x|/\\?authMechanism=GSSAPI)",
        ) {
            let uri = match form {
                0 => format!("mongodb://root:{password}@host{rest}"),
                1 => format!("mongodb+srv://root:{password}@host{rest}"),
                // The text after an @ is a host.
                2 => format!("mongodb://root:{}", password.replace('@', ":")),
                3 => format!("mongodb//root:{password}@host{rest}"),
                4 => format!("mongodb://{password}@host{rest}"),
                5 => format!("mongodb://host/?tlsCertificateKeyFilePassword={password}&tls=maybe"),
                6 => format!("mongodb://h:x/?authMechanismProperties=AWS_SESSION_TOKEN:{password}"),
                _ => format!("{password}://root:{password}@host{rest}"),
            };
            let parts = password.split(|c: char| !c.is_ascii_uppercase()).filter(|part| part.len() > 5);
            let parts: Vec<&str> = parts.collect();
            if let Err(error) = check_uri(&uri) {
                prop_assert!(parts.iter().all(|part| !error.contains(part)), "{}: {}", uri, error);
                prop_assert!(parts.iter().all(|p| !error.contains(&p.to_lowercase())), "{}: {}", uri, error);
            }
            let ignored = ignored_options(&Secret::new(uri.as_str())).join(" ");
            prop_assert!(parts.iter().all(|part| !ignored.contains(part)), "{}: {}", uri, ignored);
        }
    }

    #[test]
    fn commands_have_the_uri_s_write_concern_or_majority() {
        let concern = |uri: &str| write_concern(&Secret::new(uri)).expect("a URI");
        assert_eq!(concern("mongodb://h"), rawdoc! { "w": "majority" });
        assert_eq!(concern("mongodb://h/?w=1"), rawdoc! { "w": 1 });
        assert_eq!(concern("mongodb://h/?w=rack"), rawdoc! { "w": "rack" });
        let all = concern("mongodb://h/?w=majority&journal=true&wtimeoutMS=500");
        assert_eq!(all, rawdoc! { "w": "majority", "j": true, "wtimeout": 500_i64 });
        let as_in_python = concern("mongodb://h/?w=majority&j=true&wtimeout=500&fsync=true");
        assert_eq!(as_in_python, all);
    }
}
