//! `/docs`: Swagger UI out of the binary. The page asks no other host, and its Content-Security-Policy makes the browser
//! see to that, whatever Swagger UI itself would do.

use std::borrow::Cow;
use std::io::Read;
use std::sync::OnceLock;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use flate2::read::GzDecoder;

use crate::error::ApiError;
use crate::routes::Slashed;

/// Inline styles are Swagger UI's own.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// The files belong to the binary: another may be another's.
const CACHE: &str = "max-age=3600";

/// A file of the page.
#[derive(Debug)]
pub struct File {
    /// Below `/docs/`.
    pub name: &'static str,
    /// Its type.
    pub media_type: &'static str,
    content: Content,
}

/// What is in a file.
#[derive(Debug)]
enum Content {
    Plain(&'static [u8]),
    /// Packed by gzip; unpacked once, when first asked for, and shared by all readers: anybody may be one, and a slow one.
    Packed(&'static [u8], OnceLock<Bytes>),
}

const fn packed(bytes: &'static [u8]) -> Content {
    Content::Packed(bytes, OnceLock::new())
}

/// All of them.
pub static FILES: [File; 4] = [
    File {
        name: "swagger-ui-bundle.js",
        media_type: "text/javascript",
        content: packed(include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui-bundle.js.gz"))),
    },
    File {
        name: "swagger-ui.css",
        media_type: "text/css",
        content: packed(include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui.css.gz"))),
    },
    File {
        name: "favicon-32x32.png",
        media_type: "image/png",
        content: packed(include_bytes!(concat!(env!("OUT_DIR"), "/favicon-32x32.png.gz"))),
    },
    File {
        name: "docs/start.js",
        media_type: "text/javascript",
        content: Content::Plain(include_bytes!("docs/start.js")),
    },
];

/// The page and its files.
pub fn routes() -> Router {
    Router::new().route("/", get(root)).route("/docs", get(page)).route("/docs/{file}", get(file))
}

/// The way to the page.
async fn root() -> impl IntoResponse {
    (StatusCode::SEE_OTHER, [(header::LOCATION, "/docs")])
}

/// Its references are relative, so that it works below another path too.
async fn page(slashed: Option<Extension<Slashed>>) -> impl IntoResponse {
    let text = include_str!("docs/page.html");
    let text: Cow<'_, str> = match slashed {
        None => text.into(),
        Some(_) => text.replace("\"docs/", "\"").replace("\"openapi.json", "\"../openapi.json").into(),
    };
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, text)
}

async fn file(name: Result<Path<String>, PathRejection>, headers: HeaderMap) -> Result<Response, ApiError> {
    let Path(name) = name.map_err(|_| ApiError::NoSuchPath)?;
    let file = FILES.iter().find(|file| file.name == name).ok_or(ApiError::NoSuchPath)?;
    let about = [
        (header::CONTENT_TYPE, file.media_type),
        (header::CACHE_CONTROL, CACHE),
        (header::VARY, "accept-encoding"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok(match &file.content {
        Content::Plain(content) => (about, *content).into_response(),
        Content::Packed(packed, _) if takes_gzip(&headers) => {
            (about, [(header::CONTENT_ENCODING, "gzip")], *packed).into_response()
        }
        Content::Packed(packed, unpacked) => {
            (about, unpacked.get_or_init(|| unpack(packed)).clone()).into_response()
        }
    })
}

fn unpack(packed: &[u8]) -> Bytes {
    let mut content = Vec::new();
    // Reading from memory does not fail, and the build packed it.
    _ = GzDecoder::new(packed).read_to_end(&mut content);
    content.into()
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

    #[tokio::test]
    async fn readers_of_an_unpacked_file_share_it() {
        let read = async || {
            let answer = file(Ok(Path("swagger-ui-bundle.js".to_owned())), HeaderMap::new()).await.unwrap();
            axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap()
        };
        let (one, other) = (read().await, read().await);
        assert!(one.len() > 1024 * 1024, "{}", one.len());
        assert_eq!(one.as_ptr(), other.as_ptr());
    }
}
