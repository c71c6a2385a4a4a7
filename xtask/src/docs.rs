//! `cargo xtask docs`.

use std::fs;

use anyhow::{Context, Result};
use kiln_core::compose::{DOCUMENTED_BELOW, documentation};

use crate::shell;

/// Writes what is generated in `docs/`; a test of kiln-core holds that it is current.
pub(crate) fn docs() -> Result<()> {
    let path = shell::repository().join("docs/compose.md");
    let text = fs::read_to_string(&path).context("docs/compose.md cannot be read")?;
    let (head, _) = text.split_once(DOCUMENTED_BELOW).context("docs/compose.md has no mark")?;
    let whole = format!("{head}{DOCUMENTED_BELOW}{}", documentation());
    if whole != text {
        fs::write(&path, whole).context("docs/compose.md cannot be written")?;
        println!("docs/compose.md is written anew");
    }
    Ok(())
}
