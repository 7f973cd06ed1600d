//! A server on a free port, stopped when the test ends.

use crate::scripted_model::{Gate, ScriptedModel, TOKENIZER};
use dokja_serve::{
    EngineFactory, Examples, ServeConfig, ServeError, ServedModel, Server, Shutdown,
};
use infer::{Engine, EngineConfig, SamplingParams};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use tokenizer::ChatFormat;

pub(crate) const MODEL: &str = "scripted";

pub(crate) struct TestServer {
    pub(crate) url: String,
    pub(crate) shutdown: Shutdown,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

pub(crate) fn config() -> ServeConfig {
    ServeConfig {
        port: 0,
        ..ServeConfig::default()
    }
}

fn model(engine: EngineFactory) -> ServedModel {
    let special = TOKENIZER.specials().unwrap();
    ServedModel {
        name: MODEL.into(),
        tokenizer: TOKENIZER.clone(),
        chat_format: ChatFormat::built_in(),
        stop_ids: vec![special.endofturn, special.eos],
        sampling: SamplingParams {
            temperature: 1.0,
            ..SamplingParams::greedy()
        },
        examples: Examples {
            ko: vec!["say 안녕하세요".into(), "47 + 38은 얼마인가요?".into()],
            en: vec!["say hello".into()],
        },
        engine,
    }
}

/// Makes engines with a scripted model.
pub(crate) fn factory(gate: Gate, engine: EngineConfig) -> EngineFactory {
    Box::new(move || {
        let model = ScriptedModel::new(gate.clone());
        Ok(Engine::new(Box::new(model), engine.clone())?)
    })
}

impl TestServer {
    /// A server with nothing special about it, ready.
    pub(crate) fn start() -> TestServer {
        TestServer::start_with(config(), factory(Gate::open(), EngineConfig::default()))
    }

    /// A server whose model waits at the gate, ready.
    pub(crate) fn start_gated(gate: &Gate, engine: EngineConfig) -> TestServer {
        TestServer::start_with(config(), factory(gate.clone(), engine))
    }

    /// Returns when requests can run.
    pub(crate) fn start_with(config: ServeConfig, factory: EngineFactory) -> TestServer {
        let (ready, is_ready) = channel();
        let server = TestServer::begin(config, factory, move || ready.send(()).unwrap());
        is_ready.recv().expect("the engine is made");
        server
    }

    /// Returns at once.
    pub(crate) fn begin(
        config: ServeConfig,
        factory: EngineFactory,
        on_ready: impl FnOnce() + Send + 'static,
    ) -> TestServer {
        let server = Server::bind(config).expect("a free port");
        let (url, shutdown) = (server.url(), Shutdown::new());
        let handle = shutdown.clone();
        let run = move || server.run(model(factory), &handle, on_ready);
        TestServer {
            url,
            shutdown,
            thread: Some(std::thread::spawn(run)),
        }
    }

    /// Waits for the end that the test has asked for.
    pub(crate) fn join(mut self) -> Result<(), ServeError> {
        self.thread
            .take()
            .unwrap()
            .join()
            .expect("the server does not panic")
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.shutdown.request();
            self.shutdown.request();
            // A panic is told by the test that it made fail.
            let _ = thread.join();
        }
    }
}
