//! The engine in a thread of its own, fed by channels.
//!
//! The thread makes its engine through a factory, steps it while there is work, and sends each event
//! to the request it belongs to. A panic of the engine ends the requests that were running, and the
//! factory makes another engine; the listener never notices.
//!
//! A request is named by a ticket that is never used again, so that an abort that arrives after a
//! restart cannot reach a stranger.

use infer::{Engine, Event, Request, RequestId, SubmitError};
use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

/// Why an engine could not be made; whatever reading a model may bring up.
pub type LoadError = Box<dyn std::error::Error + Send + Sync>;

/// Makes the engine: at the start, and again after a panic.
pub type EngineFactory = Box<dyn FnMut() -> Result<Engine, LoadError> + Send>;

/// Whether requests can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// The factory is at work.
    Loading,
    /// Requests run.
    Ready { max_len: usize },
    /// The factory failed; it is tried again from time to time.
    Failed { reason: String },
}

/// What a request hears of the engine.
#[derive(Debug)]
pub(crate) enum Update {
    /// A token, or the end.
    Event(Event),
    /// The engine panicked.
    Failed,
    /// The server is stopping.
    Cancelled,
}

/// Why a request did not start.
#[derive(Clone, Debug, PartialEq, Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Refused(SubmitError),
    #[error("the model is being loaded; try again in a moment")]
    Loading,
    #[error("the model could not be loaded: {reason}")]
    Unavailable { reason: String },
    #[error("the engine failed and is being restarted; try again")]
    Failed,
}

/// The engine's load, as of its last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) num_running: usize,
    pub(crate) num_waiting: usize,
    /// Guessed tokens since the engine was made, and those of them that were right.
    pub(crate) draft_proposed: u64,
    pub(crate) draft_accepted: u64,
}

enum Command {
    Submit {
        ticket: u64,
        request: Request,
        reply: oneshot::Sender<Result<(), StartError>>,
        updates: mpsc::UnboundedSender<Update>,
    },
    Abort {
        ticket: u64,
    },
    CancelAll,
    Stop,
}

#[derive(Debug)]
struct Shared {
    status: Mutex<Status>,
    load: Mutex<Load>,
    next_ticket: AtomicU64,
}

impl Shared {
    fn set(&self, status: Status) {
        // A status is replaced as a whole: a panic while it was held leaves it valid.
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    fn set_load(&self, load: Load) {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner) = load;
    }
}

/// The way to the engine; clones share it.
#[derive(Clone)]
pub(crate) struct EngineHandle {
    commands: Sender<Command>,
    shared: Arc<Shared>,
}

/// A request that the engine has accepted. Dropping it aborts the request.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) updates: mpsc::UnboundedReceiver<Update>,
    ticket: u64,
    commands: Sender<Command>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nobody listens any more when the thread has ended.
        let _ = self.commands.send(Command::Abort {
            ticket: self.ticket,
        });
    }
}

impl EngineHandle {
    /// Starts the thread. The receiver hears whether the first engine could be made.
    pub(crate) fn spawn(
        factory: EngineFactory,
    ) -> std::io::Result<(EngineHandle, oneshot::Receiver<Result<(), LoadError>>)> {
        let (commands, inbox) = channel();
        let (loaded, first_load) = oneshot::channel();
        let shared = Arc::new(Shared {
            status: Mutex::new(Status::Loading),
            load: Mutex::new(Load::default()),
            next_ticket: AtomicU64::new(0),
        });
        let thread = Thread {
            factory,
            inbox,
            shared: shared.clone(),
            live: HashMap::new(),
        };
        std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || thread.run(loaded))?;
        Ok((EngineHandle { commands, shared }, first_load))
    }

    pub(crate) fn status(&self) -> Status {
        self.shared
            .status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn load(&self) -> Load {
        let load = self.shared.load.lock();
        *load.unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a request, or says why not.
    pub(crate) async fn submit(&self, request: Request) -> Result<Running, StartError> {
        match self.status() {
            Status::Ready { .. } => {}
            Status::Loading => return Err(StartError::Loading),
            Status::Failed { reason } => return Err(StartError::Unavailable { reason }),
        }
        let ticket = self.shared.next_ticket.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let (sender, updates) = mpsc::unbounded_channel();
        // Made before the request is sent: if this future is dropped, the abort follows it.
        let running = Running {
            updates,
            ticket,
            commands: self.commands.clone(),
        };
        let command = Command::Submit {
            ticket,
            request,
            reply,
            updates: sender,
        };
        self.commands
            .send(command)
            .map_err(|_| StartError::Failed)?;
        answer.await.map_err(|_| StartError::Failed)??;
        Ok(running)
    }

    /// Ends every request that runs or waits.
    pub(crate) fn cancel_all(&self) {
        let _ = self.commands.send(Command::CancelAll);
    }

    /// Ends the thread after its current step.
    pub(crate) fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
    }
}

