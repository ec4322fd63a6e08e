//! What reads the replication connection, for the fuzz targets.

use bytes::Bytes;

use super::handover::Handover;
use super::options::WalOptions;
use super::stream::StreamReader;
use super::window::Window;

/// Reads these messages, gives the rows that they have, and settles every other one.
pub(crate) fn read(received: Vec<Bytes>) {
    let (handed, orders, _handover) = Handover::new();
    let mut reader = StreamReader::new(String::new(), WalOptions::default(), 0, 16_400, handed, orders);
    let mut window = Window::default();
    let mut messages = Vec::new();
    for data in received {
        // The relay would connect anew.
        let _ = reader.add(data, &mut messages);
    }
    messages.into_iter().for_each(|message| window.receive(message));
    loop {
        match window.give() {
            Ok(Some(row)) => {
                let ticket = row.ticket;
                let _ = row.claimed();
                if ticket.is_multiple_of(2) {
                    window.settle(ticket);
                }
            }
            _ => break,
        }
    }
    let _ = (window.position(), window.confirmed(), window.unsettled());
    window.give_again();
}
