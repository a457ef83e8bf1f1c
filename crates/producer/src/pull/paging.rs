//! The next page of an answer.

use reqwest::header::{HeaderMap, LINK};
use sources::{HttpApi, NextPage};
use url::Url;
use url::form_urlencoded;

use crate::pull::error::PullError;

/// Maximum length of the URL of a page.
const MAX_URL_BYTES: usize = 8 * 1024;

/// The URL of the first page.
pub fn first(api: &HttpApi) -> Url {
    let mut url = api.url.clone();
    if let Some(NextPage::Offset { param, size, size_param }) = api.paging.as_ref().map(|paging| &paging.next)
    {
        set_parameter(&mut url, param, "0");
        if let Some(name) = size_param {
            set_parameter(&mut url, name, &size.to_string());
        }
    }
    url
}

/// The URL of the page after `current`, whose text is `text` and which has `records` records.
/// `fetched` is the number of records so far. `None` if it is the last page.
///
/// # Errors
/// The answer names a page that cannot be fetched.
pub fn next(
    api: &HttpApi,
    current: &Url,
    (text, headers): (&str, &HeaderMap),
    (records, fetched): (usize, usize),
) -> Result<Option<Url>, PullError> {
    let invalid = |reason: &str| PullError::InvalidResponse(reason.into());
    let Some(paging) = &api.paging else { return Ok(None) };
    let reference = match &paging.next {
        NextPage::Pointer(pointer) => match pointer.find(text) {
            None | Some("null") => None,
            Some(json) => Some(
                serde_json::from_str::<String>(json)
                    .map_err(|_| invalid("the URL of its next page is not a text"))?,
            ),
        },
        NextPage::LinkHeader => next_link(headers),
        NextPage::CursorHeader { header, param } => {
            let cursor = headers.get(header).and_then(|value| value.to_str().ok());
            return Ok(cursor.filter(|cursor| !cursor.is_empty()).map(|cursor| {
                let mut url = current.clone();
                set_parameter(&mut url, param, cursor);
                url
            }));
        }
        NextPage::Offset { param, size, .. } => {
            let is_last = u32::try_from(records).is_ok_and(|records| records < *size);
            return Ok((!is_last).then(|| {
                let mut url = current.clone();
                set_parameter(&mut url, param, &fetched.to_string());
                url
            }));
        }
    };
    let Some(reference) = reference.filter(|reference| !reference.is_empty()) else { return Ok(None) };
    let url = current.join(&reference).map_err(|_| invalid("the URL of its next page is not a URL"))?;
    if url.origin() != api.url.origin() {
        return Err(invalid("its next page is at another origin"));
    }
    if url.as_str().len() > MAX_URL_BYTES {
        return Err(invalid("the URL of its next page is too long"));
    }
    Ok(Some(url))
}

/// Sets a parameter of the query. The other parameters keep their text.
fn set_parameter(url: &mut Url, name: &str, value: &str) {
    let has_name = |pair: &&str| form_urlencoded::parse(pair.as_bytes()).any(|(key, _)| key == name);
    let query = url.query().unwrap_or_default();
    let mut pairs: Vec<String> =
        query.split('&').filter(|pair| !pair.is_empty() && !has_name(pair)).map(str::to_owned).collect();
    pairs.push(form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish());
    url.set_query(Some(&pairs.join("&")));
}

/// The URL with `rel="next"` in the headers Link (RFC 8288).
fn next_link(headers: &HeaderMap) -> Option<String> {
    for value in headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok()) {
        let mut rest = value;
        while let Some((_, after)) = rest.split_once('<') {
            let (url, after) = after.split_once('>')?;
            let parameters = after.split('<').next().unwrap_or_default();
            let is_next = parameters.split([';', ',']).any(|parameter| {
                parameter.split_once('=').is_some_and(|(name, value)| {
                    let mut relations = value.trim().trim_matches('"').split_ascii_whitespace();
                    name.trim().eq_ignore_ascii_case("rel")
                        && relations.any(|relation| relation.eq_ignore_ascii_case("next"))
                })
            });
            if is_next {
                return Some(url.to_owned());
            }
            rest = after;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(value: &str) -> Option<String> {
        next_link(&HeaderMap::from_iter([(LINK, value.parse().unwrap())]))
    }

    #[test]
    fn the_next_link_is_found_among_others() {
        let both = r#"<https://a/?p=1>; rel="prev", <https://a/?p=3>; title="x"; rel="next""#;
        assert_eq!(link(both).as_deref(), Some("https://a/?p=3"));
        assert_eq!(link("</b>; rel=next").as_deref(), Some("/b"));
        assert_eq!(link(r#"</b>; rel="last next""#).as_deref(), Some("/b"));
        assert_eq!(link(r#"</b>; rel="last""#), None);
        assert_eq!(link("</b"), None);
    }

    #[test]
    fn a_parameter_is_replaced_and_the_others_keep_their_text() {
        let mut url: Url = "https://a/?x=1%2C2&after=old&y".parse().unwrap();
        set_parameter(&mut url, "after", "a b");
        assert_eq!(url.as_str(), "https://a/?x=1%2C2&y&after=a+b");
    }
}
