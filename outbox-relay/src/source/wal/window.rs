//! What was received and is not settled, and up to where everything is.

use std::collections::VecDeque;

use diesel_outbox_core::SourceError;

use super::decode::{Insert, Message};
use super::place::{Lsn, Part};
use crate::source::row::StoredRow;

#[derive(Default)]
pub(super) struct Window {
    /// The ticket of the oldest row here; each later one has the next.
    first: u64,
    rows: VecDeque<Received>,
    /// How many of them are not settled.
    unsettled: usize,
    /// The next ticket to be given to the relay.
    next: u64,
    marks: VecDeque<Mark>,
    /// Up to where all has been settled.
    confirmed: Lsn,
    /// The transaction that the oldest row belongs to.
    open: Option<Open>,
    /// Of the transaction that was interrupted, what is not to be sent again.
    part: Option<Part>,
    skipping: u64,
    /// Up to where all has come.
    end: Lsn,
    /// The transaction of which the end has not come, and how many of its events have.
    receiving: Option<(Lsn, u64)>,
}

/// A row that came; nothing of it once it is settled, as one that is older may keep it here for long.
type Received = Option<Insert>;

/// From so many rows on nothing more is received. What is settled behind a row that is not costs about a hundred bytes, where each has
/// a transaction of its own, and a look where rows are given again: 50 MB at most, and some milliseconds. Others' events go on for
/// as many rows while one partition is stuck.
const MOST_ROWS: usize = 1 << 19;

/// What lies between two rows.
struct Mark {
    /// The ticket of the row after it.
    before: u64,
    what: What,
}

enum What {
    /// A transaction begins, of which so many events have been sent before.
    Begin {
        commit: Lsn,
        sent: u64,
    },
    End(Lsn),
}

struct Open {
    commit: Lsn,
    /// The ticket of its first row, were they all here.
    first: i128,
}

impl Window {
    /// Begins at a place, after what was sent of the transaction that was interrupted.
    pub(super) fn after(start: Lsn, part: Option<Part>) -> Self {
        Self { confirmed: start, end: start, part, ..Self::default() }
    }

    /// Takes what comes next. Where something is read again, that is from the place up to which all has come.
    pub(super) fn receive(&mut self, message: Message) {
        let before = self.received();
        match message {
            Message::Insert(_) if self.skipping > 0 => self.skipping -= 1,
            Message::Insert(insert) => {
                self.rows.push_back(Some(insert));
                self.unsettled += 1;
                self.receiving.iter_mut().for_each(|(_, events)| *events += 1);
            }
            // It is read again from its beginning.
            Message::Begin(commit) if self.receiving.is_some_and(|(receiving, _)| receiving == commit) => {
                self.skipping = self.receiving.map_or(0, |(_, events)| events);
            }
            Message::Begin(commit) => {
                let part = self.part.take_if(|part| part.commit == commit);
                let sent = part.map_or(0, |part| part.sent);
                self.skipping = sent;
                self.receiving = Some((commit, sent));
                self.marks.push_back(Mark { before, what: What::Begin { commit, sent } });
            }
            // It comes before a transaction that is read again.
            Message::End(lsn) if self.receiving.is_some_and(|(commit, _)| lsn <= commit) => {}
            Message::End(lsn) => {
                (self.skipping, self.receiving) = (0, None);
                self.end = self.end.max(lsn);
                // Many may come while one row waits, and transactions without any.
                while self.marks.back().is_some_and(|last| last.before == before) {
                    self.marks.pop_back();
                }
                self.marks.push_back(Mark { before, what: What::End(lsn) });
            }
        }
        self.go_on();
    }

    pub(super) fn has_more(&self) -> bool {
        self.next < self.received()
    }

    /// Whether nothing more is to be received until something is settled.
    pub(super) fn is_full(&self) -> bool {
        self.rows.len() >= MOST_ROWS
    }

    /// The ticket of the next row to be given.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// How many rows have come.
    pub(super) fn received(&self) -> u64 {
        self.first + self.rows.len() as u64
    }

    /// The next row that was not given, or not settled since it was to be given again.
    pub(super) fn give(&mut self) -> Result<Option<StoredRow>, SourceError> {
        self.give_before(u64::MAX)
    }

    /// The same, if its ticket is below this one.
    pub(super) fn give_before(&mut self, end: u64) -> Result<Option<StoredRow>, SourceError> {
        while self.next < end
            && let Some(received) = self.find(self.next)
        {
            let ticket = self.next;
            let row = received.as_ref().map(|insert| insert.row(ticket)).transpose()?;
            self.next += 1;
            if row.is_some() {
                return Ok(row);
            }
        }
        Ok(None)
    }

    /// What is not settled is given again: whether there is any.
    pub(super) fn give_again(&mut self) -> bool {
        let again = self.next > self.first;
        self.next = self.first;
        again
    }

