//! What archives make of a tree: by hand, against GNU tar, and hostile ones.

mod gnu;
mod hostile;
mod kitchen;
mod unpacking;
