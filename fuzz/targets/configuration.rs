//! The file of `outbox`, in TOML.

#![no_main]
#![allow(dead_code, unused_imports)]

mod command;

libfuzzer_sys::fuzz_target!(|text: &str| command::fuzzing::configuration(text));
