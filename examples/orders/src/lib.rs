//! A service that emits and one that consumes
