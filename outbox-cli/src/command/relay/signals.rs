//! The signals that stop the relay.

use std::io;
#[cfg(unix)]
use std::task::Poll;

/// One that was received.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received {
    pub(super) name: &'static str,
    /// That of a process which this signal ended.
    pub(super) exit_code: i32,
}

#[cfg(unix)]
const TERMINATE: Received = Received { name: "SIGTERM", exit_code: 143 };
const INTERRUPT: Received = Received { name: "SIGINT", exit_code: 130 };

/// The signals that are received from now on.
#[cfg(unix)]
pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) -> Received {
        std::future::poll_fn(|context| {
            if self.terminate.poll_recv(context).is_ready() {
                return Poll::Ready(TERMINATE);
            }
            self.interrupt.poll_recv(context).map(|_| INTERRUPT)
        })
        .await
    }
}

/// The signals that are received from now on.
#[cfg(windows)]
pub(super) struct Signals {
    interrupt: tokio::signal::windows::CtrlC,
}

#[cfg(windows)]
impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { interrupt: tokio::signal::windows::ctrl_c()? })
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) -> Received {
        self.interrupt.recv().await;
        INTERRUPT
    }
}