    pub(super) fn row(&self, ticket: u64) -> Result<StoredRow, SourceError> {
        match self.find(ticket) {
            Some(Some(insert)) => insert.row(ticket),
            _ => Err(SourceError::new("the relay settled something that it was not given")),
        }
    }

    pub(super) fn settle(&mut self, ticket: u64) {
        let received = self.index(ticket).and_then(|index| self.rows.get_mut(index));
        if received.and_then(Option::take).is_some() {
            self.unsettled -= 1;
        }
        if ticket == self.first {
            self.go_on();
        }
    }

    /// Up to where all has come: from here the log is to be read on.
    pub(super) fn end(&self) -> Lsn {
        self.end
    }

    /// How many events have come of a transaction of which more are to come.
    pub(super) fn receiving(&self) -> u64 {
        self.receiving.map_or(0, |(_, events)| events)
    }

    /// Up to where the server may forget.
    pub(super) fn confirmed(&self) -> Lsn {
        self.confirmed
    }

    /// How much of a transaction has been sent that is not sent as a whole.
    pub(super) fn part(&self) -> Option<Part> {
        let Some(open) = &self.open else {
            // It may still come.
            return self.part.filter(|part| self.confirmed <= part.commit);
        };
        let sent = u64::try_from(i128::from(self.first) - open.first).ok().filter(|sent| *sent > 0)?;
        Some(Part { commit: open.commit, sent })
    }

    /// How many rows are not settled, and the oldest of them.
    pub(super) fn unsettled(&self) -> (usize, Option<&Insert>) {
        (self.unsettled, self.rows.front().and_then(Option::as_ref))
    }

    fn index(&self, ticket: u64) -> Option<usize> {
        usize::try_from(ticket.checked_sub(self.first)?).ok()
    }

    fn find(&self, ticket: u64) -> Option<&Received> {
        self.rows.get(self.index(ticket)?)
    }

