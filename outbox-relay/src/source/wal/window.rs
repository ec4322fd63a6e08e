//! What was received and is not settled, and the position up to which everything is.
//!
//! There is one encoding of a position, [`Position`]: before it lies all that ends up to `start`, and of the transaction that
//! commits at `part.commit` the first `part.events` events. The window has a position at which receiving goes on (`received`) and
//! one at each mark. A mark has the ticket of the row that comes next, and the position there.
//!
//! Why the position of the oldest row is right. Rows come in the order of their commits, and their tickets have no gaps. A mark is
//! set before the first row of a transaction and at the end of one, so the rows from one mark to the next belong to one transaction
//! and follow each other in it. So the position before such a row is the mark's, plus as many events as there are tickets in
//! between. If two marks have the same ticket, no row lies between them, and the later one replaces the earlier: it says all that
//! the earlier one says, and more. A row leaves the window when it and all before it are settled. So everything before the oldest
//! row is settled, and its position may be stored. It never goes back, because tickets and ends only rise.
//!
//! Why nothing is lost or sent twice if a transaction is read again from its beginning, by another reader or another relay. It is
//! the one whose commit `received.part` has, whether this window received that part or an earlier relay sent it. The server decodes
//! a transaction's events in the same order each time. So the first `part.events` of them are skipped, and the next one is the
//! first that has not come. It follows the one before, so no mark is set. On the second reading, only ends before its commit and
//! transactions without rows come before the transaction, and they leave the part as it is: all others ended before `start`, from
//! where the WAL is read. If one had rows all the same, they would be given, and so would the whole transaction after it.

use std::collections::VecDeque;

use diesel_outbox_core::SourceError;

use super::decode::{Insert, Message};
use super::position::{Lsn, Position, TransactionPart};
use crate::source::row::StoredRow;

/// What was received and is not settled.
#[derive(Default)]
pub(crate) struct Window {
    /// The ticket of the oldest row here. Each later row has the next ticket.
    first: u64,
    rows: VecDeque<ReceivedRow>,
    /// How many of them are not settled.
    unsettled: usize,
    /// The ticket of the row to be given next.
    next: u64,
    /// The last mark before the oldest row, and those behind it.
    settled: Mark,
    marks: VecDeque<Mark>,
    /// Up to where everything has come.
    received: Position,
    /// Where the transaction that is coming commits.
    commit: Lsn,
    /// How many of its events to skip.
    skipping: u64,
}

/// A row that came. `None` once it is settled, because an older row may keep it here for long.
type ReceivedRow = Option<Insert>;

/// At this many rows, the relay receives no more. A row that is settled behind an unsettled one costs about a hundred bytes, if
/// each has its own transaction, and a look if rows are given again: 50 MB at most, and some milliseconds. While one partition is
/// stuck, other events go on for this many rows.
const MOST_ROWS: usize = 1 << 19;

/// The position before a row.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    /// The row's ticket.
    before: u64,
    position: Position,
}

impl Window {
    /// Begins at a position.
    pub(crate) fn after(position: Position) -> Self {
        Self { settled: Mark { before: 0, position }, received: position, ..Self::default() }
    }

    /// Takes what comes next. If something is read again, it comes from the place up to which everything has come.
    pub(crate) fn receive(&mut self, message: Message) {
        match message {
            Message::Insert(_) if self.skipping > 0 => self.skipping -= 1,
            Message::Insert(insert) => {
                if self.received.part.is_none_or(|part| part.commit != self.commit) {
                    self.received.part = Some(TransactionPart { commit: self.commit, events: 0 });
                    self.mark();
                }
                self.rows.push_back(Some(insert));
                self.unsettled += 1;
                self.received = self.received.after_events(1);
            }
            Message::Begin(commit) => {
                // If it is read again from its beginning, some of it has come.
                let part = self.received.part.filter(|part| part.commit == commit);
                (self.commit, self.skipping) = (commit, part.map_or(0, |part| part.events));
            }
            // This lies before the commit of the transaction whose events are being skipped, so it does not end that one.
            Message::End(lsn) if self.skipping > 0 && lsn <= self.commit => {}
            Message::End(lsn) => {
                self.skipping = 0;
                self.received = self.received.after_end(lsn);
                self.mark();
            }
        }
        self.go_on();
    }

    pub(crate) fn has_more(&self) -> bool {
        self.next < self.next_ticket()
    }

    /// Returns whether to receive nothing more until something is settled.
    pub(crate) fn is_full(&self) -> bool {
        self.rows.len() >= MOST_ROWS
    }

    /// Returns the ticket of the next row to be given.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Returns the ticket of the next row that comes, which is how many have come.
    pub(crate) fn next_ticket(&self) -> u64 {
        self.first + self.rows.len() as u64
    }

    /// Gives the next row: one that was not given, or one that was not settled and is given again.
    pub(crate) fn give(&mut self) -> Result<Option<StoredRow>, SourceError> {
        self.give_before(u64::MAX)
    }

