//! A chat template of any text is refused in one error, or it renders a conversation or refuses it, within
//! its limits of steps, time, output and memory, and what it encodes to are ids of the tokenizer.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use std::sync::LazyLock;
use tokenizer::{ChatTemplate, Conversation, Tokenizer, Trainer};

/// Of two renderings, since one that was given up may still be at its last step: what a template may make of
/// strings and lists (`tokenizer::jinja`, 256 MiB), and a few values of the longest that there may be.
const BASE_BYTES: usize = 1 << 30;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let trainer = Trainer {
        vocab_size: 380,
        ..Trainer::default()
    };
    let trained = trainer.train(["the sea, the sea"], &mut |_| {});
    trained.expect("a tokenizer")
});

static CONVERSATION: LazyLock<Conversation> = LazyLock::new(|| Conversation {
    messages: vec![
        json!({ "role": "system", "content": " Be brief.\n" }),
        json!({ "role": "user", "content": "Where is the sea? <|user|>" }),
        json!({ "role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": [
            { "type": "function", "function": { "name": "look", "arguments": { "at": "the sea" } } },
        ]}),
        json!({ "role": "tool", "content": "[1, 2.5, null]" }),
    ],
    tools: Some(vec![json!({ "type": "function", "function": {
        "name": "look", "description": "Looks.",
        "parameters": { "type": "object", "properties": { "at": { "type": "string" } } },
    }})]),
    documents: None,
    add_generation_prompt: true,
    variables: [
        ("bos_token".to_string(), Value::from("[BOS]")),
        ("enable_thinking".to_string(), Value::from(true)),
    ]
    .into_iter()
    .collect(),
    now: Some(1_709_211_909),
});

fuzz_target!(init: start(), |bytes: &[u8]| {
    let Ok(source) = std::str::from_utf8(bytes) else {
        return;
    };
    dokja_fuzz::budget::within(BASE_BYTES, bytes.len(), || read(source));
});

fn read(source: &str) {
    let Ok(template) = ChatTemplate::new(source) else {
        return;
    };
    if let Ok(ids) = template.encode(&TOKENIZER, &CONVERSATION) {
        assert!(ids.iter().all(|id| (*id as usize) < TOKENIZER.vocab_size()));
    }
}

/// Plants seeds. A panic of the engine ends its own thread, which the library tells as an error; only panics
/// elsewhere are findings.
fn start() {
    LazyLock::force(&TOKENIZER);
    LazyLock::force(&CONVERSATION);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() != Some("chat template") {
            hook(panic);
        }
    }));
    dokja_fuzz::plant(&seeds());
}

/// Those of the tests of the crate, and some that end only at a limit.
fn seeds() -> Vec<Vec<u8>> {
    let recorded = include_str!("../../crates/tokenizer/tests/data/templates.json");
    let recorded: Value = serde_json::from_str(recorded).expect("valid JSON");
    let recorded = recorded["templates"].as_array().expect("a list").iter();
    let recorded =
        recorded.map(|template| template["source"].as_str().expect("a text").to_string());
    let others = [
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}<|endofturn|>\n{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = ns.x * 2 %}{% endfor %}{{ ns.x }}",
        "{{ messages[-1].content[1:-1] ~ tools | tojson(indent=2) ~ '%5d' | format(3) }}",
        "{{ raise_exception(strftime_now('%Y-%m-%d')) }}",
    ];
    let all = recorded.chain(others.map(str::to_string));
    all.map(String::into_bytes).collect()
}
