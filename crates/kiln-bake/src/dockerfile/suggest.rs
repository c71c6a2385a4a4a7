//! What somebody may have meant.

/// Names and candidates beyond this many characters are not compared: it takes quadratic time.
const LONGEST: usize = 100;

/// The candidate nearest to `name`, if it is one or two edits away, as BuildKit has it. With the
/// name itself among them there is nothing to suggest.
pub(crate) fn near<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let mut best = None;
    for candidate in candidates {
        if candidate == name {
            return None;
        }
        let distance = distance(name, candidate);
        if distance < best.map_or(3, |(distance, _)| distance) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Edit distance; at most that of something far away.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    if b.len() > LONGEST || a.chars().count() > LONGEST {
        return LONGEST;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::near;

    #[test]
    fn only_what_is_near() {
        let stages = || ["build", "test", "release"];
        assert_eq!(near("bulid", stages()), Some("build"));
        assert_eq!(near("tests", stages()), Some("test"));
        assert_eq!(near("test", stages()), None);
        assert_eq!(near("prod", stages()), None);
        assert_eq!(near(&"x".repeat(1 << 20), stages()), None);
    }
}
