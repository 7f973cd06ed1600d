//! Which path does what.
//!
//! | path | |
//! |---|---|
//! | `GET /` | the chat page |
//! | `GET /health` | 200 when requests can run, 503 otherwise |
//! | `GET /v1/models`, `GET /v1/models/{model}` | the one model |
//! | `POST /v1/chat/completions` | an answer to a conversation |
//! | `POST /v1/completions` | a text that goes on |
//!
//! Keys, where there are any, guard `/v1`.

use crate::engine_thread::{EngineHandle, Status};
use crate::generation::{AnswerText, Generation, Piece};
use crate::openai::chat::ChatRequest;
use crate::openai::completions::{CompletionRequest, Prompt};
use crate::openai::error::ApiError;
use crate::openai::params::Params;
use crate::openai::response::{Api, Envelope};
use crate::openai::tools::Tools;
use crate::page::Page;
use crate::server::ServeConfig;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::stream;
use infer::{SamplingParams, TokenBudget};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokenizer::chat::ChatOptions;
use tokenizer::{ChatError, ChatFormat, Tokenizer};

/// What all requests share.
pub(crate) struct App {
    pub(crate) engine: EngineHandle,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) chat_format: ChatFormat,
    pub(crate) model_name: String,
    pub(crate) stop_ids: Vec<u32>,
    pub(crate) sampling: SamplingParams,
    pub(crate) page: Page,
    pub(crate) config: ServeConfig,
    pub(crate) created: u64,
}

/// What the engine starts from, and what is to be found in its answer.
#[derive(Default)]
struct Start {
    prompt_ids: Vec<u32>,
    /// As in [`AnswerText::new`].
    think_end: Option<u32>,
    budget: Option<TokenBudget>,
    tools: Tools,
}

/// Between two signs of life while nothing is generated, so that proxies do not hang up.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

impl App {
    pub(crate) fn router(self) -> Router {
        let app = Arc::new(self);
        let guarded = Router::new()
            .route("/v1/models", get(models))
            .route("/v1/models/{*model}", get(model))
            .route("/v1/chat/completions", post(chat_completions))
            .route("/v1/completions", post(completions))
            .layer(middleware::from_fn_with_state(app.clone(), require_key));
        Router::new()
            .route("/", get(page))
            .route("/health", get(health))
            .merge(guarded)
            .fallback(not_found)
            .method_not_allowed_fallback(wrong_method)
            .with_state(app)
    }

    fn card(&self) -> Value {
        let max_model_len = match self.engine.status() {
            Status::Ready { max_len } => Some(max_len),
            Status::Loading | Status::Failed { .. } => None,
        };
        json!({
            "id": self.model_name, "object": "model", "created": self.created,
            "owned_by": "dokja", "max_model_len": max_model_len,
        })
    }

    fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        let served = &self.model_name;
        if asked.is_none_or(|asked| asked == served) {
            return Ok(());
        }
        let message = format!("there is no such model here; this server has {served:?}");
        Err(ApiError {
            param: Some("model".into()),
            ..ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message)
        })
    }

    /// Starts the engine on ids and returns its answer in the form that was asked for.
    async fn answer(&self, api: Api, start: Start, params: Params) -> Result<Response, ApiError> {
        let Start {
            prompt_ids,
            think_end,
            budget,
            tools,
        } = start;
        let prompt_tokens = prompt_ids.len();
        let with_logprobs = params.sampling.logprobs.is_some();
        let request = infer::Request {
            prompt_ids,
            max_tokens: params.max_tokens.unwrap_or(usize::MAX),
            sampling: params.sampling,
            stop_ids: match params.ignore_eos {
                true => Vec::new(),
                false => self.stop_ids.clone(),
            },
            budget,
        };
        let prompt_field = match api {
            Api::Chat => "messages",
            Api::Completions => "prompt",
        };
        let running = self.engine.submit(request).await;
        let running = running.map_err(|error| ApiError::from_start(error, prompt_field))?;
        let envelope = Envelope::new(api, &self.model_name, params.include_usage);
        let text = AnswerText::new(self.tokenizer.clone(), params.stop, think_end, &tools);
        let mut generation = Generation::new(envelope.id.clone(), running, text, prompt_tokens);
        if params.stream {
            return Ok(stream_events(envelope, generation));
        }
        let mut answer = Piece::default();
        while let Some(piece) = generation.next().await {
            answer.append(piece?);
        }
        Ok(Json(envelope.whole(&answer, generation.usage(), with_logprobs)).into_response())
    }
}

async fn chat_completions(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = read_json(request, app.config.max_body_bytes).await?;
    let ChatRequest {
        model,
        messages,
        tools,
        enable_thinking,
        thinking_token_budget,
        params,
    } = ChatRequest::parse(body, &app.sampling)?;
    app.check_model(model.as_deref())?;
    let refused = |error: ChatError| {
        let (code, message) = match &error {
            ChatError::NoFormat(_) => (
                "no_chat_format",
                format!("this model has no chat format ({error}); use /v1/completions"),
            ),
            ChatError::Template(_) => (
                "chat_template",
                format!("the model's chat template does not take these messages: {error}"),
            ),
        };
        ApiError::new(StatusCode::BAD_REQUEST, code, message)
    };
    let (tokenizer, format) = (app.tokenizer.clone(), app.chat_format.clone());
    let rendered = off_the_loop(move || {
        let options = ChatOptions {
            enable_thinking,
            add_generation_prompt: true,
            tools: &tools.list,
        };
        let prompt = format.prompt(&tokenizer, &messages, &options);
        prompt.map(|prompt| (prompt, tools))
    });
    let (prompt, tools) = rendered.await?.map_err(refused)?;
    let budget = match (thinking_token_budget, prompt.think_end) {
        (None, _) => None,
        (Some(max_tokens), Some(end_id)) => Some(TokenBudget { max_tokens, end_id }),
        (Some(_), None) => {
            let message = "thinking_token_budget is only allowed where the model thinks: \
                           with \"chat_template_kwargs\": {\"enable_thinking\": true}, \
                           and a chat format that begins an answer with thinking";
            return Err(ApiError::invalid("thinking_token_budget", message));
        }
    };
    let start = Start {
        prompt_ids: prompt.ids,
        think_end: prompt.think_end,
        budget,
        tools,
    };
    app.answer(Api::Chat, start, params).await
}

