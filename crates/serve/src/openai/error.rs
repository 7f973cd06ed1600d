//! OpenAI's error object, and what each failure is in HTTP.

use crate::engine_thread::StartError;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use infer::SubmitError;
use serde_json::{Value, json};

/// A refusal or a failure, as the client hears of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The field of the request that is to blame, such as `messages[0].content`.
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
}

impl ApiError {
    /// The request cannot be served as it is: 400, naming the field.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError {
            status: StatusCode::BAD_REQUEST,
            message: message.into(),
            param: Some(param.into()),
            code: None,
        }
    }

    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        ApiError {
            status,
            message: message.into(),
            param: None,
            code: Some(code),
        }
    }

    /// What the engine refused; `prompt` is the field that the prompt came from.
    pub(crate) fn from_start(error: StartError, prompt: &str) -> ApiError {
        let message = error.to_string();
        let unavailable = |code| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, &message);
        match error {
            StartError::Loading => unavailable("model_loading"),
            StartError::Unavailable { .. } | StartError::Failed => unavailable("engine_failed"),
            StartError::Refused(refusal) => match refusal {
                SubmitError::QueueFull { .. } => {
                    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message)
                }
                SubmitError::PromptTooLong { .. } => ApiError {
                    code: Some("context_length_exceeded"),
                    ..ApiError::invalid(prompt, message)
                },
                SubmitError::Sampling(sampling) => ApiError::invalid(sampling.field, message),
                SubmitError::NoTokens => ApiError::invalid("max_tokens", message),
                _ => ApiError::invalid(prompt, message),
            },
        }
    }

    /// The error object, as a body and as an event of a stream.
    pub(crate) fn to_json(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {
            "message": self.message, "type": kind, "param": self.param, "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.to_json())).into_response();
        let headers = response.headers_mut();
        if matches!(self.status.as_u16(), 429 | 503) {
            // An answer of a small model takes about a second; clients back off from there.
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}
