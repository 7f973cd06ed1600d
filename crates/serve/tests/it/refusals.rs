//! What is refused, with which status, and which field is blamed.

use crate::client::agent;
use crate::scripted_model::Gate;
use crate::test_server::{TestServer, config, factory};
use dokja_serve::ApiKeys;
use infer::EngineConfig;
use serde_json::{Value, json};

#[test]
fn a_request_that_cannot_be_served_names_the_field_to_blame() {
    let server = TestServer::start();
    let message = |value: Value| json!({"messages": [value]});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
    let call = |name: &str, arguments: &str| {
        let function = json!({"name": name, "arguments": arguments});
        json!({"role": "assistant", "tool_calls": [{"type": "function", "function": function}]})
    };
    let cases = [
        (
            json!({"temperature": 101}),
            "temperature",
            "temperature is 101, allowed is 0 to 100",
        ),
        (
            json!({"temperature": "hot"}),
            "temperature",
            "expected a number, got a string",
        ),
        (json!({"top_p": 0}), "top_p", "above 0, at most 1"),
        (
            json!({"top_k": -2}),
            "top_k",
            "allowed is -1 (all) or above",
        ),
        (json!({"min_p": 1e300}), "min_p", "allowed is 0 to 1"),
        (
            json!({"presence_penalty": 3}),
            "presence_penalty",
            "allowed is -2 to 2",
        ),
        (
            json!({"frequency_penalty": -3}),
            "frequency_penalty",
            "allowed is -2 to 2",
        ),
        (json!({"seed": 0.5}), "seed", "expected a whole number"),
        (json!({"max_tokens": 0}), "max_tokens", "at least one token"),
        (json!({"max_tokens": -1}), "max_tokens", "not negative"),
        (
            json!({"top_logprobs": 2}),
            "top_logprobs",
            "only allowed with",
        ),
        (
            json!({"logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
            "allowed is 0 to 20",
        ),
        (json!({"stop": ""}), "stop", "0 bytes"),
        (json!({"stop": [1]}), "stop", "got a number"),
        (json!({"stop": vec!["x"; 17]}), "stop", "at most 16"),
        (json!({"n": 2}), "n", "only 1 is supported"),
        (
            json!({"tools": [{"type": "function"}]}),
            "tools[0].function",
            "missing",
        ),
        (json!({"tools": {}}), "tools", "expected an array"),
        (
            json!({"tools": [{"type": "retrieval"}]}),
            "tools[0].type",
            "only \"function\"",
        ),
        (
            json!({"tools": [tool("look"), tool("look the sea")]}),
            "tools[1].function.name",
            "expected 1 to 64 letters",
        ),
        (
            json!({"tools": [tool("look"), tool("look")]}),
            "tools[1].function.name",
            "a tool before",
        ),
        (
            json!({"tools": vec![tool("look"); 129]}),
            "tools",
            "at most 128",
        ),
        (
            json!({"tools": [{"function": {"name": "look", "parameters": []}}]}),
            "tools[0].function.parameters",
            "expected an object",
        ),
        (
            json!({"tools": [{"function": {"name": "look", "strict": true}}]}),
            "tools[0].function.strict",
            "only false",
        ),
        (
            json!({"tools": [tool("look")], "tool_choice": "required"}),
            "tool_choice",
            "cannot be forced",
        ),
        (
            json!({"thinking_token_budget": 5}),
            "thinking_token_budget",
            "only allowed where the model thinks",
        ),
        (
            json!({"thinking_token_budget": -1}),
            "thinking_token_budget",
            "not negative",
        ),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
            "only",
        ),
        (
            json!({"logit_bias": {"5": 1}}),
            "logit_bias",
            "only {} is supported",
        ),
        (
            json!({"reasoning_effort": "high"}),
            "reasoning_effort",
            "enable_thinking",
        ),
        (
            json!({"stream_options": {}}),
            "stream_options",
            "only allowed with",
        ),
        (
            json!({"temprature": 0}),
            "temprature",
            "not a field that this server knows",
        ),
        (
            json!({"chat_template_kwargs": {"enable_thinkin": true}}),
            "chat_template_kwargs.enable_thinkin",
            "not a field",
        ),
        (
            json!({"messages": []}),
            "messages",
            "give at least one message",
        ),
        (
            json!({"messages": "hello"}),
            "messages",
            "expected an array",
        ),
        (message(json!("hello")), "messages[0]", "expected an object"),
        (
            message(json!({"role": "robot", "content": ""})),
            "messages[0].role",
            "\"robot\"",
        ),
        (
            message(json!({"content": "a"})),
            "messages[0].role",
            "missing",
        ),
        (
            message(json!({"role": "user"})),
            "messages[0].content",
            "missing",
        ),
        (
            message(json!({"role": "user", "content": 5})),
            "messages[0].content",
            "got a number",
        ),
        (
            message(json!({"role": "user", "content": [{"type": "image_url"}]})),
            "messages[0].content[0].type",
            "only \"text\"",
        ),
        (
            message(json!({"role": "assistant", "content": "", "tool_calls": [{}]})),
            "messages[0].tool_calls[0].function",
            "missing",
        ),
        (
            message(call("look", "{\"at\"")),
            "messages[0].tool_calls[0].function.arguments",
            "expected a JSON object",
        ),
        (
            message(call("look", "[1]")),
            "messages[0].tool_calls[0].function.arguments",
            "expected a JSON object",
        ),
        (
            message(call("", "{}")),
            "messages[0].tool_calls[0].function.name",
            "1 to 64",
        ),
        (
            message(json!({"role": "user", "content": "", "tool_calls": [{}]})),
            "messages[0].tool_calls",
            "only []",
        ),
    ];
    for (extra, param, expected) in cases {
        let (status, blamed, message) = server.ask("hello", extra.clone()).error();
        assert_eq!(
            (status, blamed.as_str()),
            (400, param),
            "{extra}: {message}"
        );
        assert!(message.contains(expected), "{extra}: {message}");
    }
    let completion = |body: Value| server.post("/v1/completions", &body).error();
    for (body, param) in [
        (json!({}), "prompt"),
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": ["a", "b"]}), "prompt"),
        (json!({"prompt": [1, -1]}), "prompt"),
        (json!({"prompt": [1, 4_000_000_000u32]}), "prompt"),
        (json!({"prompt": "a", "echo": true}), "echo"),
        (json!({"prompt": "a", "logprobs": 21}), "logprobs"),
    ] {
        let (status, blamed, message) = completion(body.clone());
        assert_eq!((status, blamed.as_str()), (400, param), "{body}: {message}");
    }
}

#[test]
fn a_conversation_that_is_too_long_is_told_its_length() {
    let server = TestServer::start();
    let reply = server.ask(&"1 ".repeat(5000), json!({}));
    let (status, param, message) = reply.error();
    assert_eq!((status, param.as_str()), (400, "messages"));
    assert_eq!(reply.json()["error"]["code"], "context_length_exceeded");
    assert!(
        message.contains("the model takes at most 4095"),
        "{message}"
    );
}

#[test]
fn another_model_is_not_found() {
    let reply = TestServer::start().ask("hello", json!({"model": "gpt-5"}));
    let (status, param, message) = reply.error();
    assert_eq!((status, param.as_str()), (404, "model"));
    assert!(message.contains("\"scripted\""), "{message}");
    assert_eq!(reply.json()["error"]["code"], "model_not_found");
}

#[test]
fn what_is_no_request_of_ours_gets_its_status() {
    let server = TestServer::start();
    assert_eq!(server.get("/v2/answers").error().0, 404);
    let wrong_method = server.get("/v1/chat/completions");
    assert_eq!(
        (wrong_method.error().0, wrong_method.header("allow")),
        (405, "POST")
    );
    assert_eq!(server.post("/health", &json!({})).error().0, 405);

    let send = |body: &str, kind: &str| {
        let url = format!("{}/v1/chat/completions", server.url);
        let response = agent()
            .post(url)
            .header("Content-Type", kind)
            .send(body)
            .unwrap();
        response.status().as_u16()
    };
    assert_eq!(send("{\"messages\"", "application/json"), 400);
    assert_eq!(send("[]", "application/json"), 400);
    assert_eq!(send("{}", "text/plain"), 415);
    assert_eq!(send("", "application/json; charset=utf-8"), 400);
}

#[test]
fn a_body_over_the_limit_is_refused_announced_or_not() {
    let mut small = config();
    small.max_body_bytes = 1000;
    let server = TestServer::start_with(small, factory(Gate::open(), EngineConfig::default()));
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\
                Content-Type: application/json\r\n";
    // The announcement alone is enough: nothing of the body is waited for.
    let reply = server
        .send_raw(&format!("{head}Content-Length: 1001\r\n\r\n"))
        .read_to_end();
    assert!(reply.starts_with("HTTP/1.1 413 ") && reply.contains("larger than 1000 bytes"));
    let chunk = "x".repeat(1001);
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n3e9\r\n{chunk}\r\n0\r\n\r\n");
    let reply = server.send_raw(&chunked).read_to_end();
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
    assert_eq!(server.ask("say a", json!({})).status, 200);
}

#[test]
fn with_keys_only_their_holders_are_answered() {
    let mut guarded = config();
    guarded.api_keys = ApiKeys::parse("first\nsecond").unwrap();
    let server = TestServer::start_with(guarded, factory(Gate::open(), EngineConfig::default()));
    let refused = server.ask("hello", json!({}));
    assert_eq!(
        (refused.error().0, refused.header("www-authenticate")),
        (401, "Bearer")
    );
    assert_eq!(refused.json()["error"]["code"], "invalid_api_key");
    assert_eq!(server.get("/v1/models").status, 401);
    assert_eq!(
        (server.get("/").status, server.get("/health").status),
        (200, 200)
    );
    let models = |key: &str| {
        let request = agent().get(format!("{}/v1/models", server.url));
        let response = request
            .header("Authorization", format!("Bearer {key}"))
            .call();
        response.unwrap().status().as_u16()
    };
    assert_eq!((models("second"), models("third")), (200, 401));
}

#[test]
fn a_full_queue_asks_to_come_back() {
    let gate = Gate::closed();
    let engine = EngineConfig {
        max_num_seqs: 1,
        max_num_waiting: 1,
        ..EngineConfig::default()
    };
    let server = TestServer::start_gated(&gate, engine);
    // One runs, one waits, the next is too many.
    let mut first = server.send("talk on", json!({"stream": true}));
    gate.allow(4);
    first.read_until("말");
    let second = server.send("say b", json!({"stream": true}));
    server.step_until(&gate, |load| load == (1, 1));
    let third = server.send("say c", json!({}));
    // The engine hears of new requests between two steps.
    let refused = std::thread::spawn(move || third.read_to_end());
    server.step_until(&gate, |_| refused.is_finished());
    let refused = refused.join().unwrap();
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    assert!(refused.contains("retry-after: 1\r\n") && refused.contains("queue_full"));
    drop(first);
    gate.allow(1_000_000);
    assert!(second.read_to_end().contains("[DONE]"));
    assert_eq!(server.ask("say d", json!({})).status, 200);
}
