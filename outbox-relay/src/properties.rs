//! What holds for any input.

use std::collections::BTreeSet;

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use crate::source::polling::mysql::bounds::{Bound, Claimed, with_unsent};
use crate::source::polling::mysql::claim::groups;
use crate::source::wal::confirm_bound::ConfirmBound;
use crate::source::wal::decode::Message;
use crate::source::wal::decode::tests::insert;
use crate::source::wal::window::Window;

/// Transactions with so many events each. Each ends ten bytes after the one before, just after its commit.
fn messages(events: &[usize], from: u64) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut seq = 0;
    for (number, count) in events.iter().enumerate() {
        let end = 10 * (number as u64 + 1);
        let seqs: Vec<i64> = (0..*count)
            .map(|_| {
                seq += 1;
                seq
            })
            .collect();
        if end > from {
            messages.push(Message::Begin(end - 1));
            messages.extend(seqs.into_iter().map(|seq| Message::Insert(insert(seq))));
            messages.push(Message::End(end));
        }
    }
    messages
}

fn given(window: &mut Window) -> Vec<(u64, i64)> {
    std::iter::from_fn(|| window.give().unwrap()).map(|row| (row.ticket, row.seq)).collect()
}

proptest! {
    /// Relays follow each other. Each receives a part, settles some of that in any order, and leaves its position behind.
    #[test]
    fn whatever_relays_receive_and_settle_the_next_one_is_given_all_from_the_first_that_is_not_settled(
        events in vec(0usize..5, 1..6),
        relays in vec((0usize..30, vec(0usize..20, 0..20)), 1..5),
    ) {
        let all: Vec<i64> = (1..=events.iter().sum::<usize>() as i64).collect();
        let (mut position, mut settled) = (Default::default(), BTreeSet::new());
        for (received, settles) in relays {
            let mut window = Window::after(position);
            let (start, before) = (window.end(), window.position());
            prop_assert_eq!(before, position);
            for message in messages(&events, start).into_iter().take(received) {
                window.receive(message);
            }
            let rows = given(&mut window);
            let first = all.iter().find(|seq| !settled.contains(*seq)).copied();
            prop_assert!(rows.first().is_none_or(|(_, seq)| Some(*seq) == first), "{:?} and not {:?}", rows, first);
            prop_assert!(rows.windows(2).all(|two| two[0].1 + 1 == two[1].1));
            let mut acknowledged = BTreeSet::new();
            for at in settles {
                if let Some((ticket, seq)) = rows.get(at) {
                    window.settle(*ticket);
                    acknowledged.insert(*seq);
                }
                prop_assert!(window.confirmed() >= start && window.confirmed() <= window.end());
            }
            // A position says nothing of what was settled behind something that was not.
            settled.extend(rows.iter().map(|(_, seq)| *seq).take_while(|seq| acknowledged.contains(seq)));
            position = window.position();
        }
        let mut last = Window::after(position);
        messages(&events, last.end()).into_iter().for_each(|message| last.receive(message));
        let rest: Vec<i64> = all.into_iter().filter(|seq| !settled.contains(seq)).collect();
        prop_assert_eq!(given(&mut last).into_iter().map(|(_, seq)| seq).collect::<Vec<_>>(), rest);
    }

    /// Each unsent row of a claimed shard lies behind the shard's bound or is listed.
    #[test]
    fn no_unsent_row_is_passed_over_by_bounds_that_move(
        rows in btree_set((1i64..5_000, 0i16..4), 0..60),
        bounds in vec(0i64..3_000, 4),
        moves_to in 0i64..6_000,
    ) {
        let of = |shard: i16| rows.iter().filter(move |(_, its)| *its == shard).map(|(seq, _)| *seq);
        let claimed: Claimed = (0..4).zip(&bounds).map(|(shard, through)| {
            let unsent = of(shard).filter(|seq| seq <= through).collect();
            (shard, Bound { sent_through: *through, unsent, witness: None })
        }).collect();
        let lowest = bounds.iter().copied().min().unwrap();
        let through = moves_to.max(lowest);
        let found: Vec<(i64, i16)> = rows.iter().copied().filter(|(seq, _)| *seq <= through).collect();
        let moved = with_unsent(&claimed, lowest, through, &found, None);
        for ((shard, new), (_, old)) in moved.iter().zip(&claimed) {
            prop_assert!(new.sent_through >= old.sent_through);
            for seq in of(*shard) {
                prop_assert!(seq > new.sent_through || new.unsent.contains(&seq), "{} in {}", seq, shard);
            }
        }
    }

    #[test]
    fn each_wanted_shard_is_in_one_group(shards in btree_set(0i16..16, 0..16), seqs in vec(1i64..99, 16), workers in 2usize..20) {
        let wanted: Vec<(i16, i64)> = shards.iter().map(|shard| (*shard, seqs[*shard as usize])).collect();
        let (groups, share) = groups(&wanted, workers);
        prop_assert!(groups.iter().all(|group| (1..=share).contains(&group.len())));
        let all: Vec<i16> = groups.concat();
        prop_assert_eq!(all.len(), shards.len());
        prop_assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), shards);
    }

    /// The server hears of no position before its bound is written.
    #[test]
    fn nothing_is_confirmed_beyond_the_bounds_that_were_written(steps in vec((0u64..200_000, any::<bool>()), 1..40)) {
        let mut bound = ConfirmBound::at(0);
        let (mut end, mut sent, mut written) = (0u64, 0u64, vec![(0u64, 0u64)]);
        for (came, writes) in steps {
            end += came;
            sent += came / 2;
            if writes {
                let ahead = bound.ahead_of(end);
                prop_assert!(ahead > end);
                bound.wrote(ahead, end);
                written.push((ahead, end));
            }
            let confirmed = bound.confirmable(sent);
            prop_assert!(confirmed <= sent);
            prop_assert!(written.iter().any(|(bound, at)| confirmed <= *bound && *at <= confirmed.max(1)) || confirmed == 0, "{} of {:?}", confirmed, written);
        }
    }
}
