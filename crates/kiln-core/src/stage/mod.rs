//! A stage as a value.
//!
//! | module | noun |
//! |---|---|
//! | `pointer` | what is recorded of it |
//! | `policy` | what it holds to |

mod pointer;
mod policy;

pub use self::pointer::{Cause, Pointer};
pub use self::policy::{MOST_KEPT, Policy};
