//! The records that say what was sent exactly once, which others may write to their topic. Each has its length before it, in one byte.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (mut rest, mut records) = (data, Vec::new());
    while let Some((length, after)) = rest.split_first() {
        let (record, after) = after.split_at(after.len().min(usize::from(*length)));
        records.push(record);
        rest = after;
    }
    diesel_outbox_kafka::__fuzz_progress(records);
});
