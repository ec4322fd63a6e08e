//! Benchmarks on real servers
