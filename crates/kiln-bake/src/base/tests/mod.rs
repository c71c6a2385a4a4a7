//! Tests of the whole: with package files made here, and with the machine's own apt.

mod locking;
mod mirror;
mod packages;
mod real;
mod runner;
