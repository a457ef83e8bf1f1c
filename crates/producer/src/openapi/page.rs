//! `/docs`: Swagger UI out of the binary. The page asks no other host, and its Content-Security-Policy makes the browser
//! see to that, whatever Swagger UI itself would do.

use std::io::Read;

use axum::Router;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use flate2::read::GzDecoder;

use crate::error::ApiError;

/// Inline styles are Swagger UI's own.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// The files belong to the binary: another may be another's.
const CACHE: &str = "max-age=3600";

/// A file of the page, packed by gzip if `packed`.
#[derive(Debug, Clone, Copy)]
pub struct File {
    /// Below `/docs/`.
    pub name: &'static str,
    /// Its type.
    pub media_type: &'static str,
    content: &'static [u8],
    packed: bool,
}

/// All of them.
pub const FILES: [File; 4] = [
    File {
        name: "swagger-ui-bundle.js",
        media_type: "text/javascript",
        content: include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui-bundle.js.gz")),
        packed: true,
    },
    File {
        name: "swagger-ui.css",
        media_type: "text/css",
        content: include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui.css.gz")),
        packed: true,
    },
    File {
        name: "favicon-32x32.png",
        media_type: "image/png",
        content: include_bytes!(concat!(env!("OUT_DIR"), "/favicon-32x32.png.gz")),
        packed: true,
    },
    File {
        name: "start.js",
        media_type: "text/javascript",
        content: include_bytes!("start.js"),
        packed: false,
    },
];

/// The page and its files.
pub fn routes() -> Router {
    Router::new().route("/docs", get(page)).route("/docs/{file}", get(file))
}

async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, include_str!("page.html"))
}

async fn file(name: Result<Path<String>, PathRejection>, headers: HeaderMap) -> Result<Response, ApiError> {
    let Path(name) = name.map_err(|_| ApiError::NoSuchPath)?;
    let file = FILES.into_iter().find(|file| file.name == name).ok_or(ApiError::NoSuchPath)?;
    let about = [
        (header::CONTENT_TYPE, file.media_type),
        (header::CACHE_CONTROL, CACHE),
        (header::VARY, "accept-encoding"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    if !file.packed {
        return Ok((about, file.content).into_response());
    }
    if takes_gzip(&headers) {
        return Ok((about, [(header::CONTENT_ENCODING, "gzip")], file.content).into_response());
    }
    let mut content = Vec::new();
    // Reading from memory does not fail, and the build packed it.
    _ = GzDecoder::new(file.content).read_to_end(&mut content);
    Ok((about, content).into_response())
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    let accepted =
        headers.get_all(header::ACCEPT_ENCODING).into_iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip") || name == "*");
        named
            && !parts.any(|quality| {
                matches!(quality.replace(' ', "").as_str(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000")
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_packed_only_for_who_unpacks_it() {
        let with =
            |value: &'static str| HeaderMap::from_iter([(header::ACCEPT_ENCODING, value.parse().unwrap())]);
        for takes in ["gzip", "br, GZIP;q=0.5", "*"] {
            assert!(takes_gzip(&with(takes)), "{takes}");
        }
        for not in ["", "br", "gzip;q=0", "gzip; q = 0.000, br"] {
            assert!(!takes_gzip(&with(not)), "{not}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}