async fn completions(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let body = read_json(request, app.config.max_body_bytes).await?;
    let CompletionRequest {
        model,
        prompt,
        params,
    } = CompletionRequest::parse(body, &app.sampling)?;
    app.check_model(model.as_deref())?;
    let ids = match prompt {
        Prompt::Ids(ids) => ids,
        Prompt::Text(text) => {
            let tokenizer = app.tokenizer.clone();
            off_the_loop(move || tokenizer.encode(&text)).await?
        }
    };
    let start = Start {
        prompt_ids: ids,
        ..Start::default()
    };
    app.answer(Api::Completions, start, params).await
}

/// Runs what takes long for a long input beside the loop that serves the sockets.
async fn off_the_loop<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "a request failed");
        let message = "the server failed while it read the request";
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    })
}

/// The body as JSON, if it says that it is and is not too large.
async fn read_json(request: Request, limit: usize) -> Result<Value, ApiError> {
    check_headers(request.headers(), limit)?;
    let body = axum::body::to_bytes(request.into_body(), limit).await;
    // Reading fails where the body is too long, and where the client is gone and hears nothing anyway.
    let body = body.map_err(|_| too_large(limit))?;
    serde_json::from_slice(&body).map_err(|error| {
        let message = format!("the request is not valid JSON: {error}");
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message)
    })
}

/// Refuses a body before it is read. That it must call itself JSON keeps the forms of foreign pages out.
fn check_headers(headers: &HeaderMap, limit: usize) -> Result<(), ApiError> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let kind = header(header::CONTENT_TYPE).and_then(|kind| kind.split(';').next());
    if !kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        let message = "send the request with the header Content-Type: application/json";
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(ApiError::new(status, "not_json", message));
    }
    let announced = header(header::CONTENT_LENGTH).and_then(|len| len.parse::<u64>().ok());
    match announced {
        Some(len) if len > limit as u64 => Err(too_large(limit)),
        _ => Ok(()),
    }
}

fn too_large(limit: usize) -> ApiError {
    let message = format!("the request is larger than {limit} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
}

/// Server-sent events: an opening, a chunk for each piece, the usage where asked for, `[DONE]`.
fn stream_events(envelope: Envelope, generation: Generation) -> Response {
    struct State {
        envelope: Envelope,
        generation: Generation,
        ready: VecDeque<String>,
        is_over: bool,
    }
    let ready = envelope.opening().iter().map(Value::to_string).collect();
    let state = State {
        envelope,
        generation,
        ready,
        is_over: false,
    };
    let events = stream::unfold(state, |mut state| async move {
        if state.ready.is_empty() && !state.is_over {
            match state.generation.next().await {
                Some(Ok(piece)) => {
                    state
                        .ready
                        .push_back(state.envelope.chunk(&piece).to_string());
                    if piece.finish.is_some() {
                        let closing = state.envelope.closing(state.generation.usage());
                        state.ready.extend(closing.iter().map(Value::to_string));
                    }
                }
                Some(Err(error)) => state.ready.push_back(error.to_json().to_string()),
                None => {
                    state.ready.push_back("[DONE]".into());
                    state.is_over = true;
                }
            }
        }
        let data = state.ready.pop_front()?;
        Some((Ok::<_, Infallible>(Event::default().data(data)), state))
    });
    let mut response = Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response();
    // nginx would otherwise collect the answer before it passes it on.
    response
        .headers_mut()
        .insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

async fn require_key(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if !app.config.api_keys.accept(request.headers()) {
        let message = "this server asks for a key: Authorization: Bearer KEY";
        return Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "invalid_api_key",
            message,
        ));
    }
    Ok(next.run(request).await)
}

async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [app.card()]}))
}

async fn model(
    State(app): State<Arc<App>>,
    Path(asked): Path<String>,
) -> Result<Json<Value>, ApiError> {
    app.check_model(Some(&asked))?;
    Ok(Json(app.card()))
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let load = app.engine.load();
    let (status, name, error) = match app.engine.status() {
        Status::Ready { .. } => (StatusCode::OK, "ok", None),
        Status::Loading => (StatusCode::SERVICE_UNAVAILABLE, "loading", None),
        Status::Failed { reason } => (StatusCode::SERVICE_UNAVAILABLE, "failed", Some(reason)),
    };
    let body = json!({
        "status": name, "model": app.model_name, "error": error,
        "num_requests_running": load.num_running, "num_requests_waiting": load.num_waiting,
        "draft_accepted": load.draft_accepted, "draft_proposed": load.draft_proposed,
    });
    (status, Json(body)).into_response()
}

async fn page(State(app): State<Arc<App>>) -> Response {
    let mut response = Html(app.page.html.clone()).into_response();
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&app.page.policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    for (name, value) in [
        (header::CACHE_CONTROL, "no-cache"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn not_found(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    let message = format!(
        "there is nothing at {path}; the API is at /v1/chat/completions, /v1/completions and /v1/models"
    );
    ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    let message = format!("{path} does not take {method}; the header Allow says what it takes");
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        message,
    )
}
