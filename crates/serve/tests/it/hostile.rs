//! Bodies that nobody would send in good faith.

use crate::client::agent;
use crate::test_server::TestServer;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::LazyLock;

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

const NAMES: &[&str] = &[
    "messages",
    "prompt",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "logprobs",
    "top_logprobs",
    "presence_penalty",
    "frequency_penalty",
    "n",
    "stream",
    "stream_options",
    "chat_template_kwargs",
    "model",
    "tools",
    "ignore_eos",
    "role",
    "content",
    "type",
    "text",
    "max_tokens",
    "reasoning_content",
    "user",
];

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => prop::sample::select(NAMES).prop_map(str::to_owned),
        1 => any::<String>(),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..30).prop_map(Value::from),
        any::<f64>().prop_map(|x| json!(x)),
        any::<String>().prop_map(Value::from),
        prop::sample::select(&["user", "assistant", "text", "talk on", "<|endofturn|>"][..])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
            prop::collection::vec((name(), inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn request() -> impl Strategy<Value = Value> {
    let fields = prop::collection::vec((name(), value()), 0..5);
    (any::<bool>(), fields).prop_map(|(is_plausible, fields)| {
        let mut body = json!({});
        if is_plausible {
            body["messages"] = json!([{"role": "user", "content": "say hello"}]);
            body["prompt"] = json!("u");
        }
        body.as_object_mut().unwrap().extend(fields);
        // What is valid by chance should not fill the context.
        body["max_tokens"] = json!(3);
        body
    })
}

fn status(path: &str, body: &[u8]) -> u16 {
    let request = agent().post(format!("{}{path}", SERVER.url));
    let response = request
        .header("Content-Type", "application/json")
        .send(body)
        .unwrap();
    let status = response.status().as_u16();
    let text = response.into_body().read_to_string().unwrap();
    if status != 200 {
        let error: Value = serde_json::from_str(&text).expect("an error is JSON");
        assert!(!error["error"]["message"].as_str().unwrap().is_empty());
    }
    status
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn no_json_makes_the_server_fail(body in request(), is_chat in any::<bool>()) {
        let path = if is_chat { "/v1/chat/completions" } else { "/v1/completions" };
        let status = status(path, body.to_string().as_bytes());
        prop_assert!(matches!(status, 200 | 400 | 404), "{}: {}", status, body);
    }

    #[test]
    fn no_bytes_make_the_server_fail(body in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(status("/v1/chat/completions", &body), 400);
    }
}

#[test]
fn json_of_great_depth_is_refused() {
    let deep = "[".repeat(100_000);
    assert_eq!(status("/v1/chat/completions", deep.as_bytes()), 400);
}
