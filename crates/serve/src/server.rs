//! Bind, run, stop.
//!
//! The port is taken first, so that a taken one is told before minutes go into reading a model. While
//! the model is read, the page and `/health` answer already, and requests get 503.

use crate::api_keys::ApiKeys;
use crate::engine_thread::{EngineFactory, EngineHandle, LoadError};
use crate::openai::response::now;
use crate::page::{Examples, Page};
use crate::routes::App;
use axum::serve::ListenerExt;
use infer::SamplingParams;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokenizer::{ChatFormat, Tokenizer};
use tokio::sync::watch;

/// Where a server listens, and to whom.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// A name or address of this machine.
    pub host: String,
    /// 0 takes a free one.
    pub port: u16,
    /// Who may ask.
    pub api_keys: ApiKeys,
    /// A longer request is refused.
    pub max_body_bytes: usize,
    /// How long answers may go on after the first [`Shutdown::request`].
    pub drain: Duration,
}

impl Default for ServeConfig {
    /// For this machine only, at port 8000, without keys.
    fn default() -> ServeConfig {
        ServeConfig {
            host: "127.0.0.1".into(),
            port: 8000,
            api_keys: ApiKeys::none(),
            max_body_bytes: 4 << 20,
            drain: Duration::from_secs(10),
        }
    }
}

/// The model that a server answers with.
pub struct ServedModel {
    /// What clients call it.
    pub name: String,
    /// Its text.
    pub tokenizer: Arc<Tokenizer>,
    /// How it is spoken to.
    pub chat_format: ChatFormat,
    /// Tokens that end an answer.
    pub stop_ids: Vec<u32>,
    /// What holds where a request does not say; the seed of such a request is drawn.
    pub sampling: SamplingParams,
    /// What the page offers to ask.
    pub examples: Examples,
    /// Makes its engine: at the start, and again after a panic.
    pub engine: EngineFactory,
}

/// Why there is no server, or no longer.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Somebody else listens there.
    #[error(
        "port {port} of {host} is taken by another program; stop that program, or choose another \
         port with --port (0 takes any free one)"
    )]
    PortTaken {
        /// As asked for.
        host: String,
        /// As asked for.
        port: u16,
    },
    /// A low port.
    #[error("port {port} of {host} is not open to this user; choose one above 1023 with --port")]
    PortForbidden {
        /// As asked for.
        host: String,
        /// As asked for.
        port: u16,
    },
    /// No such address.
    #[error(
        "{host:?} is no address of this machine ({source}); use 127.0.0.1 for this machine only, or \
         0.0.0.0 for everybody who can reach it"
    )]
    NoSuchHost {
        /// As asked for.
        host: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system refused threads or sockets.
    #[error("the server could not run: {0}")]
    Io(#[from] std::io::Error),
    /// The model could not be made ready.
    #[error("{0}")]
    Load(LoadError),
}

/// Asks a server to stop; clones ask the same server.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<watch::Sender<u32>>);

impl Default for Shutdown {
    fn default() -> Shutdown {
        Shutdown::new()
    }
}

impl Shutdown {
    /// A handle for one server.
    pub fn new() -> Shutdown {
        Shutdown(Arc::new(watch::Sender::new(0)))
    }

    /// The first time: no new connections, and answers may end. The second time: answers are cut off.
    /// From any thread.
    pub fn request(&self) {
        self.0.send_modify(|times| *times += 1);
    }

    /// Returns when there have been so many requests.
    async fn requested(&self, times: u32) {
        // The sender is in `self`: the channel cannot close.
        let _ = self.0.subscribe().wait_for(|asked| *asked >= times).await;
    }
}

/// A server that has its port and does not answer yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    addr: SocketAddr,
    config: ServeConfig,
}

impl Server {
    /// Takes the port.
    ///
    /// # Errors
    /// When that is not possible, with what to do about it.
    pub fn bind(config: ServeConfig) -> Result<Server, ServeError> {
        let (host, port) = (config.host.clone(), config.port);
        let listener =
            TcpListener::bind((host.as_str(), port)).map_err(|source| match source.kind() {
                ErrorKind::AddrInUse => ServeError::PortTaken { host, port },
                ErrorKind::PermissionDenied => ServeError::PortForbidden { host, port },
                _ => ServeError::NoSuchHost { host, source },
            })?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        Ok(Server {
            listener,
            addr,
            config,
        })
    }

    /// Where a browser on this machine finds the page.
    pub fn url(&self) -> String {
        let mut addr = self.addr;
        if addr.ip().is_unspecified() {
            addr.set_ip(match addr {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        format!("http://{addr}")
    }

    /// Whether other machines can reach it.
    pub fn is_public(&self) -> bool {
        !self.addr.ip().is_loopback()
    }

    /// Makes the engine and answers until `shutdown` is asked for; `on_ready` is called once, when
    /// requests can run. Blocks.
    ///
    /// # Errors
    /// When the first engine cannot be made, or the system gives no threads.
    pub fn run(
        self,
        model: ServedModel,
        shutdown: &Shutdown,
        on_ready: impl FnOnce(),
    ) -> Result<(), ServeError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(4)
            .thread_name("serve")
            .enable_all()
            .build()?;
        let drain = self.config.drain;
        let ServedModel {
            name,
            tokenizer,
            chat_format,
            stop_ids,
            sampling,
            examples,
            engine,
        } = model;
        let (engine, first_load) = EngineHandle::spawn(engine)?;
        let app = App {
            engine: engine.clone(),
            page: Page::new(&name, &examples),
            model_name: name,
            tokenizer,
            chat_format,
            stop_ids,
            sampling,
            config: self.config,
            created: now(),
        };
        let result = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(self.listener)?;
            // A token is a small packet that should not wait for the next.
            let listener = listener.tap_io(|socket| {
                let _ = socket.set_nodelay(true);
            });
            let stop = shutdown.clone();
            let serving = axum::serve(listener, app.router())
                .with_graceful_shutdown(async move { stop.requested(1).await });
            let mut serving = tokio::spawn(serving.into_future());
            let loaded = tokio::select! {
                loaded = first_load => loaded.ok(),
                () = shutdown.requested(1) => None,
            };
            match loaded {
                Some(Ok(())) => on_ready(),
                Some(Err(error)) => return Err(ServeError::Load(error)),
                None => {}
            }
            shutdown.requested(1).await;
            tokio::select! {
                _ = &mut serving => return Ok(()),
                () = tokio::time::sleep(drain) => {}
                () = shutdown.requested(2) => {}
            }
            engine.cancel_all();
            // Clients that do not read their last words are not waited for.
            let _ = tokio::time::timeout(LAST_WORDS, serving).await;
            Ok(())
        });
        engine.stop();
        runtime.shutdown_timeout(LAST_WORDS);
        result
    }
}

/// For the end of a stream to reach its reader.
const LAST_WORDS: Duration = Duration::from_secs(2);
