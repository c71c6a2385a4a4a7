//! The deb822 form: paragraphs of `Field: value`, as in control files, `Packages` and `.sources`.
//!
//! Source of the format: Debian Policy 5.1, sources.list(5).

/// One paragraph. Field names keep their case and compare without it; values keep their
/// continuation lines, each with its leading space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Paragraph {
    /// Name and value, in order.
    pub(crate) fields: Vec<(String, String)>,
}

impl Paragraph {
    /// The value of `name`, trimmed.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    }

    /// The words of `name`'s value.
    pub(crate) fn words(&self, name: &str) -> Vec<&str> {
        self.get(name).map(|value| value.split_whitespace().collect()).unwrap_or_default()
    }

    /// Replaces the value of `name`, or adds it at the end.
    pub(crate) fn set(&mut self, name: &str, value: String) {
        match self.fields.iter_mut().find(|(field, _)| field.eq_ignore_ascii_case(name)) {
            Some((_, old)) => *old = value,
            None => self.fields.push((name.to_owned(), value)),
        }
    }

    /// The names of the packages in a relation field such as `Replaces`.
    pub(crate) fn related(&self, name: &str) -> Vec<&str> {
        let value = self.get(name).unwrap_or_default();
        value
            .split([',', '|'])
            .filter_map(|relation| relation.split_whitespace().next())
            .map(|relation| relation.split([':', '(']).next().unwrap_or(relation))
            .filter(|package| !package.is_empty())
            .collect()
    }

    /// The text form, ended by a newline.
    pub(crate) fn text(&self) -> String {
        let lines = self.fields.iter().map(|(name, value)| {
            let gap = if value.is_empty() || value.starts_with('\n') { "" } else { " " };
            format!("{name}:{gap}{value}\n")
        });
        lines.collect()
    }
}

/// Reads paragraphs. Comment lines are dropped; a line that is no field and no continuation ends
/// up nowhere, as with apt.
pub(crate) fn parse(text: &str) -> Vec<Paragraph> {
    let mut all = Vec::new();
    let mut now = Paragraph::default();
    for line in text.lines() {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            if !now.fields.is_empty() {
                all.push(std::mem::take(&mut now));
            }
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = now.fields.last_mut() {
                value.push('\n');
                value.push_str(line.trim_end());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            now.fields.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    if !now.fields.is_empty() {
        all.push(now);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_paragraphs() {
        let text = "Package: a\nDescription: one\n two\n .\nEmpty:\n\n# no\nPackage: b\n";
        let all = parse(text);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].get("description"), Some("one\n two\n ."));
        assert_eq!(all[0].text(), "Package: a\nDescription: one\n two\n .\nEmpty:\n");
        assert_eq!(all[1].get("PACKAGE"), Some("b"));
    }

    #[test]
    fn relations_lose_versions_and_architectures() {
        let all = parse("Replaces: a (<< 2), b:any | c(>= 1),\n d\n");
        assert_eq!(all[0].related("replaces"), ["a", "b", "c", "d"]);
        assert!(all[0].related("breaks").is_empty());
    }
}
