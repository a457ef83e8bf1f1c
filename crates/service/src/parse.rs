//! Parsers of values, for [`ConfigReader::value`](crate::ConfigReader::value). An error continues
//! the sentence `NAME: "value" …`.

use std::str::FromStr;

/// Any text.
///
/// # Errors
/// Never. The signature is that of a parser.
pub fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// `true`, `1` or `yes`; or `false`, `0` or `no`; in any letter case.
///
/// # Errors
/// Any other text.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err("is neither true nor false".into()),
    }
}

/// A whole number within `range`.
///
/// # Errors
/// `text` is no whole number, or it is outside of `range`.
pub fn number<T>(range: std::ops::RangeInclusive<T>) -> impl FnOnce(&str) -> Result<T, String>
where
    T: FromStr + PartialOrd + std::fmt::Display,
{
    move |text| match text.parse::<T>() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!("is not a whole number from {} to {}", range.start(), range.end())),
    }
}

/// Seconds from `min` to one year; fractions are allowed.
///
/// # Errors
/// `text` is no number, or it is out of range.
pub fn seconds(min: f64) -> impl FnOnce(&str) -> Result<std::time::Duration, String> {
    move |text| match text.parse::<f64>() {
        Ok(seconds) if seconds >= min && seconds <= 31_536_000.0 => {
            Ok(std::time::Duration::from_secs_f64(seconds))
        }
        _ => Err(format!("is not a number of seconds from {min} to 31536000")),
    }
}

/// An address of a listener.
///
/// # Errors
/// `text` is not `IP:port`.
pub fn address(text: &str) -> Result<std::net::SocketAddr, String> {
    text.parse().map_err(|_| "is not an address such as 0.0.0.0:8080".into())
}

/// A base URL with the scheme `http` or `https` and without query. A slash at its end is removed.
///
/// Logs show it, so it must not have a user or a password.
///
/// # Errors
/// `text` is no such URL.
pub fn base_url(text: &str) -> Result<url::Url, String> {
    match url::Url::parse(text.trim_end_matches('/')) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none() => {
            match (url.username(), url.password()) {
                ("", None) => Ok(url),
                _ => Err("contains a user or a password, which would be logged".into()),
            }
        }
        _ => Err("is not a URL such as http://api-producer:8080".into()),
    }
}

/// The name of a Kafka topic.
///
/// # Errors
/// Kafka rejects the name.
pub fn topic(text: &str) -> Result<String, String> {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=249).contains(&text.len()) && text.chars().all(is_valid) && text != "." && text != ".." {
        Ok(text.to_owned())
    } else {
        Err("is not a topic name: 1 to 249 letters, digits, '.', '_' or '-'".into())
    }
}
