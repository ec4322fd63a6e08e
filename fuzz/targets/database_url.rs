//! The URL of a database. What is refused must not be repeated, because it may hold a password.

#![no_main]
#![allow(dead_code, unused_imports)]

mod command;

libfuzzer_sys::fuzz_target!(|text: &str| command::fuzzing::database_url(text));
