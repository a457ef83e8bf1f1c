//! `/docs`: Swagger UI, embedded in the binary. The page loads nothing from other hosts; its
//! Content-Security-Policy enforces that.

use std::borrow::Cow;
use std::io::Read;
use std::sync::OnceLock;

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flate2::read::GzDecoder;

use crate::error::ApiError;
use crate::http::middleware::HadSlash;

/// Swagger UI needs inline styles.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// The files change with the binary.
const CACHE_CONTROL: &str = "max-age=3600";

/// A file of the page.
#[derive(Debug)]
struct File {
    /// The path below `/docs/`.
    name: &'static str,
    media_type: &'static str,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Plain(&'static [u8]),
    /// Compressed with gzip. It is decompressed at the first request that needs it, and all further
    /// requests share the result. So slow clients cannot use up memory.
    Gzip(&'static [u8], OnceLock<Bytes>),
}

const fn gzip(bytes: &'static [u8]) -> Content {
    Content::Gzip(bytes, OnceLock::new())
}

/// All files of the page.
static FILES: [File; 4] = [
    File {
        name: "swagger-ui-bundle.js",
        media_type: "text/javascript",
        content: gzip(include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui-bundle.js.gz"))),
    },
    File {
        name: "swagger-ui.css",
        media_type: "text/css",
        content: gzip(include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui.css.gz"))),
    },
    File {
        name: "favicon-32x32.png",
        media_type: "image/png",
        content: gzip(include_bytes!(concat!(env!("OUT_DIR"), "/favicon-32x32.png.gz"))),
    },
    File {
        name: "start.js",
        media_type: "text/javascript",
        content: Content::Plain(include_bytes!("docs/start.js")),
    },
];

/// Redirects to the page.
pub async fn root() -> impl IntoResponse {
    (StatusCode::SEE_OTHER, [(header::LOCATION, "/docs")])
}

/// The page. Its references are relative, so that it also works behind a proxy that adds a prefix.
pub async fn page(slashed: Option<Extension<HadSlash>>) -> impl IntoResponse {
    let text = include_str!("docs/page.html");
    let text: Cow<'_, str> = match slashed {
        None => text.into(),
        Some(_) => text.replace("\"docs/", "\"").replace("\"openapi.json", "\"../openapi.json").into(),
    };
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, text)
}

/// A file of the page.
pub async fn file(
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Path(name) = name.map_err(|_| ApiError::PathNotFound)?;
    let file = FILES.iter().find(|file| file.name == name).ok_or(ApiError::PathNotFound)?;
    let headers_of_file = [
        (header::CONTENT_TYPE, file.media_type),
        (header::CACHE_CONTROL, CACHE_CONTROL),
        (header::VARY, "accept-encoding"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok(match &file.content {
        Content::Plain(content) => (headers_of_file, *content).into_response(),
        Content::Gzip(compressed, _) if accepts_gzip(&headers) => {
            (headers_of_file, [(header::CONTENT_ENCODING, "gzip")], *compressed).into_response()
        }
        Content::Gzip(compressed, content) => {
            (headers_of_file, content.get_or_init(|| decompress(compressed)).clone()).into_response()
        }
    })
}

fn decompress(compressed: &[u8]) -> Bytes {
    let mut content = Vec::new();
    // Reading from memory does not fail, and the build script wrote valid gzip.
    _ = GzDecoder::new(compressed).read_to_end(&mut content);
    content.into()
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
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
    use crate::config::Config;

    #[test]
    fn the_openapi_document_names_the_files_of_the_page() {
        let document = crate::routes::document(&Config::without_kafka(&[]));
        let name = &document["paths"]["/docs/{file}"]["get"]["parameters"][1];
        let files = FILES.each_ref().map(|file| file.name);
        assert_eq!((&name["name"], &name["schema"]["enum"]), (&"file".into(), &serde_json::json!(files)));
    }

    #[test]
    fn gzip_is_used_only_if_the_client_accepts_it() {
        let with =
            |value: &'static str| HeaderMap::from_iter([(header::ACCEPT_ENCODING, value.parse().unwrap())]);
        for accepted in ["gzip", "br, GZIP;q=0.5", "*"] {
            assert!(accepts_gzip(&with(accepted)), "{accepted}");
        }
        for not in ["", "br", "gzip;q=0", "gzip; q = 0.000, br"] {
            assert!(!accepts_gzip(&with(not)), "{not}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn responses_share_the_decompressed_file() {
        let read = async || {
            let response = file(Ok(Path("swagger-ui-bundle.js".to_owned())), HeaderMap::new()).await.unwrap();
            axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap()
        };
        let (one, other) = (read().await, read().await);
        assert!(one.len() > 1024 * 1024, "{}", one.len());
        assert_eq!(one.as_ptr(), other.as_ptr());
    }
}
