//! Several outboxes of one database: each is the tables of one schema.
//!
//! One session watches all of them: it listens, sleeps and leads for each ([`watch`]). It hands out the outboxes that need a look, by
//! a queue that is first in, first out. Each worker takes the next outbox, makes one pass there, and puts the outbox at the end of
//! the queue again. If others wait, a pass is short. So no outbox waits for another's backlog, and the number of connections depends
//! on the workers alone.
//!
//! An outbox is in one place at a time: in the queue, in the hands of a worker, or with the watch, which knows when it needs the next
//! look. So one worker of a process works on an outbox at a time, and this process counts as one worker there.
//!
//! If an outbox fails, it alone is put off. Whatever a session knew of it is forgotten.

mod outbox;
mod queue;
mod room_for_locks;
mod schemas;
mod source;
mod survey;
mod watch;
mod watched;

pub(super) use self::outbox::Outbox;
pub(crate) use self::queue::Queue;
pub(crate) use self::schemas::Schemas;
pub(crate) use self::source::SharedSource;
pub(crate) use self::watch::Watch;

/// In a session that serves several outboxes nobody waits long for a lock on one of them, because the others wait too.
pub(super) const SHORT_LOCK_TIMEOUT: &str = "SET lock_timeout = '200ms'";
