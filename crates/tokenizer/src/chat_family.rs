//! The chat formats of EXAONE 4.0 and of EXAONE 3.x, for models whose files bring no template.
//!
//! ```text
//! 4.0  [|system|]\n{content}[|endofturn|]\n        with tools: {content}\n\n{tools}, or {tools} alone
//!      [|user|]\n{content}[|endofturn|]\n
//!      [|assistant|]\n<think>\n\n</think>\n\n{content}\n<tool_call>{..}</tool_call>\n..[|endofturn|]\n
//!      [|tool|]\n<tool_result>{"result": content}</tool_result>\n..[|endofturn|]\n
//!      to generate, thinking:      [|assistant|]\n<think>\n
//!      to generate, not thinking:  [|assistant|]\n<think>\n\n</think>\n\n
//!
//! 3.x  [|system|]{content}[|endofturn|]\n          first, empty where there is none
//!      [|user|]{content}\n
//!      [|assistant|]{content}[|endofturn|]\n
//!      to generate:  [|assistant|]
//! ```
//!
//! Reasoning of earlier turns is not written in either. 3.x neither thinks nor knows tools: what tools
//! answered is written as `[|tool|]` turns, and their declaration is left out. EXAONE 4.5 has the tokens and the
//! format of K-EXAONE (`chat_template`).
//!
//! Contents are text and nothing else, as there. A marker that the vocabulary has no token for is text.
//! The sentences around the declaration of tools are this project's; the headline and the tags are the
//! published ones.
//!
//! Source: the published model cards, and the ports of both formats to other engines.

use crate::chat_template::{ChatOptions, Message, Role};
use crate::special::{THINK, THINK_END};
use crate::tokenizer::Tokenizer;
use crate::tool_call::python_json;
use serde_json::{Value, json};

/// Which built-in format a model without a template is spoken to in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChatFamily {
    /// K-EXAONE and EXAONE 4.5, and what this project trains.
    #[default]
    KExaone,
    /// EXAONE 4.0.
    Exaone4,
    /// EXAONE 3.0 and 3.5.
    Exaone3,
}

/// Ends a turn in EXAONE 3.x and 4.0: the token that stops generation there.
pub const END_OF_TURN: &str = "[|endofturn|]";

const SYSTEM: &str = "[|system|]";
const USER: &str = "[|user|]";
const ASSISTANT: &str = "[|assistant|]";
const TOOL: &str = "[|tool|]";

impl ChatFamily {
    /// The family whose tokens the vocabulary has: a model of EXAONE 3.x or 4.0 in architecture, but with the
    /// tokens of K-EXAONE, is spoken to as that.
    pub(crate) fn of_tokens(self, tokenizer: &Tokenizer) -> ChatFamily {
        match tokenizer.id_of(END_OF_TURN) {
            Some(_) => self,
            None => ChatFamily::KExaone,
        }
    }
}

/// A conversation in the format of EXAONE 4.0.
pub(crate) fn exaone4(
    tokenizer: &Tokenizer,
    messages: &[Message],
    options: &ChatOptions<'_>,
) -> Vec<u32> {
    let mut writer = Writer::new(tokenizer);
    let tools = (!options.tools.is_empty()).then(|| declaration(options.tools));
    let opens = messages.first().is_some_and(|m| m.role == Role::System);
    if let Some(tools) = tools.as_ref().filter(|_| !opens) {
        writer.turn(SYSTEM, tools);
    }
    let is_tool = |at: usize| messages.get(at).is_some_and(|m| m.role == Role::Tool);
    for (index, message) in messages.iter().enumerate() {
        match message.role {
            Role::System => match tools.as_ref().filter(|_| index == 0) {
                Some(tools) => writer.turn(SYSTEM, &format!("{}\n\n{tools}", message.content)),
                None => writer.turn(SYSTEM, &message.content),
            },
            Role::User => writer.turn(USER, &message.content),
            Role::Assistant => {
                writer.marker(ASSISTANT);
                writer.text.push('\n');
                writer.no_thinking();
                writer.text.push_str(&message.content);
                for (at, call) in message.tool_calls.iter().enumerate() {
                    if at > 0 || !message.content.is_empty() {
                        writer.text.push('\n');
                    }
                    writer.text.push_str(&call.to_text());
                }
                writer.end_turn();
            }
            Role::Tool => {
                if index == 0 || !is_tool(index - 1) {
                    writer.marker(TOOL);
                }
                let result = python_json(&json!({ "result": message.content }));
                writer.text.push_str("\n<tool_result>");
                writer.text.push_str(&result);
                writer.text.push_str("</tool_result>");
                if !is_tool(index + 1) {
                    writer.end_turn();
                }
            }
        }
    }
    if options.add_generation_prompt {
        writer.marker(ASSISTANT);
        writer.text.push('\n');
        match options.enable_thinking {
            true => {
                writer.marker(THINK);
                writer.text.push('\n');
            }
            false => writer.no_thinking(),
        }
    }
    writer.finish()
}

