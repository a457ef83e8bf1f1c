//! The fields below `pull`.

use std::time::Duration;

use service::Secret;
use url::Url;

use super::{Parser, Secrets, flat};
use crate::config::{Auth, HttpApi, NextPage, Paging, Pull, Records, Upstream};
use crate::pointer::Pointer;
use crate::reader::{At, Fields, Report};

const HTTP_FIELDS: [&str; 9] =
    ["kind", "url", "every", "timeout", "headers", "auth", "records", "paging", "wait"];
const ADSBDB_FIELDS: [&str; 2] = ["kind", "every"];
const PAGING_FIELDS: [&str; 6] = ["next", "link_header", "cursor_header", "param", "offset", "max_pages"];
/// Headers that the client or the protocol sets.
const OWN_HEADERS: [&str; 11] = [
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "if-modified-since",
    "if-none-match",
    "te",
    "transfer-encoding",
    "upgrade",
];
const DEFAULT_EVERY: Duration = Duration::from_secs(60);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_MAX_PAGES: u32 = 10;
const MAX_HEADERS: usize = 32;

impl Parser<'_> {
    pub(super) fn pull(&mut self, at: &At<'_>) -> Option<Pull> {
        let kind = self.kind(at);
        let is_adsbdb = matches!(kind, Some(Kind::Adsbdb));
        let known: &[&str] = if is_adsbdb { &ADSBDB_FIELDS } else { &HTTP_FIELDS };
        let fields = at.fields(&mut self.report, known, &[])?;
        let every = fields.get("every").map(|at| at.duration(&mut self.report, "100ms", "365d"));
        let upstream = if is_adsbdb { Some(Upstream::Adsbdb) } else { self.http(&fields) };
        kind?;
        Some(Pull { every: flat(every)?.unwrap_or(DEFAULT_EVERY), upstream: upstream? })
    }

    fn kind(&mut self, at: &At<'_>) -> Option<Kind> {
        if !at.is_map() {
            return Some(Kind::Http);
        }
        // The other fields are checked when the kind is known.
        let fields = at.fields(&mut Report::default(), &["kind"], &[])?;
        let Some(kind) = fields.get("kind") else { return Some(Kind::Http) };
        kind.parsed(&mut self.report, |text| match text {
            "adsbdb" => Ok(Kind::Adsbdb),
            "http" => Ok(Kind::Http),
            _ => Err("should be http or adsbdb".into()),
        })
    }

    fn http(&mut self, fields: &Fields<'_>) -> Option<Upstream> {
        let url = fields.required(&mut self.report, "url").and_then(|at| at.parsed(&mut self.report, url));
        let timeout = fields.get("timeout").map(|at| at.duration(&mut self.report, "100ms", "5m"));
        let headers = fields.get("headers").map(|at| self.headers(&at));
        let auth = fields.get("auth").map(|at| self.auth(&at));
        let records = fields.get("records").map(|at| self.records(&at));
        let paging = fields.get("paging").map(|at| self.paging(&at));
        let wait = fields.get("wait").map(|at| self.wait(&at));
        let headers = flat(headers)?.unwrap_or_default();
        let auth = flat(auth)?;
        let own = match &auth {
            None => None,
            Some(Auth::Header { name, .. }) => Some(name.as_str()),
            Some(_) => Some("authorization"),
        };
        if let Some(own) = own
            && headers.iter().any(|(name, _)| name == own)
            && let Some(at) = fields.get("headers")
        {
            at.fault(&mut self.report, format!("the header {own} is set by `auth` too"));
            return None;
        }
        let (records, paging) = (flat(records)?.unwrap_or_else(whole_answer), flat(paging)?);
        if let (Records::One(_), Some(Paging { next: NextPage::Offset { .. }, .. })) = (&records, &paging)
            && let Some(at) = fields.get("paging")
        {
            at.fault(&mut self.report, "`offset` counts records, so `records` should be an array or a map");
            return None;
        }
        Some(Upstream::Http(Box::new(HttpApi {
            url: url?,
            timeout: flat(timeout)?.unwrap_or(DEFAULT_TIMEOUT),
            headers,
            auth,
            records,
            paging,
            wait: flat(wait)?.unwrap_or_default(),
        })))
    }

    fn headers(&mut self, at: &At<'_>) -> Option<Vec<(String, Secret)>> {
        let members = at.members(&mut self.report, "a map of headers");
        if members.len() > MAX_HEADERS {
            at.fault(&mut self.report, format!("should have at most {MAX_HEADERS} headers"));
            return None;
        }
        let mut headers: Vec<(String, Secret)> = Vec::new();
        let (mut faulty, count) = (!at.is_map(), members.len());
        for (key, value) in members {
            let name = match header_name(&key.name) {
                Ok(name) if OWN_HEADERS.contains(&name.as_str()) => {
                    Err("the client sets this header itself".to_owned())
                }
                Ok(name) if headers.iter().any(|(other, _)| *other == name) => {
                    Err("this header occurs twice".into())
                }
                other => other,
            };
            let name = name.map_err(|reason| self.report.add(key.at, &value.path, reason));
            let text = value.parsed(&mut self.report, header_value);
            if let (Ok(name), Some(text)) = (name, text) {
                headers.push((name, text));
            }
        }
        faulty |= headers.len() < count;
        (!faulty).then_some(headers)
    }

    fn auth(&mut self, at: &At<'_>) -> Option<Auth> {
        let names = ["bearer_file", "basic", "header"];
        let fields = at.fields(&mut self.report, &names, &[])?;
        match fields.one_of(&mut self.report, &names)? {
            ("bearer_file", at) => self.secret(&at).map(Auth::Bearer),
            ("basic", at) => {
                let fields = at.fields(&mut self.report, &["user", "password_file"], &[])?;
                let user = fields.required(&mut self.report, "user").and_then(|at| {
                    at.parsed(&mut self.report, |text| match text.contains([':', '\r', '\n']) {
                        true => Err("should have no colon and no line break".to_owned()),
                        false => Ok(text.to_owned()),
                    })
                });
                let password =
                    fields.required(&mut self.report, "password_file").and_then(|at| self.secret(&at));
                Some(Auth::Basic { user: user?, password: password? })
            }
            (_, at) => {
                let fields = at.fields(&mut self.report, &["name", "value_file"], &[])?;
                let name = fields.required(&mut self.report, "name");
                let name = name.and_then(|at| at.parsed(&mut self.report, header_name));
                let value = fields.required(&mut self.report, "value_file").and_then(|at| self.secret(&at));
                Some(Auth::Header { name: name?, value: value? })
            }
        }
    }

    /// The secret in a file, without white space around it.
    fn secret(&mut self, at: &At<'_>) -> Option<Secret> {
        if self.secrets == Secrets::Skip {
            return at.text(&mut self.report).map(|_| Secret::new(""));
        }
        let text = self.file(at)?;
        let checked = match text.trim() {
            "" => Err("the file of this secret is empty".to_owned()),
            text => header_value(text)
                .map_err(|_| "the secret should have one line of visible characters".to_owned()),
        };
        at.take(&mut self.report, checked)
    }

    fn records(&mut self, at: &At<'_>) -> Option<Records> {
        if !at.is_map() {
            // The empty pointer is the whole answer.
            let text = if at.is_empty_text() { "" } else { at.text(&mut self.report)? };
            return at.take(&mut self.report, Pointer::parse(text)).map(Records::List);
        }
        let names = ["list", "map", "object"];
        let fields = at.fields(&mut self.report, &names, &[])?;
        let (name, at) = fields.one_of(&mut self.report, &names)?;
        let text = if at.is_empty_text() { "" } else { at.text(&mut self.report)? };
        let pointer = at.take(&mut self.report, Pointer::parse(text))?;
        Some(match name {
            "list" => Records::List(pointer),
            "map" => Records::Map(pointer),
            _ => Records::One(pointer),
        })
    }

    fn paging(&mut self, at: &At<'_>) -> Option<Paging> {
        let fields = at.fields(&mut self.report, &PAGING_FIELDS, &[])?;
        let max_pages = fields.get("max_pages").map(|at| at.number(&mut self.report, 1, 1000));
        let (name, kind) =
            fields.one_of(&mut self.report, &["next", "link_header", "cursor_header", "offset"])?;
        if name != "cursor_header"
            && let Some(param) = fields.get("param")
        {
            param.fault(&mut self.report, "`param` stands beside `cursor_header`");
            return None;
        }
        let next = match name {
            "next" => kind.parsed(&mut self.report, Pointer::parse).map(NextPage::Pointer),
            "link_header" => match kind.boolean(&mut self.report)? {
                true => Some(NextPage::LinkHeader),
                false => {
                    kind.fault(&mut self.report, "should be true, or the field should be absent");
                    None
                }
            },
            "cursor_header" => {
                let header = kind.parsed(&mut self.report, header_name);
                let param = fields.required(&mut self.report, "param");
                let param = param.and_then(|at| at.text(&mut self.report));
                header
                    .zip(param)
                    .map(|(header, param)| NextPage::CursorHeader { header, param: param.to_owned() })
            }
            _ => self.offset(&kind),
        };
        Some(Paging { max_pages: flat(max_pages)?.unwrap_or(DEFAULT_MAX_PAGES), next: next? })
    }

    fn offset(&mut self, at: &At<'_>) -> Option<NextPage> {
        let fields = at.fields(&mut self.report, &["param", "size", "size_param"], &[])?;
        let param = fields.required(&mut self.report, "param").and_then(|at| at.text(&mut self.report));
        let size =
            fields.required(&mut self.report, "size").and_then(|at| at.number(&mut self.report, 1, 10_000));
        let size_param = fields.get("size_param").map(|at| at.text(&mut self.report).map(str::to_owned));
        Some(NextPage::Offset { param: param?.to_owned(), size: size?, size_param: flat(size_param)? })
    }

    /// One header or a list of headers.
    fn wait(&mut self, at: &At<'_>) -> Option<Vec<String>> {
        if !at.is_list() {
            return Some(vec![at.parsed(&mut self.report, header_name)?]);
        }
        let items = at.list(&mut self.report, "a list of headers");
        let names: Vec<Option<String>> =
            items.iter().map(|item| item.parsed(&mut self.report, header_name)).collect();
        names.into_iter().collect::<Option<Vec<_>>>().filter(|names| !names.is_empty())
    }
}

/// The client that fetches a source.
enum Kind {
    Adsbdb,
    Http,
}

fn whole_answer() -> Records {
    Records::One(Pointer::whole())
}

/// A URL. Logs show it, so it has no password.
fn url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|_| "should be a URL such as https://example.com/items.json")?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err("should be a URL with http or https".into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("should have no user and no password, which logs would show; use `auth`".into());
    }
    if url.fragment().is_some() {
        return Err("should have no # part, which is not sent".into());
    }
    Ok(url)
}

fn header_name(text: &str) -> Result<String, String> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.is_empty() || text.len() > 64 || !text.bytes().all(is_token) {
        return Err("should be the name of a header, such as X-Api-Key".into());
    }
    Ok(text.to_ascii_lowercase())
}

fn header_value(text: &str) -> Result<Secret, String> {
    if text.trim() != text || !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err("should have only visible ASCII characters".into());
    }
    Ok(Secret::new(text))
}
