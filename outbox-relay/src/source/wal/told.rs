//! Up to where the server may be told that all is sent. The table has a bound for it, so that a slot that is ahead of the bound
//! is known to be another one.
//!
//! A bound is written before the server is told of a place below it. It lies ahead of the log's end, so that it is written seldom,
//! and no place is told that lies before the writing of its bound: whatever a crash or a failover leaves of the log, a slot
//! that has heard of a place has its bound beside it.

use super::place::Lsn;

/// How far ahead a bound lies at least.
const LEAST_AHEAD: u64 = 64 << 10;

#[derive(Debug, Default)]
pub(super) struct Told {
    /// Places up to this one may be told.
    bound: Lsn,
    /// A further bound, and where its writing ended, beyond the first.
    next: Option<(Lsn, Lsn)>,
    /// Where the log ended when a bound was written last.
    end: Lsn,
}

impl Told {
    /// With a bound that is on the disk.
    pub(super) fn within(bound: Lsn) -> Self {
        Self { bound, next: None, end: bound }
    }

    /// What may be told of a place up to which all is sent.
    pub(super) fn may_be(&mut self, confirmed: Lsn) -> Lsn {
        if let Some((bound, _)) = self.next.take_if(|(_, written)| *written <= confirmed) {
            self.bound = bound;
        }
        confirmed.min(self.bound)
    }

    /// Whether a further bound is needed for this place.
    pub(super) fn is_short_of(&self, confirmed: Lsn) -> bool {
        self.bound < confirmed && self.next.is_none()
    }

    /// A bound for a log that ends here: ahead by twice as much as came since the last.
    pub(super) fn bound_ahead(&mut self, end: Lsn) -> Lsn {
        let came = end.saturating_sub(self.end);
        self.end = end;
        end + came.saturating_mul(2).clamp(LEAST_AHEAD, 1 << 30)
    }

    /// A bound has been written, before this place.
    pub(super) fn wrote(&mut self, bound: Lsn, written: Lsn) {
        if written <= self.bound {
            // Lower than the last one perhaps, if that was written in a burst.
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
    fn no_place_is_told_before_its_bound_lies_behind_it() {
        let mut told = Told::within(100);
        assert_eq!((told.may_be(90), told.is_short_of(90)), (90, false));
        assert_eq!((told.may_be(150), told.is_short_of(150)), (100, true));
        told.wrote(300, 200);
        assert_eq!((told.may_be(150), told.is_short_of(150)), (100, false));
        assert_eq!(told.may_be(210), 210);
        told.wrote(500, 290);
        assert_eq!((told.may_be(450), told.may_be(600)), (450, 500));
    }

    #[test]
    fn no_place_is_told_beyond_the_bound_that_was_written_last() {
        let mut told = Told::within(1_000);
        told.wrote(600, 500);
        assert_eq!(told.may_be(800), 600);
        told.wrote(2_000, 700);
        told.wrote(900, 800);
        assert_eq!(told.may_be(1_500), 900);
    }
}
