//! What an accepted request is answered.

use crate::scripted_model::Gate;
use crate::test_server::{MODEL, TestServer};
use infer::EngineConfig;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// One field of the deltas of a stream, joined.
fn joined(chunks: &[Value], field: &str) -> String {
    let deltas = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str());
    deltas.collect()
}

#[test]
fn a_question_is_answered_in_the_form_that_openai_describes() {
    let server = TestServer::start();
    let reply = server.ask("How deep is the sea?", json!({"model": MODEL}));
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, "application/json")
    );
    let answer = reply.json();
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], MODEL);
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    let content = "You asked: How deep is the sea?";
    assert_eq!(
        answer["choices"],
        json!([{
            "index": 0,
            "message": {"role": "assistant", "content": content},
            "logprobs": null,
            "finish_reason": "stop",
        }])
    );
    let usage = &answer["usage"];
    let count = |key: &str| usage[key].as_u64().unwrap();
    assert_eq!(
        count("total_tokens"),
        count("prompt_tokens") + count("completion_tokens")
    );
    assert!(count("prompt_tokens") > 0 && count("completion_tokens") > 1);
}

#[test]
fn guessed_tokens_change_the_steps_and_never_the_answer() {
    let plain = TestServer::start();
    let engine = EngineConfig {
        num_speculative_tokens: 3,
        ..EngineConfig::default()
    };
    let guessing = TestServer::start_gated(&Gate::open(), engine);
    let stop = json!({"stop": "three"});
    let short = json!({"max_tokens": 5, "logprobs": true});
    for (question, options) in [
        ("say one two three four", json!({})),
        ("say one two three four", stop),
        ("say one two three four", short),
        (
            "dice",
            json!({"temperature": 1.0, "seed": 5, "max_tokens": 40}),
        ),
        ("nan", json!({})),
    ] {
        let (a, b) = (
            plain.ask(question, options.clone()),
            guessing.ask(question, options.clone()),
        );
        assert_eq!(a.status, b.status, "{question} {options}");
        let (a, b) = (a.json(), b.json());
        assert_eq!(a["choices"], b["choices"], "{question} {options}");
        assert_eq!(a["usage"], b["usage"], "{question} {options}");
    }
    let of = |server: &TestServer| {
        let health = server.get("/health").json();
        let count = |key: &str| health[key].as_u64().unwrap();
        (count("draft_accepted"), count("draft_proposed"))
    };
    assert_eq!(of(&plain), (0, 0));
    let (accepted, proposed) = of(&guessing);
    assert!(
        0 < accepted && accepted <= proposed,
        "{accepted} {proposed}"
    );
}

