//! The binary outbox: the relay as a process
