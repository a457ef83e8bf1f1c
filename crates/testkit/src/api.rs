//! A JSON API for tests. It forwards requests to a server or gives scripted responses, and keeps
//! all requests and responses.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A request and its response.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// The head of the request.
    pub request: String,
    /// The whole response.
    pub response: String,
}

impl Exchange {
    /// The path and the query.
    pub fn target(&self) -> &str {
        self.request.split(' ').nth(1).unwrap_or_default()
    }

    /// The status of the response.
    pub fn status(&self) -> u16 {
        self.response.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line")
    }

    /// The body of the response. Panics unless it is JSON.
    pub fn json(&self) -> Value {
        let body = self.response.split_once("\r\n\r\n").expect("a head").1;
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
    }

    /// A header of the request. Names have lower case.
    pub fn sent(&self, name: &str) -> Option<&str> {
        header(&self.request, name)
    }

    /// A header of the response. Names have lower case.
    pub fn received(&self, name: &str) -> Option<&str> {
        header(&self.response, name)
    }
}

fn header<'h>(message: &'h str, name: &str) -> Option<&'h str> {
    let head = message.split("\r\n\r\n").next().unwrap_or_default();
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// What the API does with a request.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Sends this response, as [`response`] makes it.
    This(String),
    /// Sends nothing and keeps the connection open.
    Hang,
}

#[derive(Debug)]
struct State {
    server: Option<SocketAddr>,
    exchanges: Mutex<Vec<Exchange>>,
    /// The answer to each request whose target contains the text.
    answers: Mutex<Vec<(String, Answer)>>,
    /// A text in responses of the server, and its replacement.
    replacements: Mutex<Vec<(&'static str, &'static str)>>,
}

/// The API. It ends with the test's runtime.
#[derive(Debug, Clone)]
pub struct Api {
    /// Its base URL.
    pub url: String,
    state: Arc<State>,
}

impl Api {
    /// Starts one that forwards what is not scripted to `server`. Without a server that is a 404.
    pub async fn start(server: Option<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let (exchanges, answers, replacements) = Default::default();
        let state = Arc::new(State { server, exchanges, answers, replacements });
        let serving = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let state = Arc::clone(&serving);
                tokio::spawn(async move { state.serve(client).await });
            }
        });
        Self { url, state }
    }

    /// Gives this answer to each request whose target contains `target`.
    pub fn set(&self, target: &str, answer: Answer) {
        self.unset(target);
        lock(&self.state.answers).push((target.to_owned(), answer));
    }

    /// Ends the answer of [`Api::set`].
    pub fn unset(&self, target: &str) {
        lock(&self.state.answers).retain(|(other, _)| other != target);
    }

    /// Replaces a text in the responses of the server.
    pub fn replace(&self, text: &'static str, with: &'static str) {
        lock(&self.state.replacements).push((text, with));
    }

    /// The exchanges whose target contains `target`.
    pub fn exchanges(&self, target: &str) -> Vec<Exchange> {
        let exchanges = lock(&self.state.exchanges);
        exchanges.iter().filter(|exchange| exchange.target().contains(target)).cloned().collect()
    }
}

impl State {
    async fn serve(&self, mut client: TcpStream) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            match client.read_u8().await {
                Ok(byte) => request.push(byte),
                Err(_) => return,
            }
        }
        let request = String::from_utf8(request).expect("a head in UTF-8");
        let target = request.split(' ').nth(1).unwrap_or_default().to_owned();
        let response = match self.scripted(&target) {
            Some(Answer::This(response)) => response,
            Some(Answer::Hang) => {
                self.keep(request, "HTTP/1.1 000 none".to_owned());
                return std::future::pending().await;
            }
            None => self.forwarded(&request).await,
        };
        self.keep(request, response.clone());
        _ = client.write_all(response.as_bytes()).await;
    }

    fn keep(&self, request: String, response: String) {
        lock(&self.exchanges).push(Exchange { request, response });
    }

    fn scripted(&self, target: &str) -> Option<Answer> {
        let answers = lock(&self.answers);
        answers.iter().find(|(part, _)| target.contains(part)).map(|(_, answer)| answer.clone())
    }

    async fn forwarded(&self, request: &str) -> String {
        let Some(server) = self.server else { return response("404 Not Found", "", "") };
        let mut connection = TcpStream::connect(server).await.expect("the server behind the API");
        let head = request.strip_suffix("\r\n\r\n").expect("a head");
        let closing = format!("{head}\r\nConnection: close\r\n\r\n");
        connection.write_all(closing.as_bytes()).await.expect("a request");
        let mut response = String::new();
        connection.read_to_string(&mut response).await.expect("a response in UTF-8");
        for (text, with) in lock(&self.replacements).iter() {
            response = response.replace(text, with);
        }
        response
    }
}

/// The text of a response. Each header ends with CR LF.
pub fn response(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
