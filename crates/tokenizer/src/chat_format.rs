//! Messages to the ids that a model is to continue: by the template that came with it, else in the built-in
//! format of its family. That of K-EXAONE is what this project trains on.

use crate::chat_family::{self, ChatFamily};
use crate::chat_template::{self, ChatOptions, Message};
use crate::error::MissingSpecial;
use crate::jinja::{ChatTemplate, Conversation, Json, TemplateError};
use crate::special::{THINK, THINK_END};
use crate::tokenizer::Tokenizer;
use serde_json::Map;

/// How a model is spoken to.
#[derive(Clone, Debug, Default)]
pub struct ChatFormat {
    own: Option<(ChatTemplate, Map<String, Json>)>,
    family: ChatFamily,
}

/// Messages could not be put into a model's format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// There is no template, and the tokens of the built-in format are not there.
    #[error("it has no chat template, and of the built-in format {0}")]
    NoFormat(#[from] MissingSpecial),
    /// The template failed.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// What a model is to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The conversation.
    pub ids: Vec<u32>,
    /// The token that ends reasoning, where the conversation ends in the midst of it.
    pub think_end: Option<u32>,
}

impl ChatFormat {
    /// K-EXAONE's.
    pub fn built_in() -> Self {
        ChatFormat::default()
    }

    /// That of a family, or of K-EXAONE for a vocabulary without the family's tokens.
    pub fn of_family(family: ChatFamily) -> Self {
        ChatFormat { own: None, family }
    }

    /// A model's own. `variables` are what its template knows beside messages and options: `bos_token`,
    /// `eos_token`.
    pub fn of_template(template: ChatTemplate, variables: Map<String, Json>) -> Self {
        ChatFormat {
            own: Some((template, variables)),
            family: ChatFamily::default(),
        }
    }

    /// Whether the model brought a template.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// The ids of a conversation. No content becomes a special token.
    ///
    /// # Errors
    /// If the model has no format, or its template refuses the conversation.
    pub fn prompt(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: &ChatOptions<'_>,
    ) -> Result<Prompt, ChatError> {
        let ids = match &self.own {
            None => match self.family.of_tokens(tokenizer) {
                ChatFamily::KExaone => chat_template::render(tokenizer, messages, options)?.ids,
                ChatFamily::Exaone4 => chat_family::exaone4(tokenizer, messages, options),
                ChatFamily::Exaone3 => chat_family::exaone3(tokenizer, messages, options),
            },
            Some((template, variables)) => {
                let mut conversation = Conversation::new(messages, options);
                conversation.variables.extend(variables.clone());
                template.encode(tokenizer, &conversation)?
            }
        };
        let [think, think_end] = [THINK, THINK_END].map(|token| tokenizer.id_of(token));
        let is_tag = |id: &&u32| Some(**id) == think || Some(**id) == think_end;
        let last = ids.iter().rev().find(is_tag).copied();
        let is_open = options.add_generation_prompt && last.is_some() && last == think;
        Ok(Prompt {
            think_end: think_end.filter(|_| is_open),
            ids,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool_call::ToolCall;
    use crate::train::Trainer;
    use serde_json::json;

    #[test]
    fn a_model_is_spoken_to_in_its_own_format_or_the_built_in_one() {
        let trainer = Trainer {
            vocab_size: 300,
            ..Trainer::default()
        };
        let tokenizer = trainer.train(["one two"], &mut |_| {}).unwrap();
        let messages = [Message::user("one <|user|>")];
        let options = |enable_thinking| ChatOptions {
            enable_thinking,
            add_generation_prompt: true,
            tools: &[],
        };
        let built_in = ChatFormat::built_in();
        let prompt = built_in
            .prompt(&tokenizer, &messages, &options(true))
            .unwrap();
        assert_eq!(prompt.think_end, tokenizer.id_of("</think>"));
        let prompt = built_in
            .prompt(&tokenizer, &messages, &options(false))
            .unwrap();
        assert_eq!(prompt.think_end, None);

        let source = "{{ bos_token }}{% for m in messages %}<|user|>{{ m.content }}{% endfor %}\
            {% if enable_thinking %}<think>{% endif %}";
        let mut variables = Map::new();
        variables.insert("bos_token".into(), "[BOS]".into());
        let own = ChatFormat::of_template(ChatTemplate::new(source).unwrap(), variables);
        let prompt = own.prompt(&tokenizer, &messages, &options(true)).unwrap();
        let text = tokenizer.decode(&prompt.ids, false);
        assert_eq!(text, "[BOS]<|user|>one <|user|><think>");
        let id = |token: &str| tokenizer.id_of(token).unwrap();
        let users = prompt.ids.iter().filter(|&&x| x == id("<|user|>")).count();
        assert_eq!(users, 1, "what a message spells is text");
        assert_eq!(prompt.think_end, Some(id("</think>")));
        let broken = ChatTemplate::new("{{ raise_exception('no') }}").unwrap();
        let broken = ChatFormat::of_template(broken, Map::new());
        let error = broken.prompt(&tokenizer, &messages, &options(true));
        assert!(error.unwrap_err().to_string().contains("no"));
    }

    #[test]
    fn tools_and_calls_go_through_either_format() {
        let trainer = Trainer {
            vocab_size: 300,
            ..Trainer::default()
        };
        let tokenizer = trainer.train(["one two"], &mut |_| {}).unwrap();
        let tools = [json!({"type": "function", "function": {"name": "look <|tool|>"}})];
        let options = ChatOptions {
            tools: &tools,
            ..ChatOptions::default()
        };
        let call = ToolCall {
            id: Some("c1".into()),
            name: "look".into(),
            arguments: json!({"at": "</think>"}).as_object().unwrap().clone(),
        };
        let mut result = Message::tool("deep");
        result.tool_call_id = Some("c1".into());
        let messages = [Message::assistant("").with_tool_calls(vec![call]), result];
        let text = |format: &ChatFormat| {
            let ids = format.prompt(&tokenizer, &messages, &options).unwrap().ids;
            let added = ids.iter().filter(|id| tokenizer.is_added(**id)).count();
            (tokenizer.decode(&ids, false), added)
        };
        let source = "{% for t in tools %}<|tool_declare|>{{ t | tojson }}{% endfor %}\
            {% for m in messages %}{% for c in m.tool_calls %}{{ c.id }} {{ c.function.name }}\
            {{ c.function.arguments | tojson }}{% endfor %}{{ m.tool_call_id }}{% endfor %}";
        let own = ChatFormat::of_template(ChatTemplate::new(source).unwrap(), Map::new());
        let declared = r#"{"type": "function", "function": {"name": "look <|tool|>"}}"#;
        let arguments = r#"{"at": "</think>"}"#;
        let expected = format!("<|tool_declare|>{declared}c1 look{arguments}c1");
        assert_eq!(text(&own), (expected, 1));
        let (built_in, added) = text(&ChatFormat::built_in());
        let call =
            format!(r#"<tool_call>{{"name": "look", "arguments": {arguments}}}</tool_call>"#);
        assert!(
            built_in.contains(&format!("<tool>{declared}</tool>")),
            "{built_in}"
        );
        assert!(built_in.contains(&call), "{built_in}");
        // Declaration, assistant, two tags of thinking, tool, and three ends of turns.
        assert_eq!(added, 8, "{built_in}");
    }
}
