//! The metadata of an endpoint. The route table declares it; middleware, authentication, metrics
//! and the OpenAPI document use it.

use axum::http::Method;

/// One method at one path.
#[derive(Debug)]
pub struct Endpoint {
    pub method: Method,
    /// The path, with parameters in braces. It is the `route` label of metrics and traces.
    pub path: &'static str,
    pub auth: Auth,
    pub limit: Limit,
    pub events: Events,
}

/// The authentication that an endpoint requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    None,
    /// A key of API_KEYS, if that is set.
    ApiKey,
}

/// The limit class of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Only MAX_CONNECTIONS applies.
    Connections,
    /// A request needs one of MAX_IN_FLIGHT permits, too.
    InFlight,
    /// The endpoint is served even on connections beyond MAX_CONNECTIONS.
    Exempt,
}

/// The events that a request to an endpoint contains or fetches. A rejected request counts as
/// rejected events, unless it is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Events {
    None,
    /// One event, whose id can be in the header Idempotency-Key.
    One,
    Many,
    /// One event that the producer fetches itself.
    Fetched,
}

/// Stands for all paths that are not in the route table. Clients choose paths, but must not choose
/// the values of metric labels.
pub static UNKNOWN: Endpoint = Endpoint {
    method: Method::GET,
    path: "other",
    auth: Auth::None,
    limit: Limit::Connections,
    events: Events::None,
};

/// The endpoint that a request leads to.
#[derive(Debug, Clone, Copy)]
pub struct Matched {
    /// An endpoint of the path; of another method if the path does not have the request's.
    pub endpoint: &'static Endpoint,
    /// Whether the endpoint has the request's method.
    pub has_method: bool,
}

/// An extension of a request whose path had a slash at its end.
#[derive(Debug, Clone, Copy)]
pub struct HadSlash;

impl Endpoint {
    /// Whether `path` leads to this endpoint. A parameter matches one segment.
    pub fn matches(&self, path: &str) -> bool {
        match self.path.split_once('{') {
            None => self.path == path,
            Some((prefix, _)) => {
                path.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty() && !rest.contains('/'))
            }
        }
    }
}

impl Matched {
    /// Finds the endpoint of a request among `endpoints`.
    pub fn find(endpoints: impl Iterator<Item = &'static Endpoint>, method: &Method, path: &str) -> Self {
        let mut same_path = None;
        for endpoint in endpoints.filter(|endpoint| endpoint.matches(path)) {
            if endpoint.method == *method {
                return Self { endpoint, has_method: true };
            }
            same_path = Some(endpoint);
        }
        Self { endpoint: same_path.unwrap_or(&UNKNOWN), has_method: false }
    }

    /// Whether the path is in the route table.
    pub fn is_known(&self) -> bool {
        !std::ptr::eq(self.endpoint, &raw const UNKNOWN)
    }

    /// Whether the request needs a permit of MAX_IN_FLIGHT.
    pub fn needs_permit(&self) -> bool {
        self.has_method && self.endpoint.limit == Limit::InFlight
    }
}
