/// The error of an inbox's effect that ignored the end of its transaction.
pub const ROLLED_BACK: &str = "the database has rolled back the transaction in which the event was handled, probably to end a deadlock, \
                               and the effect ignored that error: return it instead, so that the event is handled again";
