//! An HTTP client with just what the tests ask.

use crate::scripted_model::Gate;
use crate::test_server::TestServer;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// `(status, param, message)` of an error object.
    pub(crate) fn error(&self) -> (u16, String, String) {
        let error = &self.json()["error"];
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        (self.status, text("param"), text("message"))
    }
}

/// A server that hangs fails its test.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn agent() -> Agent {
    let config = Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(PATIENCE)).build().into()
}

fn reply(response: Response<Body>) -> Reply {
    let (parts, mut body) = response.into_parts();
    Reply {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: body.read_to_string().unwrap(),
    }
}

impl TestServer {
    pub(crate) fn get(&self, path: &str) -> Reply {
        reply(agent().get(format!("{}{path}", self.url)).call().unwrap())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        let url = format!("{}{path}", self.url);
        reply(agent().post(url).send_json(body).unwrap())
    }

    /// Asks one question; `extra` overrides and adds fields.
    pub(crate) fn ask(&self, question: &str, extra: Value) -> Reply {
        self.post("/v1/chat/completions", &question_body(question, extra))
    }

    /// The events of a stream, the last of which is `[DONE]` and left out.
    pub(crate) fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert_eq!(reply.header("content-type"), "text/event-stream");
        let events: Vec<&str> = reply
            .body
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .collect();
        let (last, events) = events.split_last().expect("a stream has events");
        assert_eq!(*last, "[DONE]");
        events
            .iter()
            .map(|event| serde_json::from_str(event).unwrap())
            .collect()
    }

    /// A connection on which a request was sent and nothing read.
    pub(crate) fn send(&self, question: &str, extra: Value) -> RawReply {
        let body = question_body(question, extra).to_string();
        let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\n\
                    Content-Type: application/json\r\nConnection: close\r\n";
        self.send_raw(&format!(
            "{head}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    }

    pub(crate) fn send_raw(&self, request: &str) -> RawReply {
        let mut socket = TcpStream::connect(self.url.trim_start_matches("http://")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        RawReply(BufReader::new(socket))
    }

    /// Lets the model make one step after the other until the load is as wanted.
    pub(crate) fn step_until(&self, gate: &Gate, is_wanted: impl Fn((u64, u64)) -> bool) {
        // Fewer steps than the context has positions: nothing ends by its length.
        let is_so = (0..3000).any(|_| {
            gate.allow(1);
            is_wanted(self.load())
        });
        assert!(is_so, "running and waiting: {:?}", self.load());
    }

    /// What `/health` says of running and waiting requests.
    pub(crate) fn load(&self) -> (u64, u64) {
        let health = self.get("/health").json();
        let count = |key: &str| health[key].as_u64().unwrap();
        (count("num_requests_running"), count("num_requests_waiting"))
    }
}

/// Dropping it closes the connection.
pub(crate) struct RawReply(BufReader<TcpStream>);

impl RawReply {
    /// Reads up to a line that contains `text`.
    pub(crate) fn read_until(&mut self, text: &str) -> String {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            let len = self.0.read_line(&mut line).unwrap();
            assert!(len > 0, "the connection ended before {text:?}");
        }
        line
    }

    /// Reads all that is left.
    pub(crate) fn read_to_end(mut self) -> String {
        let mut text = String::new();
        self.0.read_to_string(&mut text).unwrap();
        text
    }
}

fn question_body(question: &str, extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": question}]});
    let Value::Object(extra) = extra else {
        panic!("extra is an object")
    };
    body.as_object_mut().unwrap().extend(extra);
    body
}
