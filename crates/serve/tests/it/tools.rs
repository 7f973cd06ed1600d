//! Tools: declared, called, answered; and a budget for what is thought before.

use crate::test_server::TestServer;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const CALL: &str =
    r#"<tool_call>{"name": "look", "arguments": {"at": "the sea", "n": [1, 2.5]}}</tool_call>"#;
const ARGUMENTS: &str = r#"{"at":"the sea","n":[1,2.5]}"#;

fn with_tools(extra: Value) -> Value {
    let mut body = json!({"tools": [{"type": "function", "function": {
        "name": "look", "description": "Looks.", "strict": false,
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    }}]});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[test]
fn a_call_is_told_apart_from_the_content() {
    let server = TestServer::start();
    let choice = |question: &str, extra: Value| {
        server.ask(question, with_tools(extra)).json()["choices"][0].clone()
    };
    let said = choice(&format!("say I look.\n{CALL}\n{CALL}"), json!({}));
    assert_eq!(said["finish_reason"], "tool_calls");
    assert_eq!(said["message"]["content"], "I look.");
    let calls = said["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(calls.len(), 2);
    let function = json!({"name": "look", "arguments": ARGUMENTS});
    for call in calls {
        assert_eq!(
            (&call["type"], &call["function"]),
            (&json!("function"), &function)
        );
        assert!(call["id"].as_str().unwrap().starts_with("call_"));
        assert!(call.get("index").is_none());
    }
    assert_ne!(calls[0]["id"], calls[1]["id"]);

    let alone = choice(&format!("say {CALL}"), json!({}));
    assert_eq!(alone["message"]["content"], Value::Null);
    let first = choice(
        &format!("say {CALL}{CALL} more"),
        json!({"parallel_tool_calls": false}),
    );
    assert_eq!(first["message"]["tool_calls"].as_array().unwrap().len(), 1);
    assert_eq!(first["finish_reason"], "tool_calls");
    let thought = json!({"chat_template_kwargs": {"enable_thinking": true}});
    let thought = choice(&format!("say {CALL}"), thought);
    assert_eq!(
        thought["message"]["reasoning_content"],
        format!("It asks: say {CALL}")
    );
    assert_eq!(thought["message"]["tool_calls"][0]["function"], function);
}

#[test]
fn what_is_no_call_stays_content() {
    let server = TestServer::start();
    let text = |question: &str, extra: Value| {
        let choice = server.ask(question, extra).json()["choices"][0].clone();
        assert!(choice["message"].get("tool_calls").is_none(), "{choice}");
        assert_eq!(choice["finish_reason"], "stop");
        choice["message"]["content"].as_str().unwrap().to_owned()
    };
    for words in [
        r#"<tool_call>{"name": "leave", "arguments": {}}</tool_call>"#,
        r#"<tool_call>{"name": "look"}</tool_call>"#,
        r#"a <tool_call>{"name": "look", "arguments": {}}"#,
        "a <tool_",
    ] {
        assert_eq!(text(&format!("say {words}"), with_tools(json!({}))), words);
    }
    assert_eq!(
        text(&format!("say {CALL}"), json!({})),
        CALL,
        "without tools"
    );
    let none = with_tools(json!({"tool_choice": "none"}));
    assert_eq!(text(&format!("say {CALL}"), none), CALL);
    let stopped = with_tools(json!({"stop": "sea"}));
    let held = text(&format!("say {CALL}"), stopped);
    assert_eq!(held, CALL.split_once("sea").unwrap().0);
}

#[test]
fn a_stream_holds_back_what_may_be_a_call_and_tells_a_call_whole() {
    let server = TestServer::start();
    let question = format!("say <b> I look.\n{CALL}");
    let mut body = with_tools(json!({"stream": true}));
    body["messages"] = json!([{"role": "user", "content": question}]);
    let chunks = server.stream(CHAT, &body);
    let deltas = || chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]);
    let content: Vec<&str> = deltas()
        .filter_map(|delta| delta["content"].as_str())
        .collect();
    assert_eq!(content.concat(), "<b> I look.");
    assert!(content.len() > 3, "text comes as it is made");
    let calls: Vec<&Value> = deltas()
        .filter_map(|delta| delta.get("tool_calls"))
        .collect();
    assert_eq!(calls.len(), 1);
    let call = &calls[0][0];
    assert_eq!(
        (&call["index"], &call["type"]),
        (&json!(0), &json!("function"))
    );
    assert_eq!(
        call["function"],
        json!({"name": "look", "arguments": ARGUMENTS})
    );
    let reasons: Vec<&str> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["finish_reason"].as_str())
        .collect();
    assert_eq!(reasons, ["tool_calls"]);
}

#[test]
fn calls_and_results_come_back_in_the_models_format() {
    let server = TestServer::start();
    // The model repeats all that stands between the question and its answer.
    let messages = json!([
        {"role": "user", "content": "say so"},
        {"role": "assistant", "content": null, "reasoning_content": "Look.", "tool_calls": [
            {"id": "call_1", "type": "function", "index": 0,
             "function": {"name": "look", "arguments": ARGUMENTS}},
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "deep <b>"},
    ]);
    let body = json!({"messages": messages, "tools": [], "tool_choice": "none"});
    let answer = server.post(CHAT, &body).json();
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(
        content,
        format!("so\n\n<think>\nLook.\n</think>\n\n{CALL}\n\n<tool_result>deep <b></tool_result>")
    );
    let tokens = |body: &Value| server.post(CHAT, body).json()["usage"]["prompt_tokens"].clone();
    let plain = json!({"messages": [{"role": "user", "content": "hello"}]});
    let mut declared = with_tools(json!({}));
    declared["messages"] = plain["messages"].clone();
    let count = |body: &Value| tokens(body).as_u64().unwrap();
    assert!(
        count(&declared) > count(&plain) + 20,
        "the declaration is part of the prompt"
    );
    declared["tool_choice"] = json!("none");
    assert_eq!(count(&declared), count(&plain));
}

#[test]
fn thinking_ends_where_its_budget_ends_and_the_answer_follows() {
    let server = TestServer::start();
    let ask = |budget: usize| {
        let body = json!({
            "chat_template_kwargs": {"enable_thinking": true}, "thinking_token_budget": budget,
        });
        server.ask("say 안녕", body).json()
    };
    let thought = "It asks: say 안녕";
    for budget in [0, 1, 4] {
        let answer = ask(budget);
        let message = &answer["choices"][0]["message"];
        assert_eq!(message["content"], "안녕");
        let reasoning = message["reasoning_content"].as_str().unwrap_or_default();
        assert!(thought.starts_with(reasoning) && reasoning.len() < thought.len());
        let details = &answer["usage"]["completion_tokens_details"];
        // The end of thinking is counted with it.
        assert_eq!(details["reasoning_tokens"], budget + 1);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
    let message = ask(1000)["choices"][0]["message"].clone();
    assert_eq!(message["reasoning_content"], thought);
    assert_eq!(message["content"], "안녕");
}
