//! A server that speaks the OpenAI chat API, as a target: `POST <base>/chat/completions`.
//!
//! Several questions are under way at once. What may pass (no connection, 408, 429, 5xx) is tried again, a
//! bounded number of times, after a wait that doubles or that the server names (`Retry-After`); what will not
//! pass ends the evaluation, except that a prompt which the server does not take (400, 413, 422) is a wrong
//! answer with a problem. Replies are bounded in size. The key is handed in, and goes nowhere but into
//! the `Authorization` header.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use ureq::Agent;
use ureq::http::{Response, StatusCode};

use crate::target::{AnswerOptions, Identity, Problem, Reply, Target, TargetError};

/// Largest reply that is read: a hundred times the longest answers of models.
const MAX_REPLY_BYTES: u64 = 16 << 20;

/// Longest wait between two tries, whatever the server asks for.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// How a server is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// The bearer token, if one is needed.
    pub api_key: Option<String>,
    /// The model's name; `None` takes the first that `GET <base>/models` lists.
    pub model: Option<String>,
    /// Questions under way at once.
    pub concurrency: usize,
    /// Longest wait for one answer.
    pub timeout: Duration,
    /// Tries after the first.
    pub retries: u32,
    /// Before the first of them; doubles with each.
    pub wait: Duration,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            api_key: None,
            model: None,
            concurrency: 8,
            timeout: Duration::from_secs(300),
            retries: 5,
            wait: Duration::from_millis(500),
        }
    }
}

/// A model behind a URL.
#[derive(Debug)]
pub struct Server {
    agent: Agent,
    base: String, // without a slash at the end
    options: ServerOptions,
    name: String, // as the server knows it
    identity: Identity,
}

/// Why one request has no answer.
enum Failure {
    /// This prompt is not taken; another may be.
    Prompt(String),
    /// The rest has no answer either.
    All(TargetError),
}

impl Server {
    /// Connects, and asks for the model's name where none is given. `url` is the API's base, with or
    /// without `/v1`.
    ///
    /// # Errors
    /// When the server does not answer, or not in the API's words.
    pub fn connect(url: &str, options: ServerOptions) -> Result<Server, TargetError> {
        let base = base_of(url)?;
        let config = Agent::config_builder()
            .timeout_global(Some(options.timeout))
            .http_status_as_error(false)
            .build();
        let mut server = Server {
            agent: config.into(),
            name: String::new(),
            identity: Identity {
                model: String::new(),
                weights_sha256: None,
            },
            base,
            options,
        };
        server.name = match &server.options.model {
            Some(name) => name.clone(),
            None => server.first_model()?,
        };
        server.identity.model = format!("{} at {}", server.name, server.base);
        Ok(server)
    }

    /// The API's address, without a slash at the end.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// What the server calls the model.
    pub fn model(&self) -> &str {
        &self.name
    }

    fn first_model(&self) -> Result<String, TargetError> {
        #[derive(Deserialize)]
        struct Models {
            data: Vec<Model>,
        }
        #[derive(Deserialize)]
        struct Model {
            id: String,
        }
        let url = format!("{}/models", self.base);
        let text = self.request(&url, None).map_err(|failure| match failure {
            Failure::All(error) => error,
            Failure::Prompt(message) => TargetError::Refused {
                url: url.clone(),
                status: StatusCode::BAD_REQUEST.as_u16(),
                message,
            },
        })?;
        let models: Models = serde_json::from_str(&text).map_err(|e| TargetError::Reply {
            url: url.clone(),
            what: e.to_string(),
        })?;
        let first = models.data.into_iter().next().map(|model| model.id);
        first.ok_or(TargetError::Reply {
            url,
            what: "it lists no model".to_owned(),
        })
    }