    /// Does the same, if the row's ticket is below this one.
    pub(crate) fn give_before(&mut self, end: u64) -> Result<Option<StoredRow>, SourceError> {
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

    /// Returns whether everything before this row is settled.
    pub(crate) fn is_first(&self, ticket: u64) -> bool {
        ticket == self.first
    }

    /// Returns the ticket of the oldest row that is not settled.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Lets this row be given again, and those after it.
    pub(crate) fn give_again_from(&mut self, ticket: u64) {
        self.next = self.next.min(ticket);
    }

    /// Lets what is not settled be given again.
    pub(crate) fn give_again(&mut self) {
        self.next = self.first;
    }

    pub(crate) fn row(&self, ticket: u64) -> Result<StoredRow, SourceError> {
        match self.find(ticket) {
            Some(Some(insert)) => insert.row(ticket),
            _ => Err(SourceError::new("the relay settled something that it was not given")),
        }
    }

    pub(crate) fn settle(&mut self, ticket: u64) {
        let received = self.index(ticket).and_then(|index| self.rows.get_mut(index));
        if received.and_then(Option::take).is_some() {
            self.unsettled -= 1;
        }
        if ticket == self.first {
            self.go_on();
        }
    }

    /// Returns up to where everything has come: from here the WAL is read on.
    pub(crate) fn end(&self) -> Lsn {
        self.received.start
    }

    /// Returns how many events have come of a transaction that has not ended.
    pub(crate) fn receiving(&self) -> u64 {
        self.received.part.map_or(0, |part| part.events)
    }

    /// Returns up to where the server may forget.
    pub(crate) fn confirmed(&self) -> Lsn {
        self.settled.position.start
    }

    /// Returns up to where everything is settled.
    pub(crate) fn position(&self) -> Position {
        let Position { start, part } = self.settled.position.after_events(self.first - self.settled.before);
        Position { start, part: part.filter(|part| part.events > 0) }
    }

    /// Returns how many rows are not settled, and the oldest of them.
    pub(crate) fn unsettled(&self) -> (usize, Option<&Insert>) {
        (self.unsettled, self.rows.front().and_then(Option::as_ref))
    }

    fn index(&self, ticket: u64) -> Option<usize> {
        usize::try_from(ticket.checked_sub(self.first)?).ok()
    }

    fn find(&self, ticket: u64) -> Option<&ReceivedRow> {
        self.rows.get(self.index(ticket)?)
    }

    /// Marks the present position. Many marks may come while one row waits, and transactions without rows.
    fn mark(&mut self) {
        let mark = Mark { before: self.next_ticket(), position: self.received };
        match self.marks.back_mut() {
            Some(last) if last.before == mark.before => *last = mark,
            _ => self.marks.push_back(mark),
        }
    }

    /// Forgets what is settled, and the marks before the oldest row that is not.
    fn go_on(&mut self) {
        while self.rows.front().is_some_and(Option::is_none) {
            self.rows.pop_front();
            self.first += 1;
        }
        while self.marks.front().is_some_and(|mark| mark.before <= self.first)
            && let Some(mark) = self.marks.pop_front()
        {
            self.settled = mark;
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

    fn at(start: Lsn, part: Option<(Lsn, u64)>) -> Position {
        Position { start, part: part.map(|(commit, events)| TransactionPart { commit, events }) }
    }

    fn given(window: &mut Window) -> Vec<(u64, i64)> {
        std::iter::from_fn(|| window.give().unwrap()).map(|row| (row.ticket, row.seq)).collect()
    }

    #[test]
    fn a_position_is_confirmed_when_all_before_it_is_settled() {
        let mut window = window(transaction(10, 1..=2).into_iter().chain(transaction(20, 3..=3)));
        assert_eq!(given(&mut window), [(0, 1), (1, 2), (2, 3)]);
        for (ticket, confirmed) in [(2, 0), (0, 0), (1, 20)] {
            window.settle(ticket);
            assert_eq!(window.confirmed(), confirmed, "after {ticket}");
        }
    }

    #[test]
    fn what_the_server_reports_between_transactions_is_confirmed_if_nothing_waits() {
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

    /// Otherwise one partition that is stuck would keep the payloads of all others.
    #[test]
    fn nothing_is_kept_of_a_row_that_is_settled_behind_one_that_is_not() {
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
        assert_eq!(interrupted.position(), at(0, None));
        [0, 1, 2, 3, 5].into_iter().for_each(|ticket| interrupted.settle(ticket));
        assert_eq!(interrupted.position(), at(10, Some((19, 2))));

        let mut next = Window::after(interrupted.position());
        messages().skip(4).for_each(|message| next.receive(message));
        assert_eq!(given(&mut next), [(0, 5), (1, 6), (2, 7)]);
        next.settle(0);
        assert_eq!(next.position(), at(10, Some((19, 3))));
        [1, 2].into_iter().for_each(|ticket| next.settle(ticket));
        assert_eq!(next.position(), at(20, None));
    }

    #[test]
    fn what_was_sent_of_a_transaction_is_known_until_it_comes_again() {
        let part = Some((19, 2));
        let mut window = Window::after(at(10, part));
        assert_eq!(window.position(), at(10, part));
        window.receive(Message::End(15));
        assert_eq!(window.position(), at(15, part));
        transaction(20, 1..=3).into_iter().for_each(|message| window.receive(message));
        assert_eq!(window.position(), at(15, part));
        assert_eq!(given(&mut window), [(0, 3)]);
        window.settle(0);
        assert_eq!(window.position(), at(20, None));
        // One that does not come again, because the position was kept before the server heard of it.
        let mut window = Window::after(at(10, part));
        window.receive(Message::End(25));
        assert_eq!(window.position(), at(25, None));
    }

    /// The server sends them before PostgreSQL 15. A position that is kept between their begin and their end is that of the part, too.
    #[test]
    fn what_was_sent_of_a_transaction_is_known_while_others_without_rows_come_before_it() {
        let part = Some((19, 2));
        let mut window = Window::after(at(10, part));
        window.receive(Message::Begin(14));
        assert_eq!(window.position(), at(10, part));
        window.receive(Message::End(15));
        assert_eq!(window.position(), at(15, part));
        transaction(20, 1..=3).into_iter().for_each(|message| window.receive(message));
        assert_eq!(given(&mut window), [(0, 3)]);
    }

    /// Otherwise events would be given again and counted twice, and the next relay would skip as many too many.
    #[test]
    fn an_end_in_the_middle_of_a_transaction_that_is_skipped_ends_nothing() {
        let part = Some(TransactionPart { commit: 19, events: 2 });
        let mut window = Window::after(Position { start: 10, part });
        let mut again = transaction(20, 1..=4).into_iter();
        window.receive(again.next().unwrap());
        window.receive(again.next().unwrap());
        window.receive(Message::End(15));
        again.for_each(|message| window.receive(message));
        assert_eq!(given(&mut window).iter().map(|(_, seq)| *seq).collect::<Vec<_>>(), [3, 4]);
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
        for (part, first) in [(None, 3), (Some((19, 2)), 5)] {
            let again = || transaction(20, 3..=9);
            let mut window = Window::after(at(10, part));
            // Two readers end within it, the second before it has come as far as the first.
            again().into_iter().take(6).for_each(|message| window.receive(message));
            for before in [11, 19] {
                window.receive(Message::End(before));
            }
            again().into_iter().take(3).for_each(|message| window.receive(message));
            assert_eq!(window.end(), 19);
            again().into_iter().for_each(|message| window.receive(message));
            transaction(30, 10..=10).into_iter().for_each(|message| window.receive(message));
            let given = given(&mut window);
            assert_eq!(
                given.iter().map(|(_, seq)| *seq).collect::<Vec<_>>(),
                (first..=10).collect::<Vec<_>>()
            );
            assert_eq!(window.end(), 30);

            window.settle(0);
            let sent = part.map_or(1, |(_, sent)| sent + 1);
            assert_eq!(window.position(), at(10, Some((19, sent))));
            given.iter().for_each(|(ticket, _)| window.settle(*ticket));
            assert_eq!(window.position(), at(30, None));
        }
    }

    /// Whatever a relay has received and settled, in however many readings, the next one sends exactly the rest. That is so too if all
    /// of a transaction was sent but its end had not come, if it has no rows, and if only a later row was settled.
    #[test]
    fn whoever_goes_on_from_a_position_is_given_exactly_what_was_not_settled() {
        let all: Vec<(Lsn, Vec<i64>)> =
            vec![(10, vec![1, 2]), (20, vec![]), (30, vec![3, 4, 5, 6]), (40, vec![7])];
        // As a reader has it that begins at this place.
        let from = |start: Lsn| {
            let transactions = all.iter().filter(move |(end, _)| *end > start);
            let messages = transactions.flat_map(|(end, seqs)| transaction(*end, seqs.iter().copied()));
            [Message::End(start)].into_iter().chain(messages)
        };
        let seqs = |window: &mut Window| given(window).into_iter().map(|(_, seq)| seq).collect::<Vec<_>>();
        let mut looked_at = 0;
        for (first, second, third) in (0..17).flat_map(|n| (0..17).flat_map(move |m| [(n, m, 0), (n, m, 5)]))
        {
            let mut window = Window::default();
            for messages in [first, second, third] {
                let start = window.end();
                from(start).take(messages).for_each(|message| window.receive(message));
            }
            let tickets: Vec<u64> = given(&mut window).into_iter().map(|(ticket, _)| ticket).collect();
            for settled in 0..=tickets.len() {
                if let Some(ticket) = settled.checked_sub(1) {
                    window.settle(tickets[ticket]);
                }
                let mut next = Window::after(window.position());
                assert_eq!(next.end(), window.confirmed());
                from(next.end()).for_each(|message| next.receive(message));
                let rest = (settled as i64 + 1..=7).collect::<Vec<_>>();
                assert_eq!(seqs(&mut next), rest, "{first}, {second}, {third} messages, {settled} settled");
                looked_at += 1;
            }
        }
        assert!(looked_at > 1_000, "{looked_at}");
    }
}
