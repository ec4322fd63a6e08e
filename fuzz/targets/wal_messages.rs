//! What comes on the replication connection: each message has its length before it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| diesel_outbox_relay::fuzzing::replication(data));