    fn ask(&self, prompt: &str, options: &AnswerOptions) -> Result<Reply, Failure> {
        let url = format!("{}/chat/completions", self.base);
        let mut body = json!({
            "model": self.name,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": options.max_tokens,
            "temperature": 0,
        });
        if options.thinking {
            // As vLLM and SGLang take it; servers of models that do not think may not know it.
            body["chat_template_kwargs"] = json!({"enable_thinking": true});
        }
        let text = self.request(&url, Some(&body.to_string()))?;
        reply(&text).map_err(|what| Failure::All(TargetError::Reply { url, what }))
    }

    /// GET, or POST with a body; the reply's text.
    fn request(&self, url: &str, body: Option<&str>) -> Result<String, Failure> {
        let mut wait = self.options.wait;
        let mut tries_left = self.options.retries;
        loop {
            let (failure, named) = match self.send(url, body) {
                Ok(mut response) => {
                    let status = response.status();
                    let named = retry_after(&response);
                    let read = response.body_mut().with_config().limit(MAX_REPLY_BYTES);
                    match read.read_to_string() {
                        Ok(text) if status.is_success() => return Ok(text),
                        Ok(text) => {
                            let message = message_of(&text);
                            if body.is_some() && matches!(status.as_u16(), 400 | 413 | 422) {
                                return Err(Failure::Prompt(message));
                            }
                            let refused = TargetError::Refused {
                                url: url.to_owned(),
                                status: status.as_u16(),
                                message,
                            };
                            if !may_pass(status) {
                                return Err(Failure::All(refused));
                            }
                            (refused, named)
                        }
                        Err(e) => (unreachable(url, &e), None),
                    }
                }
                Err(e) => (unreachable(url, &e), None),
            };
            if tries_left == 0 {
                return Err(Failure::All(failure));
            }
            tries_left -= 1;
            std::thread::sleep(named.unwrap_or(wait).min(MAX_WAIT));
            wait *= 2;
        }
    }

    fn send(&self, url: &str, body: Option<&str>) -> Result<Response<ureq::Body>, ureq::Error> {
        let key = self.options.api_key.as_ref();
        let bearer = key.map(|key| format!("Bearer {key}"));
        match body {
            None => {
                let mut request = self.agent.get(url);
                if let Some(bearer) = &bearer {
                    request = request.header("authorization", bearer);
                }
                request.call()
            }
            Some(body) => {
                let mut request = self
                    .agent
                    .post(url)
                    .header("content-type", "application/json");
                if let Some(bearer) = &bearer {
                    request = request.header("authorization", bearer);
                }
                request.send(body)
            }
        }
    }
}

impl Target for Server {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn answer(
        &mut self,
        prompts: &[&str],
        options: &AnswerOptions,
        done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Reply>, TargetError> {
        let next = AtomicUsize::new(0);
        let is_over = AtomicBool::new(false);
        let failed = Mutex::new(None);
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut replies = vec![Reply::default(); prompts.len()];
        let server = &*self;
        std::thread::scope(|scope| {
            for _ in 0..server.options.concurrency.clamp(1, prompts.len().max(1)) {
                let sender = sender.clone();
                let (next, is_over, failed) = (&next, &is_over, &failed);
                scope.spawn(move || {
                    while !is_over.load(Ordering::Relaxed) {
                        let idx = next.fetch_add(1, Ordering::Relaxed);
                        let Some(prompt) = prompts.get(idx) else {
                            break;
                        };
                        let reply = match server.ask(prompt, options) {
                            Ok(reply) => reply,
                            Err(Failure::Prompt(message)) => Reply {
                                text: String::new(),
                                problem: Some(Problem::NotAsked(message)),
                            },
                            Err(Failure::All(error)) => {
                                is_over.store(true, Ordering::Relaxed);
                                let mut failed =
                                    failed.lock().expect("no thread panics with the lock held");
                                failed.get_or_insert(error);
                                break;
                            }
                        };
                        // The receiver lives until all threads are done.
                        let _ = sender.send((idx, reply));
                    }
                });
            }
            drop(sender);
            for (count, (idx, reply)) in receiver.iter().enumerate() {
                replies[idx] = reply;
                done(count + 1);
            }
        });
        match failed.into_inner().expect("no thread panicked") {
            Some(error) => Err(error),
            None => Ok(replies),
        }
    }
}

/// `http://host:port` and what follows, ending in a version like `/v1`.
fn base_of(url: &str) -> Result<String, TargetError> {
    let base = url.trim_end_matches('/');
    let base = base.strip_suffix("/chat/completions").unwrap_or(base);
    let rest = base
        .strip_prefix("http://")
        .or_else(|| base.strip_prefix("https://"));
    match rest {
        Some(rest) if !rest.is_empty() && !rest.contains(char::is_whitespace) => {
            Ok(match rest.contains('/') {
                true => base.to_owned(),
                false => format!("{base}/v1"),
            })
        }
        _ => Err(TargetError::Url {
            url: url.to_owned(),
        }),
    }
}

fn unreachable(url: &str, cause: &ureq::Error) -> TargetError {
    TargetError::Unreachable {
        url: url.to_owned(),
        cause: cause.to_string(),
    }
}

fn may_pass(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 429)
}

