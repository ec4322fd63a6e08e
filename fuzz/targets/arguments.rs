//! The arguments and variables of `outbox`, one a line. A line with a `=` and no `-` before it is a variable.

#![no_main]
#![allow(dead_code, unused_imports)]

mod command;

libfuzzer_sys::fuzz_target!(|text: &str| command::fuzzing::arguments(text));
