//! The column `headers`, which other programs may write.

#![no_main]

use diesel_outbox_core::wire::{decode_headers, encode_headers};

libfuzzer_sys::fuzz_target!(|json: &str| {
    if let Ok(headers) = decode_headers(json)
        && let Some(again) = encode_headers(&headers)
    {
        assert_eq!(decode_headers(&again).ok(), Some(headers));
    }
});