    /// Forgets what is settled, and confirms what lies before the oldest row that is not.
    fn go_on(&mut self) {
        loop {
            while self.marks.front().is_some_and(|mark| mark.before <= self.first)
                && let Some(mark) = self.marks.pop_front()
            {
                match mark.what {
                    What::Begin { commit, sent } => {
                        self.open = Some(Open { commit, first: i128::from(mark.before) - i128::from(sent) });
                    }
                    What::End(lsn) => (self.confirmed, self.open) = (self.confirmed.max(lsn), None),
                }
            }
            if !self.rows.front().is_some_and(Option::is_none) {
                break;
            }
            self.rows.pop_front();
            self.first += 1;
        }
        self.next = self.next.max(self.first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::wal::decode::tests::insert;

    fn window(messages: impl IntoIterator<Item = Message>) -> Window {
        let mut window = Window::default();
        messages.into_iter().for_each(|message| window.receive(message));
        window
    }

    /// A transaction that ends at this place, just after its commit, with events of these numbers.
    fn transaction(end: Lsn, seqs: impl IntoIterator<Item = i64>) -> Vec<Message> {
        let rows = seqs.into_iter().map(|seq| Message::Insert(insert(seq)));
        [Message::Begin(end - 1)].into_iter().chain(rows).chain([Message::End(end)]).collect()
    }

    fn given(window: &mut Window) -> Vec<(u64, i64)> {
        std::iter::from_fn(|| window.give().unwrap()).map(|row| (row.ticket, row.seq)).collect()
    }

    #[test]
    fn a_place_is_confirmed_when_all_before_it_is_settled() {
        let mut window = window(transaction(10, 1..=2).into_iter().chain(transaction(20, 3..=3)));
        assert_eq!(given(&mut window), [(0, 1), (1, 2), (2, 3)]);
        for (ticket, confirmed) in [(2, 0), (0, 0), (1, 20)] {
            window.settle(ticket);
            assert_eq!(window.confirmed(), confirmed, "after {ticket}");
        }
    }

    #[test]
    fn what_the_server_tells_between_transactions_is_confirmed_where_nothing_waits() {
        let mut window = window([Message::End(5)]);
        assert_eq!(window.confirmed(), 5);
        transaction(10, 1..=1)
            .into_iter()
            .chain([Message::End(15)])
            .for_each(|message| window.receive(message));
        assert_eq!(window.confirmed(), 5);
        assert_eq!(given(&mut window), [(0, 1)]);
        window.settle(0);
        assert_eq!(window.confirmed(), 15);
    }

    #[test]
    fn what_is_not_settled_is_given_again_and_nothing_else() {
        let mut window = window(transaction(10, 1..=4));
        given(&mut window);
        [0, 2].into_iter().for_each(|ticket| window.settle(ticket));
        window.give_again();
        assert_eq!(given(&mut window), [(1, 2), (3, 4)]);
    }

    /// Else one partition that is stuck keeps the payloads of all others.
    #[test]
    fn of_what_is_settled_behind_a_row_that_is_not_nothing_is_kept_but_that() {
        let mut window = window(transaction(10, 1..=4));
        given(&mut window);
        [1, 2, 2].into_iter().for_each(|ticket| window.settle(ticket));
        assert_eq!(window.rows.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, false, true]);
        let (unsettled, oldest) = window.unsettled();
        assert_eq!((unsettled, oldest.map(|insert| insert.row(0).unwrap().seq)), (2, Some(1)));
        assert!(window.row(1).is_err());
    }

    #[test]
    fn a_window_is_full_until_its_oldest_row_is_settled() {
        let most = MOST_ROWS as i64;
        let mut window = window(transaction(10, 1..=most));
        assert!(window.is_full() && window.has_more());
        while window.give().unwrap().is_some() {}
        (1..most as u64).for_each(|ticket| window.settle(ticket));
        assert!(window.is_full() && !window.has_more());
        window.settle(0);
        assert!(!window.is_full());
        assert_eq!((window.confirmed(), window.unsettled().0), (10, 0));
    }

    #[test]
    fn a_transaction_goes_on_where_it_was_interrupted() {
        let messages = || transaction(10, 1..=2).into_iter().chain(transaction(20, 3..=7));
        let mut interrupted = window(messages().take(8));
        given(&mut interrupted);
        assert_eq!(interrupted.part(), None);
        [0, 1, 2, 3, 5].into_iter().for_each(|ticket| interrupted.settle(ticket));
        assert_eq!((interrupted.confirmed(), interrupted.part()), (10, Some(Part { commit: 19, sent: 2 })));

        let mut next = Window::after(10, interrupted.part());
        messages().for_each(|message| next.receive(message));
        assert_eq!(given(&mut next), [(0, 1), (1, 2), (2, 5), (3, 6), (4, 7)]);
        [0, 1, 2].into_iter().for_each(|ticket| next.settle(ticket));
        assert_eq!(next.part(), Some(Part { commit: 19, sent: 3 }));
        [3, 4].into_iter().for_each(|ticket| next.settle(ticket));
        assert_eq!((next.confirmed(), next.part()), (20, None));
    }

    #[test]
    fn what_was_sent_of_a_transaction_is_known_until_it_comes_again() {
        let part = Some(Part { commit: 19, sent: 2 });
        let mut window = Window::after(10, part);
        assert_eq!((window.confirmed(), window.part()), (10, part));
        window.receive(Message::End(15));
        assert_eq!((window.confirmed(), window.part()), (15, part));
        transaction(20, 1..=3).into_iter().for_each(|message| window.receive(message));
        assert_eq!((window.confirmed(), window.part()), (15, part));
        assert_eq!(given(&mut window), [(0, 3)]);
        window.settle(0);
        assert_eq!((window.confirmed(), window.part()), (20, None));
        // One that does not come again, as the place was kept before the server was told.
        let mut window = Window::after(10, part);
        window.receive(Message::End(25));
        assert_eq!(window.part(), None);
    }

    #[test]
    fn transactions_without_rows_leave_nothing_behind() {
        let mut window = window(transaction(10, 1..=1));
        (2..100)
            .for_each(|n| transaction(10 * n, []).into_iter().for_each(|message| window.receive(message)));
        assert_eq!((window.confirmed(), window.marks.len()), (0, 1));
        window.settle(0);
        assert_eq!(window.confirmed(), 990);
    }

    #[test]
    fn a_transaction_that_is_read_again_from_its_beginning_goes_on_where_its_rows_ended() {
        for (part, first) in [(None, 3), (Some(Part { commit: 19, sent: 2 }), 5)] {
            let again = || transaction(20, 3..=9);
            let mut window = Window::after(10, part);
            // Two readers end within it, the second before it has come as far as the first.
            again().into_iter().take(6).for_each(|message| window.receive(message));
            for before in [11, 19] {
                window.receive(Message::End(before));
            }
            again().into_iter().take(3).for_each(|message| window.receive(message));
            assert_eq!(window.end(), 10);
            again().into_iter().for_each(|message| window.receive(message));
            transaction(30, 10..=10).into_iter().for_each(|message| window.receive(message));
            let given = given(&mut window);
            assert_eq!(
                given.iter().map(|(_, seq)| *seq).collect::<Vec<_>>(),
                (first..=10).collect::<Vec<_>>()
            );
            assert_eq!(window.end(), 30);

            window.settle(0);
            let sent = part.map_or(1, |part| part.sent + 1);
            assert_eq!((window.confirmed(), window.part()), (10, Some(Part { commit: 19, sent })));
            given.iter().for_each(|(ticket, _)| window.settle(*ticket));
            assert_eq!((window.confirmed(), window.part()), (30, None));
        }
    }
}