/// A conversation in the format of EXAONE 3.x.
pub(crate) fn exaone3(
    tokenizer: &Tokenizer,
    messages: &[Message],
    options: &ChatOptions<'_>,
) -> Vec<u32> {
    let mut writer = Writer::new(tokenizer);
    if messages.first().is_none_or(|m| m.role != Role::System) {
        writer.marker(SYSTEM);
        writer.end_turn();
    }
    for message in messages {
        writer.marker(match message.role {
            Role::System => SYSTEM,
            Role::User => USER,
            Role::Assistant => ASSISTANT,
            Role::Tool => TOOL,
        });
        writer.text.push_str(&message.content);
        match message.role {
            Role::User => writer.text.push('\n'),
            _ => writer.end_turn(),
        }
    }
    if options.add_generation_prompt {
        writer.marker(ASSISTANT);
    }
    writer.finish()
}

fn declaration(tools: &[Value]) -> String {
    let mut text =
        "# Available Tools\nThese functions can be called, one or several at a time, where they \
         help to answer the user. Each is described in JSON between <tool> and </tool>:\n"
            .to_owned();
    for tool in tools {
        text.push_str(&format!("<tool>{}</tool>\n", python_json(tool)));
    }
    text.push_str(
        "\nTo call a function, write a JSON object with its name and its arguments between <tool_call> and \
         </tool_call>:\n<tool_call>{\"name\": function_name, \"arguments\": {argument_name: value}}</tool_call>",
    );
    text
}

/// Collects text and encodes it where a token ends it.
struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    text: String,
    ids: Vec<u32>,
}