struct Thread {
    factory: EngineFactory,
    inbox: Receiver<Command>,
    shared: Arc<Shared>,
    live: HashMap<RequestId, (u64, mpsc::UnboundedSender<Update>)>,
}

/// Whether the thread goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Continue,
    Stop,
}

impl Thread {
    fn run(mut self, loaded: oneshot::Sender<Result<(), LoadError>>) {
        let mut loaded = Some(loaded);
        let mut pause = FIRST_PAUSE;
        loop {
            self.shared.set(Status::Loading);
            let started = Instant::now();
            let made = catch_unwind(AssertUnwindSafe(&mut self.factory))
                .unwrap_or_else(|panic| Err(panic_message(&*panic).into()));
            let mut engine = match made {
                Ok(engine) => engine,
                Err(error) => {
                    if let Some(loaded) = loaded.take() {
                        let _ = loaded.send(Err(error));
                        return;
                    }
                    tracing::error!(%error, "the engine could not be restarted");
                    self.shared.set(Status::Failed {
                        reason: error.to_string(),
                    });
                    if self.refuse_for(pause) == Flow::Stop {
                        return;
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    continue;
                }
            };
            self.shared.set(Status::Ready {
                max_len: engine.max_len(),
            });
            if let Some(loaded) = loaded.take() {
                let _ = loaded.send(Ok(()));
            }
            tracing::info!(secs = started.elapsed().as_secs_f64(), "engine ready");
            match catch_unwind(AssertUnwindSafe(|| self.drive(&mut engine))) {
                Ok(()) => return,
                Err(panic) => {
                    tracing::error!(panic = panic_message(&*panic), "the engine panicked");
                    // Dropping what panicked may panic again; it must not end the thread.
                    let _ = catch_unwind(AssertUnwindSafe(|| drop(engine)));
                    // Whoever hears of the failure and asks again is told to wait.
                    self.shared.set(Status::Loading);
                    self.shared.set_load(Load::default());
                    for (_, (_, updates)) in self.live.drain() {
                        let _ = updates.send(Update::Failed);
                    }
                    pause = FIRST_PAUSE;
                }
            }
        }
    }

    /// Steps the engine until it is told to stop.
    fn drive(&mut self, engine: &mut Engine) {
        loop {
            if self.take_commands(engine) == Flow::Stop {
                return;
            }
            for event in engine.step() {
                let id = event.id;
                let is_last = event.finish_reason.is_some();
                let Some((_, updates)) = self.live.get(&id) else {
                    continue;
                };
                let is_heard = updates.send(Update::Event(event)).is_ok();
                if is_last || !is_heard {
                    self.live.remove(&id);
                    engine.abort(id);
                }
            }
            self.publish_load(engine);
        }
    }

    /// Obeys all commands that are there; waits for one when there is nothing else to do.
    fn take_commands(&mut self, engine: &mut Engine) -> Flow {
        loop {
            let command = if engine.is_idle() {
                self.inbox.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                self.inbox.try_recv()
            };
            match command {
                Ok(Command::Submit {
                    ticket,
                    request,
                    reply,
                    updates,
                }) => {
                    let result = engine.submit(request);
                    let result = result.map(|id| {
                        self.live.insert(id, (ticket, updates));
                    });
                    self.publish_load(engine);
                    // The requester may be gone; its abort is on the way.
                    let _ = reply.send(result.map_err(StartError::Refused));
                }
                Ok(Command::Abort { ticket }) => {
                    let id = self
                        .live
                        .iter()
                        .find(|(_, (t, _))| *t == ticket)
                        .map(|(id, _)| *id);
                    if let Some(id) = id {
                        self.live.remove(&id);
                        engine.abort(id);
                        self.publish_load(engine);
                    }
                }
                Ok(Command::CancelAll) => {
                    for (id, (_, updates)) in self.live.drain() {
                        let _ = updates.send(Update::Cancelled);
                        engine.abort(id);
                    }
                    self.publish_load(engine);
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return Flow::Stop,
                Err(TryRecvError::Empty) => return Flow::Continue,
            }
        }
    }

    /// Refuses requests until it is time to try the factory again.
    fn refuse_for(&mut self, pause: Duration) -> Flow {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(left) {
                Ok(Command::Submit { reply, .. }) => {
                    let _ = reply.send(Err(StartError::Failed));
                }
                Ok(Command::Abort { .. } | Command::CancelAll) => {}
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return Flow::Stop,
                Err(RecvTimeoutError::Timeout) => return Flow::Continue,
            }
        }
    }

    fn publish_load(&self, engine: &Engine) {
        let stats = engine.stats();
        self.shared.set_load(Load {
            num_running: stats.num_running,
            num_waiting: stats.num_waiting,
            draft_proposed: stats.draft_proposed,
            draft_accepted: stats.draft_accepted,
        });
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
