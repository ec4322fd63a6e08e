//! The signals that stop the relay and a replay.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
#[cfg(unix)]
use std::task::Poll;

/// A signal that stops the relay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StopSignal {
    pub(crate) name: &'static str,
    /// The exit code of a process that this signal ended.
    pub(crate) exit_code: i32,
}

#[cfg(unix)]
const TERMINATE: StopSignal = StopSignal { name: "SIGTERM", exit_code: 143 };
const INTERRUPT: StopSignal = StopSignal { name: "SIGINT", exit_code: 130 };

/// Receives the signals from now on, instead of letting them end the process.
#[cfg(unix)]
pub(crate) struct StopSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl StopSignals {
    pub(crate) fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) -> StopSignal {
        std::future::poll_fn(|context| {
            if self.terminate.poll_recv(context).is_ready() {
                return Poll::Ready(TERMINATE);
            }
            self.interrupt.poll_recv(context).map(|_| INTERRUPT)
        })
        .await
    }
}

/// Receives the signals from now on, instead of letting them end the process.
#[cfg(windows)]
pub(crate) struct StopSignals {
    interrupt: tokio::signal::windows::CtrlC,
}

#[cfg(windows)]
impl StopSignals {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { interrupt: tokio::signal::windows::ctrl_c()? })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) -> StopSignal {
        self.interrupt.recv().await;
        INTERRUPT
    }
}

impl StopSignals {
    /// From now on the first signal sets this, and the second one ends the process.
    pub(crate) fn note(stopped: &'static AtomicBool) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut signals = runtime.block_on(async { Self::new() })?;
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                signals.next().await;
                stopped.store(true, Ordering::Relaxed);
                std::process::exit(signals.next().await.exit_code)
            })
        })?;
        Ok(())
    }
}