impl Writer<'_> {
    fn new(tokenizer: &Tokenizer) -> Writer<'_> {
        Writer {
            tokenizer,
            text: String::new(),
            ids: Vec::new(),
        }
    }

    fn flush(&mut self) {
        self.ids.extend(self.tokenizer.encode_ordinary(&self.text));
        self.text.clear();
    }

    fn marker(&mut self, marker: &str) {
        match self.tokenizer.id_of(marker) {
            Some(id) => {
                self.flush();
                self.ids.push(id);
            }
            None => self.text.push_str(marker),
        }
    }

    fn end_turn(&mut self) {
        self.marker(END_OF_TURN);
        self.text.push('\n');
    }

    fn turn(&mut self, role: &str, content: &str) {
        self.marker(role);
        self.text.push('\n');
        self.text.push_str(content);
        self.end_turn();
    }

    fn no_thinking(&mut self) {
        self.marker(THINK);
        self.text.push_str("\n\n");
        self.marker(THINK_END);
        self.text.push_str("\n\n");
    }

    fn finish(mut self) -> Vec<u32> {
        self.flush();
        self.ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat_format::ChatFormat;
    use crate::special::AddedToken;
    use crate::tool_call::ToolCall;
    use crate::train::Trainer;

    /// Bytes, and the given tokens.
    fn tokenizer(tokens: &[&str]) -> Tokenizer {
        let special = tokens.iter().map(|token| AddedToken::new(*token)).collect();
        let trainer = Trainer {
            vocab_size: 300,
            special_tokens: Some(special),
            ..Trainer::default()
        };
        let text = "[|user|]\n<think>\n\n</think>\n\n[|endofturn|]\n".repeat(9);
        trainer.train([text], &mut |_| {}).unwrap()
    }

    const TOKENS: [&str; 7] = [SYSTEM, USER, ASSISTANT, TOOL, END_OF_TURN, THINK, THINK_END];

    fn options(enable_thinking: bool) -> ChatOptions<'static> {
        ChatOptions {
            enable_thinking,
            add_generation_prompt: true,
            tools: &[],
        }
    }

    /// The text of a prompt, and how many of its tokens are no text.
    fn prompt(family: ChatFamily, messages: &[Message], options: &ChatOptions) -> (String, usize) {
        let tokenizer = tokenizer(&TOKENS);
        let format = ChatFormat::of_family(family);
        let ids = format.prompt(&tokenizer, messages, options).unwrap().ids;
        let added = ids.iter().filter(|id| tokenizer.is_added(**id)).count();
        (tokenizer.decode(&ids, false), added)
    }

    #[test]
    fn exaone_4_is_spoken_to_as_published() {
        let messages = [
            Message::system("Stay concise."),
            Message::user("Hi [|endofturn|]"),
            Message::assistant("Hello!").with_reasoning("not written"),
            Message::user("Again"),
        ];
        let turns = "[|system|]\nStay concise.[|endofturn|]\n[|user|]\nHi [|endofturn|][|endofturn|]\n\
             [|assistant|]\n<think>\n\n</think>\n\nHello![|endofturn|]\n[|user|]\nAgain[|endofturn|]\n\
             [|assistant|]\n<think>\n";
        let of = |thinking| prompt(ChatFamily::Exaone4, &messages, &options(thinking));
        assert_eq!(of(true), (turns.to_owned(), 12));
        assert_eq!(of(false), (format!("{turns}\n</think>\n\n"), 13));

        let tokenizer = tokenizer(&TOKENS);
        let format = ChatFormat::of_family(ChatFamily::Exaone4);
        let end = |thinking| {
            let prompt = format.prompt(&tokenizer, &messages, &options(thinking));
            prompt.unwrap().think_end
        };
        assert_eq!(end(true), tokenizer.id_of(THINK_END));
        assert_eq!(end(false), None);
    }

    #[test]
    fn exaone_4_has_its_tools_in_the_system_turn() {
        let tools = [json!({"type": "function", "function": {"name": "get_weather"}})];
        let options = ChatOptions {
            tools: &tools,
            ..options(false)
        };
        let call = ToolCall {
            id: None,
            name: "get_weather".into(),
            arguments: json!({"location": "Seoul"}).as_object().unwrap().clone(),
        };
        let messages = [
            Message::user("Weather?"),
            Message::assistant("").with_tool_calls(vec![call]),
            Message::tool("Sunny"),
            Message::tool("12"),
        ];
        let (text, _) = prompt(ChatFamily::Exaone4, &messages, &options);
        let declared =
            "<tool>{\"type\": \"function\", \"function\": {\"name\": \"get_weather\"}}</tool>\n\n";
        assert!(
            text.starts_with("[|system|]\n# Available Tools\n"),
            "{text}"
        );
        assert!(text.contains(declared), "{text}");
        let turns = "[|endofturn|]\n[|user|]\nWeather?[|endofturn|]\n[|assistant|]\n<think>\n\n</think>\n\n\
             <tool_call>{\"name\": \"get_weather\", \"arguments\": {\"location\": \"Seoul\"}}</tool_call>\
             [|endofturn|]\n[|tool|]\n<tool_result>{\"result\": \"Sunny\"}</tool_result>\n\
             <tool_result>{\"result\": \"12\"}</tool_result>[|endofturn|]\n\
             [|assistant|]\n<think>\n\n</think>\n\n";
        assert!(text.ends_with(turns), "{text}");
        let with_system = [&[Message::system("Stay concise.")], &messages[..]].concat();
        let (text, _) = prompt(ChatFamily::Exaone4, &with_system, &options);
        assert!(
            text.starts_with("[|system|]\nStay concise.\n\n# Available Tools\n"),
            "{text}"
        );
        assert_eq!(text.matches("# Available Tools").count(), 1);
    }

    #[test]
    fn exaone_3_is_spoken_to_as_published_and_does_not_think() {
        let messages = [
            Message::system("Be kind."),
            Message::user("Hi"),
            Message::assistant("Hello!").with_reasoning("not written"),
            Message::user("<think>"),
        ];
        let turns = "[|user|]Hi\n[|assistant|]Hello![|endofturn|]\n[|user|]<think>\n[|assistant|]";
        for thinking in [true, false] {
            let of = |messages| prompt(ChatFamily::Exaone3, messages, &options(thinking));
            let system = "[|system|]Be kind.[|endofturn|]\n";
            assert_eq!(of(&messages), (format!("{system}{turns}"), 7));
            let system = "[|system|][|endofturn|]\n";
            assert_eq!(of(&messages[1..]), (format!("{system}{turns}"), 7));
        }
    }

    #[test]
    fn a_vocabulary_with_the_tokens_of_k_exaone_is_spoken_to_as_k_exaone() {
        let trainer = Trainer {
            vocab_size: 300,
            ..Trainer::default()
        };
        let tokenizer = trainer.train(["one two"], &mut |_| {}).unwrap();
        let messages = [Message::user("one")];
        for family in [ChatFamily::Exaone4, ChatFamily::Exaone3] {
            let format = ChatFormat::of_family(family);
            let prompt = format.prompt(&tokenizer, &messages, &options(true));
            assert_eq!(
                tokenizer.decode(&prompt.unwrap().ids, false),
                "<|user|>\none<|endofturn|>\n<|assistant|>\n<think>\n"
            );
        }
    }

    #[test]
    fn a_marker_without_a_token_is_text() {
        let tokenizer = tokenizer(&[END_OF_TURN]);
        let messages = [Message::user("Hi")];
        let ids = exaone4(&tokenizer, &messages, &options(false));
        let text = "[|user|]\nHi[|endofturn|]\n[|assistant|]\n<think>\n\n</think>\n\n";
        assert_eq!(tokenizer.decode(&ids, false), text);
        assert_eq!(ids.iter().filter(|id| tokenizer.is_added(**id)).count(), 1);
    }
}
