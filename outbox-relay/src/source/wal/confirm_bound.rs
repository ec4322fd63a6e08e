//! Up to which position the relay may confirm to the server that all is sent.
//!
//! The table stores a bound for it. If a slot is ahead of the bound, it is not the one that was read.
//!
//! A bound is written before the server hears of a position below it. It lies ahead of the end of the WAL, so that the relay seldom
//! writes one. The server hears of no position that lies before the writing of its bound. So whatever a crash or a failover leaves
//! of the WAL: if a slot has heard of a position, its bound is there too.

use super::position::Lsn;

/// How far ahead a bound lies at least.
const LEAST_AHEAD: u64 = 64 << 10;

#[derive(Debug, Default)]
pub(crate) struct ConfirmBound {
    /// Positions up to this one may be confirmed.
    bound: Lsn,
    /// A further bound, and where its writing ended, beyond the first.
    next: Option<(Lsn, Lsn)>,
    /// Where the WAL ended when the last bound was written.
    end: Lsn,
}

impl ConfirmBound {
    /// Begins with a bound that is on the disk.
    pub(crate) fn at(bound: Lsn) -> Self {
        Self { bound, next: None, end: bound }
    }

    /// Returns what the relay may confirm if everything up to here is sent.
    pub(crate) fn confirmable(&mut self, sent: Lsn) -> Lsn {
        if let Some((bound, _)) = self.next.take_if(|(_, written)| *written <= sent) {
            self.bound = bound;
        }
        sent.min(self.bound)
    }

    /// Returns whether the relay needs a further bound to confirm this.
    pub(crate) fn is_short_of(&self, sent: Lsn) -> bool {
        self.bound < sent && self.next.is_none()
    }

    /// Returns a bound for a WAL that ends here: ahead by twice as much as came since the last bound.
    pub(crate) fn ahead_of(&mut self, end: Lsn) -> Lsn {
        let came = end.saturating_sub(self.end);
        self.end = end;
        end + came.saturating_mul(2).clamp(LEAST_AHEAD, 1 << 30)
    }

    /// Notes that a bound was written, before this place in the WAL.
    pub(crate) fn wrote(&mut self, bound: Lsn, written: Lsn) {
        if written <= self.bound {
            // It may be lower than the last one, if that was written in a burst.
            self.bound = bound;
        } else {
            let (next, _) = self.next.get_or_insert((bound, written));
            *next = bound.min(*next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_confirmed_before_its_bound_lies_behind_it() {
        let mut bound = ConfirmBound::at(100);
        assert_eq!((bound.confirmable(90), bound.is_short_of(90)), (90, false));
        assert_eq!((bound.confirmable(150), bound.is_short_of(150)), (100, true));
        bound.wrote(300, 200);
        assert_eq!((bound.confirmable(150), bound.is_short_of(150)), (100, false));
        assert_eq!(bound.confirmable(210), 210);
        bound.wrote(500, 290);
        assert_eq!((bound.confirmable(450), bound.confirmable(600)), (450, 500));
    }

    #[test]
    fn nothing_is_confirmed_beyond_the_bound_that_was_written_last() {
        let mut bound = ConfirmBound::at(1_000);
        bound.wrote(600, 500);
        assert_eq!(bound.confirmable(800), 600);
        bound.wrote(2_000, 700);
        bound.wrote(900, 800);
        assert_eq!(bound.confirmable(1_500), 900);
    }
}