#[test]
fn a_stream_adds_up_to_the_whole_answer() {
    let server = TestServer::start();
    let question = "say 윤슬마을에 오신 것을 환영해요, 여러분!";
    let whole = server.ask(question, json!({})).json();
    let body = json!({
        "messages": [{"role": "user", "content": question}],
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let chunks = server.stream(CHAT, &body);
    assert_eq!(
        chunks[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    assert_eq!(
        joined(&chunks, "content"),
        "윤슬마을에 오신 것을 환영해요, 여러분!"
    );
    assert_eq!(
        whole["choices"][0]["message"]["content"],
        joined(&chunks, "content")
    );
    assert!(
        !joined(&chunks, "content").contains('\u{FFFD}'),
        "a character was torn apart"
    );
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(
        (&last["choices"], &last["usage"]),
        (&json!([]), &whole["usage"])
    );
    assert!(
        others
            .iter()
            .all(|chunk| chunk["usage"].is_null() && chunk["id"] == last["id"])
    );
    assert!(
        others
            .iter()
            .all(|chunk| chunk["object"] == "chat.completion.chunk")
    );
    let reasons: Vec<&str> = others
        .iter()
        .filter_map(|c| c["choices"][0]["finish_reason"].as_str())
        .collect();
    assert_eq!(reasons, ["stop"]);
    // Without being asked, nobody hears of the usage.
    let body = json!({"messages": [{"role": "user", "content": "say a"}], "stream": true});
    let chunks = server.stream(CHAT, &body);
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[test]
fn an_answer_ends_at_its_stop_string_its_length_or_its_end() {
    let server = TestServer::start();
    let ended = |question: &str, extra: Value| {
        let choice = server.ask(question, extra).json()["choices"][0].clone();
        let text = choice["message"]["content"].as_str().unwrap().to_owned();
        (text, choice["finish_reason"].as_str().unwrap().to_owned())
    };
    let is = |text: &str, reason: &str| (text.to_owned(), reason.to_owned());
    assert_eq!(
        ended("say one. two. three.", json!({"stop": ". t"})),
        is("one", "stop")
    );
    let stops = json!({"stop": ["그만", "둘"]});
    assert_eq!(ended("say 하나 둘 셋", stops), is("하나 ", "stop"));
    assert_eq!(
        ended("say one", json!({"stop": ["two"]})),
        is("one", "stop")
    );
    assert_eq!(ended("talk on", json!({"max_tokens": 1})).1, "length");
    let newer = json!({"max_tokens": 400, "max_completion_tokens": 2});
    let answer = server.ask("talk on", newer).json();
    assert_eq!(answer["usage"]["completion_tokens"], 2);
    let ignored = json!({"ignore_eos": true, "max_tokens": 9});
    let answer = server.ask("say a", ignored).json();
    assert_eq!(answer["usage"]["completion_tokens"], 9);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[test]
fn an_answer_without_a_limit_ends_where_the_context_ends() {
    let server = TestServer::start();
    let limit = server.get("/v1/models").json()["data"][0]["max_model_len"]
        .as_u64()
        .unwrap();
    let answer = server.ask("dice", json!({"stop": ["no such text"]})).json();
    assert_eq!(answer["usage"]["total_tokens"], limit);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[test]
fn reasoning_comes_apart_from_the_content_and_only_when_asked_for() {
    let server = TestServer::start();
    let think = json!({"chat_template_kwargs": {"enable_thinking": true}});
    let answer = server.ask("say 안녕", think.clone()).json();
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], "It asks: say 안녕");
    assert_eq!(message["content"], "안녕");
    let details = &answer["usage"]["completion_tokens_details"];
    let reasoning = details["reasoning_tokens"].as_u64().unwrap();
    assert!(0 < reasoning && reasoning < answer["usage"]["completion_tokens"].as_u64().unwrap());

    let mut body = json!({"messages": [{"role": "user", "content": "say 안녕"}], "stream": true});
    body["chat_template_kwargs"] = think["chat_template_kwargs"].clone();
    let chunks = server.stream(CHAT, &body);
    assert_eq!(joined(&chunks, "reasoning_content"), "It asks: say 안녕");
    assert_eq!(joined(&chunks, "content"), "안녕");

    // Stop strings belong to the content.
    let mut stopped = think.clone();
    stopped["stop"] = json!("say");
    let message = server.ask("say I say so", stopped).json()["choices"][0]["message"].clone();
    assert_eq!(message["reasoning_content"], "It asks: say I say so");
    assert_eq!(message["content"], "I ");

    let cut = json!({"chat_template_kwargs": {"enable_thinking": true}, "max_tokens": 3});
    let message = server.ask("say 안녕", cut).json()["choices"][0]["message"].clone();
    assert_eq!(message["content"], "");
    assert!("It asks: say".starts_with(message["reasoning_content"].as_str().unwrap()));

    let silent = server.ask("say 안녕", json!({})).json();
    assert_eq!(
        silent["choices"][0]["message"],
        json!({"role": "assistant", "content": "안녕"})
    );
}

#[test]
fn log_probabilities_come_with_every_token_of_the_content() {
    let server = TestServer::start();
    let body = json!({
        "messages": [{"role": "user", "content": "say 가b"}],
        "logprobs": true, "top_logprobs": 2,
    });
    let whole = server.post(CHAT, &body).json()["choices"][0]["logprobs"]["content"].clone();
    let tokens = whole.as_array().unwrap();
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|token| token["bytes"].as_array().unwrap())
        .map(|byte| byte.as_u64().unwrap() as u8)
        .collect();
    assert_eq!(bytes, "가b".as_bytes());
    for token in tokens {
        assert!(token["logprob"].as_f64().unwrap().abs() < 1e-6);
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["bytes"]), (2, &token["bytes"]));
        assert!(top[1]["logprob"].as_f64().unwrap() < -50.0);
    }
    let mut body = body;
    body["stream"] = json!(true);
    let chunks = server.stream(CHAT, &body);
    let streamed: Vec<&Value> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .collect();
    assert_eq!(streamed, tokens.iter().collect::<Vec<_>>());
}

#[test]
fn every_sampling_parameter_reaches_the_engine() {
    let server = TestServer::start();
    let dice = |extra: Value| {
        let mut extra = extra;
        extra["max_tokens"] = json!(24);
        let answer = server.ask("dice", extra).json();
        answer["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let all_a = "a".repeat(24);
    assert_eq!(dice(json!({"temperature": 0})), all_a);
    assert_eq!(dice(json!({"top_k": 1})), all_a);
    assert_eq!(dice(json!({"top_p": 0.001})), all_a);
    assert_eq!(dice(json!({"min_p": 1.0})), all_a);
    let alphabet = "abcdefghijklmnopqrstuvwx";
    assert_eq!(
        dice(json!({"temperature": 0, "presence_penalty": 2})),
        alphabet
    );
    assert_eq!(
        dice(json!({"temperature": 0, "frequency_penalty": 2})),
        alphabet
    );
    let seeded = dice(json!({"seed": 7}));
    assert_eq!(dice(json!({"seed": 7, "top_k": -1})), seeded);
    assert_ne!(dice(json!({"seed": 8})), seeded);
    // 26^24 texts: two draws without a seed do not meet.
    assert_ne!(dice(json!({})), dice(json!({})));
}

#[test]
fn conversations_are_read_in_all_forms_that_clients_send() {
    let server = TestServer::start();
    let body = json!({
        "model": MODEL,
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "say no", "name": "ann"},
            {"role": "assistant", "content": "no", "reasoning_content": "because",
             "refusal": null, "tool_calls": [], "annotations": []},
            {"role": "user", "content": [
                {"type": "text", "text": "say "}, {"type": "text", "text": "yes"},
            ]},
        ],
        "n": 1, "tools": [], "tool_choice": "auto", "logit_bias": {}, "user": "x", "seed": null,
        "response_format": {"type": "text"}, "stream": false, "parallel_tool_calls": true,
    });
    let reply = server.post(CHAT, &body);
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "yes");
}

#[test]
fn a_text_goes_on_from_text_or_ids() {
    let server = TestServer::start();
    let path = "/v1/completions";
    let answer = server
        .post(path, &json!({"prompt": "x w", "logprobs": 1}))
        .json();
    assert_eq!(answer["object"], "text_completion");
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["text"], &choice["finish_reason"]),
        (&json!("xyz"), &json!("stop"))
    );
    assert_eq!(choice["logprobs"]["tokens"], json!(["x", "y", "z"]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1, 2]));
    assert_eq!(
        choice["logprobs"]["top_logprobs"][0]
            .as_object()
            .unwrap()
            .len(),
        1
    );

    let ids = crate::scripted_model::TOKENIZER.encode("x w");
    for prompt in [json!(ids), json!([ids]), json!(["x w"])] {
        let answer = server.post(path, &json!({"prompt": prompt})).json();
        assert_eq!(answer["choices"][0]["text"], "xyz");
    }
    // OpenAI's default of 16 tokens.
    let answer = server.post(path, &json!({"prompt": "a"})).json();
    assert_eq!(answer["choices"][0]["text"], "bcdefghijklmnopq");
    let chunks = server.stream(path, &json!({"prompt": "x", "stream": true}));
    let texts = chunks
        .iter()
        .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap());
    assert_eq!(texts.collect::<String>(), "yz");
}

#[test]
fn the_model_is_listed_with_its_length() {
    let server = TestServer::start();
    let list = server.get("/v1/models").json();
    let card = &list["data"][0];
    assert_eq!(
        (&list["object"], &card["id"]),
        (&json!("list"), &json!(MODEL))
    );
    assert_eq!(
        card["max_model_len"],
        crate::scripted_model::ScriptedModel::MAX_POSITIONS
    );
    assert_eq!(&server.get(&format!("/v1/models/{MODEL}")).json(), card);
    assert_eq!(server.get("/v1/models/other").status, 404);
}
