//! Tools in a request: those that the model may call, and calls that it made before.

use crate::openai::error::ApiError;
use crate::openai::fields::{Fields, mismatch};
use serde_json::{Map, Value, json};
use tokenizer::ToolCall;

/// What a request says of tools.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tools {
    /// As the chat format takes them; empty where the model is not to call any.
    pub(crate) list: Vec<Value>,
    /// Whether the answer ends with its first call.
    pub(crate) is_single: bool,
}

const MAX_TOOLS: usize = 128; // OpenAI's API reference
const MAX_NAME_BYTES: usize = 64; // the same

impl Tools {
    /// Reads `tools`, `tool_choice` and `parallel_tool_calls`.
    pub(crate) fn read(fields: &mut Fields) -> Result<Tools, ApiError> {
        let values = array(fields, "tools")?;
        let is_single = fields.bool("parallel_tool_calls")? == Some(false);
        if values.len() > MAX_TOOLS {
            let message = format!("tools has {} entries, at most {MAX_TOOLS}", values.len());
            return Err(ApiError::invalid("tools", message));
        }
        let mut list: Vec<Value> = Vec::with_capacity(values.len());
        for (index, value) in values.into_iter().enumerate() {
            let at = format!("tools[{index}]");
            let tool = tool(Fields::new(value, at.as_str())?)?;
            let name = &tool["function"]["name"];
            if list.iter().any(|other| other["function"]["name"] == *name) {
                let at = format!("{at}.function.name");
                let message = format!("{at} is {name}, and so is that of a tool before");
                return Err(ApiError::invalid(at, message));
            }
            list.push(tool);
        }
        match fields.take("tool_choice") {
            None => {}
            Some(choice) if choice == "auto" => {}
            // Of what is not declared nothing can be called.
            Some(choice) if choice == "none" => list.clear(),
            Some(_) => {
                let message = "tool_choice: only \"auto\" and \"none\" are supported; \
                               a call cannot be forced";
                return Err(ApiError::invalid("tool_choice", message));
            }
        }
        Ok(Tools { list, is_single })
    }

    /// What the tools are called.
    pub(crate) fn names(&self) -> Vec<String> {
        let names = self.list.iter();
        let names = names.filter_map(|tool| tool["function"]["name"].as_str());
        names.map(str::to_owned).collect()
    }
}

/// An array; nothing is an empty one.
fn array(fields: &mut Fields, name: &str) -> Result<Vec<Value>, ApiError> {
    match fields.take(name) {
        None => Ok(Vec::new()),
        Some(Value::Array(values)) => Ok(values),
        Some(other) => Err(mismatch(&fields.path(name), "an array", &other)),
    }
}

/// The function of a tool or of a call, which has no other type.
fn function(fields: &mut Fields) -> Result<Fields, ApiError> {
    fields.refuse(&[("type", &["\"function\""])])?;
    let path = fields.path("function");
    let missing = || ApiError::invalid(&path, format!("{path} is missing; give an object"));
    fields.object("function")?.ok_or_else(missing)
}

fn name(function: &mut Fields) -> Result<String, ApiError> {
    let path = function.path("name");
    let name = function.string("name")?.unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(is_plain) {
        let name: String = name.chars().take(MAX_NAME_BYTES).collect();
        let message = format!(
            "{path} is {name:?}, expected 1 to {MAX_NAME_BYTES} letters, digits, `_` or `-`"
        );
        return Err(ApiError::invalid(path, message));
    }
    Ok(name)
}

fn tool(mut fields: Fields) -> Result<Value, ApiError> {
    let mut function = function(&mut fields)?;
    fields.finish()?;
    let mut declared = Map::new();
    declared.insert("name".into(), name(&mut function)?.into());
    if let Some(description) = function.string("description")? {
        declared.insert("description".into(), description.into());
    }
    let path = function.path("parameters");
    match function.take("parameters") {
        None => {}
        Some(parameters) if parameters.is_object() => {
            declared.insert("parameters".into(), parameters);
        }
        Some(other) => return Err(mismatch(&path, "an object", &other)),
    }
    // That arguments follow their schema is not promised.
    function.refuse(&[("strict", &["false"])])?;
    function.finish()?;
    Ok(json!({ "type": "function", "function": declared }))
}

/// `tool_calls` of an assistant's message, as an answer has them.
pub(crate) fn calls(message: &mut Fields) -> Result<Vec<ToolCall>, ApiError> {
    let path = message.path("tool_calls");
    let calls = array(message, "tool_calls")?.into_iter().enumerate();
    calls
        .map(|(index, value)| call(Fields::new(value, format!("{path}[{index}]"))?))
        .collect()
}

fn call(mut fields: Fields) -> Result<ToolCall, ApiError> {
    fields.ignore(&["index"]);
    let id = fields.string("id")?;
    let mut function = function(&mut fields)?;
    fields.finish()?;
    let name = name(&mut function)?;
    let path = function.path("arguments");
    let text = function.string("arguments")?.unwrap_or_default();
    let arguments = serde_json::from_str(&text).map_err(|error| {
        let message = format!("{path}: expected a JSON object as a string: {error}");
        ApiError::invalid(&path, message)
    })?;
    function.finish()?;
    Ok(ToolCall {
        id,
        name,
        arguments,
    })
}