fn retry_after(response: &Response<ureq::Body>) -> Option<Duration> {
    let value = response.headers().get("retry-after")?;
    let seconds: u64 = value.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The message of an OpenAI error object, or the start of whatever was sent.
fn message_of(text: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let said = value["error"]["message"].as_str();
    let said = said.or(value["message"].as_str()).unwrap_or(text).trim();
    match said.char_indices().nth(300) {
        Some((end, _)) => format!("{}...", &said[..end]),
        None => said.to_owned(),
    }
}

/// The answer in a chat completion, without what was thought before it.
fn reply(text: &str) -> Result<Reply, String> {
    #[derive(Deserialize)]
    struct Completion {
        choices: Vec<Choice>,
    }
    #[derive(Deserialize)]
    struct Choice {
        message: Message,
        finish_reason: Option<String>,
    }
    #[derive(Deserialize)]
    struct Message {
        content: Option<String>,
    }
    let completion: Completion = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let choice = completion.choices.into_iter().next();
    let choice = choice.ok_or("there are no choices")?;
    let content = choice.message.content.unwrap_or_default();
    let is_cut = choice.finish_reason.as_deref() == Some("length");
    Ok(Reply {
        text: without_thinking(&content).to_owned(),
        problem: is_cut.then_some(Problem::Cut),
    })
}

/// What follows the thinking; nothing where the thinking has no end.
pub(crate) fn without_thinking(text: &str) -> &str {
    match (text.rsplit_once("</think>"), text.contains("<think>")) {
        (Some((_, answer)), _) => answer.trim(),
        (None, true) => "",
        (None, false) => text.trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::sync::mpsc;

    /// A server that gives the replies in turn, one connection each, and hands over what it was sent.
    fn serve(replies: Vec<String>) -> (String, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            for reply in replies {
                let (stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream);
                let (mut head, mut length) = (String::new(), 0);
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                        length = n.trim().parse().unwrap();
                    }
                    if line.trim().is_empty() {
                        break;
                    }
                    head.push_str(&line);
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let _ = sender.send(head + &String::from_utf8(body).unwrap());
                let _ = reader.get_mut().write_all(reply.as_bytes());
            }
        });
        (url, receiver)
    }

    fn http(status: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    }

    fn said(text: &str) -> String {
        let body = json!({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]});
        http("200 OK", &body.to_string())
    }

    fn options(retries: u32) -> ServerOptions {
        ServerOptions {
            model: Some("m".to_owned()),
            api_key: Some("secret".to_owned()),
            concurrency: 1,
            retries,
            wait: Duration::ZERO,
            ..ServerOptions::default()
        }
    }

    const SHORT: AnswerOptions = AnswerOptions {
        max_tokens: 9,
        thinking: false,
    };

    fn ask(replies: Vec<String>, retries: u32, n: usize) -> Result<Vec<Reply>, TargetError> {
        let (url, _requests) = serve(replies);
        let mut server = Server::connect(&url, options(retries)).unwrap();
        server.answer(&vec!["?"; n], &SHORT, &mut |_| {})
    }

    #[test]
    fn a_question_is_sent_with_the_key_and_the_answer_comes_back_without_thinking() {
        let (url, requests) = serve(vec![
            http("200 OK", r#"{"data": [{"id": "first"}, {"id": "second"}]}"#),
            said("<think>\n6 + 1\n</think>\n\n7"),
        ]);
        let listed = ServerOptions {
            model: None,
            ..options(0)
        };
        let mut server = Server::connect(&format!("{url}/"), listed).unwrap();
        assert_eq!(server.identity().model, format!("first at {url}/v1"));
        let mut heard = Vec::new();
        let replies = server.answer(&["3 + 4?"], &SHORT, &mut |n| heard.push(n));
        assert_eq!(replies.unwrap()[0].text, "7");
        assert_eq!(heard, [1]);
        assert!(requests.recv().unwrap().starts_with("GET /v1/models "));
        let asked = requests.recv().unwrap();
        assert!(asked.starts_with("POST /v1/chat/completions "), "{asked}");
        assert!(asked.contains("Bearer secret") && asked.contains(r#""content":"3 + 4?""#));
        assert!(asked.contains(r#""max_tokens":9,"temperature":0"#));
    }

    #[test]
    fn what_may_pass_is_tried_again_so_many_times_and_no_more() {
        let busy = || {
            http(
                "503 Service Unavailable",
                r#"{"error": {"message": "loading"}}"#,
            )
        };
        let replies = ask(vec![busy(), busy(), said("ok")], 2, 1).unwrap();
        assert_eq!(replies[0].text, "ok");
        let failed = ask(vec![busy(), busy(), busy()], 2, 1)
            .unwrap_err()
            .to_string();
        assert!(failed.ends_with("answers 503: loading"), "{failed}");
    }

    #[test]
    fn a_refused_prompt_is_one_problem_and_a_refused_key_ends_it_all() {
        let long = http("400 Bad Request", r#"{"error": {"message": "too long"}}"#);
        let replies = ask(vec![long, said("b")], 0, 2).unwrap();
        assert_eq!(
            replies[0].problem,
            Some(Problem::NotAsked("too long".to_owned()))
        );
        assert_eq!(replies[1].text, "b");
        let failed = ask(vec![http("401 Unauthorized", "no")], 5, 2).unwrap_err();
        assert!(matches!(failed, TargetError::Refused { status: 401, .. }));
    }

    #[test]
    fn hostile_replies_are_errors() {
        for body in [
            "",
            "{}",
            r#"{"choices": []}"#,
            "[[[[",
            r#"{"choices": [{"message": 7}]}"#,
        ] {
            let failed = ask(vec![http("200 OK", body)], 0, 1).unwrap_err();
            assert!(matches!(failed, TargetError::Reply { .. }), "{failed}");
        }
        let failed = ask(vec!["not http at all\r\n\r\n".to_owned()], 0, 1).unwrap_err();
        assert!(
            matches!(failed, TargetError::Unreachable { .. }),
            "{failed}"
        );
    }

    #[test]
    fn addresses_are_completed_or_refused() {
        assert_eq!(base_of("http://h:1").unwrap(), "http://h:1/v1");
        assert_eq!(base_of("https://h/api/v3/").unwrap(), "https://h/api/v3");
        assert_eq!(
            base_of("http://h/v1/chat/completions").unwrap(),
            "http://h/v1"
        );
        for url in ["", "http://", "h:1", "http://a b"] {
            assert!(base_of(url).is_err(), "{url}");
        }
    }
}
