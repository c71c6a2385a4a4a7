//! Words that both ends of a request put together alike.

/// `1 package`, `3 packages`, `no packages`: see [`count_of`] for words whose plural has no plain `s`.
pub(crate) fn count(number: impl TryInto<u64>, one: &str) -> String {
    count_of(number, one, &format!("{one}s"))
}

/// A number with its noun.
pub(crate) fn count_of(number: impl TryInto<u64>, one: &str, many: &str) -> String {
    match number.try_into().unwrap_or(u64::MAX) {
        0 => format!("no {many}"),
        1 => format!("1 {one}"),
        number => format!("{number} {many}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!(count(1_u64, "package"), "1 package");
        assert_eq!(count(2_usize, "package"), "2 packages");
        assert_eq!(count(0_u32, "package"), "no packages");
        assert_eq!(count_of(2_u64, "entry", "entries"), "2 entries");
    }
}
