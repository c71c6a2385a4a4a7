//! Tests of the whole: with package files made here, and with the machine's own apt.

mod real;
mod runner;
