//! Loading, clients that leave, an engine that breaks, and the end.

use crate::scripted_model::Gate;
use crate::test_server::{TestServer, config, factory};
use dokja_serve::{ServeConfig, ServeError, Server};
use infer::EngineConfig;
use serde_json::json;
use std::sync::mpsc::channel;
use std::time::Duration;

#[test]
fn while_the_model_is_read_the_page_answers_and_requests_wait() {
    let (go, wait) = channel::<()>();
    let mut make = factory(Gate::open(), EngineConfig::default());
    let (ready, is_ready) = channel();
    let loading = Box::new(move || {
        let _ = wait.recv();
        make()
    });
    let server = TestServer::begin(config(), loading, move || ready.send(()).unwrap());
    assert_eq!(server.get("/").status, 200);
    let health = server.get("/health");
    assert_eq!(
        (health.status, &health.json()["status"]),
        (503, &json!("loading"))
    );
    let refused = server.ask("hello", json!({}));
    assert_eq!(
        (refused.error().0, refused.header("retry-after")),
        (503, "1")
    );
    assert_eq!(refused.json()["error"]["code"], "model_loading");
    assert!(server.get("/v1/models").json()["data"][0]["max_model_len"].is_null());
    drop(go);
    is_ready.recv().unwrap();
    assert_eq!(server.get("/health").json()["status"], "ok");
    assert_eq!(server.ask("hello", json!({})).status, 200);
}

#[test]
fn a_model_that_cannot_be_read_ends_the_server_with_the_reason() {
    let fail = Box::new(|| Err("model.safetensors: cut off".into()));
    let server = TestServer::begin(config(), fail, || panic!("it is never ready"));
    let error = server.join().expect_err("the model cannot be read");
    assert_eq!(error.to_string(), "model.safetensors: cut off");
}

#[test]
fn a_client_that_goes_away_takes_its_request_along() {
    let gate = Gate::closed();
    let server = TestServer::start_gated(&gate, EngineConfig::default());
    let mut streaming = server.send("talk on", json!({"stream": true}));
    gate.allow(8);
    streaming.read_until("말");
    drop(streaming);
    server.step_until(&gate, |load| load == (0, 0));
    // Without a stream nothing has been written yet: the server sees the closed connection.
    let whole = server.send("talk on", json!({}));
    server.step_until(&gate, |load| load == (1, 0));
    drop(whole);
    server.step_until(&gate, |load| load == (0, 0));
}

#[test]
fn a_broken_engine_fails_its_requests_and_is_replaced() {
    let server = TestServer::start();
    let (status, _, message) = server.ask("panic", json!({})).error();
    assert_eq!(status, 500);
    assert!(message.contains("try again"), "{message}");
    let deadline = (0..10_000).find(|_| server.get("/health").status == 200);
    assert!(deadline.is_some(), "the engine is not replaced");
    assert_eq!(server.ask("say a", json!({})).status, 200);
    let body = json!({"messages": [{"role": "user", "content": "panic"}], "stream": true});
    let chunks = server.stream("/v1/chat/completions", &body);
    assert_eq!(chunks.last().unwrap()["error"]["code"], "engine_failed");
}

#[test]
fn logits_that_are_no_numbers_are_our_fault() {
    let reply = TestServer::start().ask("nan", json!({}));
    assert_eq!(reply.status, 500);
    assert_eq!(reply.json()["error"]["code"], "not_finite");
}

#[test]
fn at_the_first_request_to_stop_answers_end_and_at_the_second_they_are_cut_off() {
    let gate = Gate::closed();
    let patient = || ServeConfig {
        drain: Duration::from_secs(600),
        ..config()
    };
    let server = TestServer::start_with(patient(), factory(gate.clone(), EngineConfig::default()));
    let mut stream = server.send("say 안녕", json!({"stream": true}));
    stream.read_until("assistant");
    server.shutdown.request();
    gate.allow(1000);
    let rest = stream.read_to_end();
    assert!(rest.contains("녕") && rest.contains("[DONE]"), "{rest}");
    server.join().expect("a clean end");

    let gate = Gate::closed();
    let server = TestServer::start_with(patient(), factory(gate.clone(), EngineConfig::default()));
    let mut stream = server.send("dice", json!({"stream": true}));
    stream.read_until("assistant");
    server.shutdown.request();
    server.shutdown.request();
    // A letter for each step, so that the model cannot run away from the server.
    let is_cut_off = (0..3000).any(|_| {
        gate.allow(1);
        stream.read_until("data: ").contains("server_stopping")
    });
    assert!(is_cut_off, "the answer goes on");
    gate.allow(1000);
    server.join().expect("a clean end");
}

#[test]
fn a_taken_port_is_told_in_a_sentence_that_helps() {
    let first = Server::bind(config()).unwrap();
    let port: u16 = first.url().rsplit(':').next().unwrap().parse().unwrap();
    let error = Server::bind(ServeConfig { port, ..config() }).unwrap_err();
    assert!(matches!(error, ServeError::PortTaken { .. }));
    assert_eq!(
        error.to_string(),
        format!(
            "port {port} of 127.0.0.1 is taken by another program; stop that program, or choose \
             another port with --port (0 takes any free one)"
        )
    );
    let elsewhere = ServeConfig {
        host: "192.0.2.1".into(),
        ..config()
    };
    let error = Server::bind(elsewhere).unwrap_err().to_string();
    assert!(
        error.contains("\"192.0.2.1\" is no address of this machine"),
        "{error}"
    );
}

#[test]
fn the_url_is_one_that_a_browser_can_open() {
    let public = Server::bind(ServeConfig {
        host: "0.0.0.0".into(),
        ..config()
    })
    .unwrap();
    assert!(public.url().starts_with("http://127.0.0.1:") && public.is_public());
    assert!(!Server::bind(config()).unwrap().is_public());
}
