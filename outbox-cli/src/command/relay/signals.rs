//! The signals that stop the relay.

use std::io;
#[cfg(unix)]
use std::task::Poll;

/// A signal that stops the relay.
#[derive(Debug, Clone, Copy)]
pub(super) struct StopSignal {
    pub(super) name: &'static str,
    /// The exit code of a process that this signal ended.
    pub(super) exit_code: i32,
}

#[cfg(unix)]
const TERMINATE: StopSignal = StopSignal { name: "SIGTERM", exit_code: 143 };
const INTERRUPT: StopSignal = StopSignal { name: "SIGINT", exit_code: 130 };

/// Receives the signals from now on, instead of letting them end the process.
#[cfg(unix)]
pub(super) struct StopSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl StopSignals {
    pub(super) fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) -> StopSignal {
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
pub(super) struct StopSignals {
    interrupt: tokio::signal::windows::CtrlC,
}

#[cfg(windows)]
impl StopSignals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { interrupt: tokio::signal::windows::ctrl_c()? })
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) -> StopSignal {
        self.interrupt.recv().await;
        INTERRUPT
    }
}
