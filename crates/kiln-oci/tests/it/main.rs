//! Layouts and archives: pinned bytes, layers by others, what is hostile, and other tools.

mod golden;
mod hostile;
mod interop;
mod kit;
mod layers;
mod remote;
mod script;
mod size;
mod target;
