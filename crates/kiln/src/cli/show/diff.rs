//! `kiln diff` for a person: a line for each package, path and key that differs, folded where there
//! are many of one place.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;

use serde_json::Value;

use super::{digits, release, short, size};
use crate::answers::differing::{
    Both, Diff, Entry, File, FileChange, Found, ImageDiff, KeyChange, Package, Service,
    ServiceChange, Side, What,
};
use crate::words::count;

/// So many lines of files are shown of an image before folders are folded.
const MOST_LINES: usize = 60;
/// A folder with fewer lines is not folded.
const WORTH_FOLDING: usize = 4;
/// So many lines of a text's difference are shown.
const MOST_TEXT: usize = 40;
/// Longer values are cut.
const LONGEST: usize = 120;

/// How much to show, and how.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Style {
    /// Also files of packages that changed.
    pub files: bool,
    /// Everything, folded nowhere.
    pub all: bool,
    /// Colours.
    pub colour: bool,
}

impl Style {
    /// Colours only on a terminal whose user has not said no.
    pub(super) fn new(files: bool, all: bool) -> Self {
        let colour = std::io::stdout().is_terminal() && crate::terminal::may_colour();
        Self { files, all, colour }
    }

    /// A line in the colour of its sign.
    fn paint(self, line: &str) -> String {
        let colour = match line.trim_start().chars().next() {
            Some('+') => "32",
            Some('-') => "31",
            Some('~') => "33",
            Some('@') => "36",
            _ => return line.to_owned(),
        };
        if self.colour { format!("\x1b[{colour}m{line}\x1b[0m") } else { line.to_owned() }
    }
}

/// The whole document.
pub(super) fn diff(found: &Diff, style: Style) -> String {
    let mut out = String::new();
    let mut say = |line: &str| put(&mut out, style, line);
    say(&format!("--- {}", side(&found.old)));
    say(&format!("+++ {}", side(&found.new)));
    if found.same {
        say("nothing differs");
        return out;
    }
    match &found.found {
        Found::Image(found) => image(found, "", style, &mut say),
        Found::Release { services } => {
            for Service { name, change } in services {
                let sign = match change {
                    ServiceChange::Added(_) => '+',
                    ServiceChange::Removed(_) => '-',
                    ServiceChange::Changed { .. } => '~',
                };
                say(&format!("{sign} service {name}"));
                if let ServiceChange::Changed { image: other, settings, stages } = change {
                    if let Some(other) = other {
                        image(other, "  ", style, &mut say);
                    }
                    values("settings", settings, "  ", style, &mut say);
                    for (stage, changes) in stages {
                        let title = format!("settings in {stage}");
                        values(&title, changes, "  ", style, &mut say);
                    }
                }
            }
        }
    }
    out
}

/// What differs between two images, where the whole document is about something else.
pub(super) fn of_image(found: &ImageDiff) -> String {
    let style = Style::new(false, false);
    let mut out = String::new();
    let mut say = |line: &str| put(&mut out, style, line);
    image(found, "  ", style, &mut say);
    match found.times {
        Some(0) | None => {}
        Some(paths) => {
            say(&format!("  {} of which only the time differs", count(paths, "path")));
        }
    }
    out
}

fn put(out: &mut String, style: Style, line: &str) {
    // Names and contents of files may be made to steer a terminal.
    let safe = |c: char| if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c };
    let line: String = line.chars().map(safe).collect();
    out.push_str(&style.paint(&line));
    out.push('\n');
}

fn side(side: &Side) -> String {
    let name = &side.name;
    let is_digest = name.starts_with("sha256:") && !name[7..].contains(':');
    let mut words: Vec<String> = (!is_digest).then(|| name.clone()).into_iter().collect();
    match &side.what {
        What::Image { tree, config } => {
            words.push(format!("tree {}", digits(tree)));
            words.extend(config.as_ref().map(|config| format!("config {}", digits(config))));
        }
        What::Release { release, source } => {
            words.extend(release.as_ref().map(|release| format!("release {}", digits(release))));
            words.extend(Some(release::words(source)).filter(|words| !words.is_empty()));
        }
    }
    words.join(", ")
}

fn sign(change: &str) -> char {
    match change {
        "added" => '+',
        "removed" => '-',
        _ => '~',
    }
}

fn image(found: &ImageDiff, indent: &str, style: Style, say: &mut dyn FnMut(&str)) {
    if !found.packages.is_empty() {
        say(&format!("{indent}packages"));
    }
    for package in &found.packages {
        let Package { name, change, old, new, .. } = package;
        let versions = match (old, new) {
            (Some(old), Some(new)) => format!("{old} → {new} ({change})"),
            (old, new) => old.as_ref().or(new.as_ref()).cloned().unwrap_or_default(),
        };
        let files = count(package.files, "path");
        say(&format!("{indent}  {} {name} {versions}, {files}", sign(change)));
    }
    files(&found.files, indent, style, say);
    let config = found.config.as_deref().unwrap_or_default();
    values("configuration", config, indent, style, say);
}

/// One line of files, and what stands below it.
struct Line {
    change: char,
    path: String,
    words: String,
    below: Vec<String>,
}

fn files(files: &[File], indent: &str, style: Style, say: &mut dyn FnMut(&str)) {
    let unfold = style.files || style.all;
    let (shown, owned): (Vec<&File>, Vec<&File>) =
        files.iter().partition(|file| unfold || file.package.is_none());
    if shown.is_empty() && owned.is_empty() {
        return;
    }
    say(&format!("{indent}files"));
    let mut lines = if style.all { plain(&shown) } else { whole_folders(&shown) };
    let mut cut = 0;
    if !style.all && lines.len() > MOST_LINES {
        lines = fold(lines);
        cut = lines.len().saturating_sub(MOST_LINES);
        lines.truncate(MOST_LINES);
    }
    for line in lines {
        let Line { change, path, words, below } = line;
        say(format!("{indent}  {change} {path}  {words}").trim_end());
        for text in below {
            say(&format!("{indent}      {text}"));
        }
    }
    if cut > 0 {
        say(&format!("{indent}  and {} more (--all)", count(cut, "line")));
    }
    match owned.len() {
        0 => {}
        paths => {
            let paths = count(paths, "path");
            say(&format!("{indent}  and {paths} of these packages (--files)"));
        }
    }
}

fn plain(files: &[&File]) -> Vec<Line> {
    files.iter().map(|file| line(file)).collect()
}

/// The lines of a difference of texts, if it is told.
fn text_of(file: &File) -> Option<&Vec<String>> {
    match &file.change {
        FileChange::Changed { text, .. } => text.as_ref(),
        _ => None,
    }
}

fn line(file: &File) -> Line {
    let mut path = file.path.clone();
    if file.kind == "directory" || path.is_empty() {
        path.push('/');
    }
    let below = text_of(file).into_iter().flatten().cloned();
    let mut below: Vec<String> = below.filter(|line| !line.starts_with("\\ No newline")).collect();
    if below.len() > MOST_TEXT {
        below.truncate(MOST_TEXT);
        below.push("…".into());
    }
    let words = match &file.change {
        FileChange::Changed { size, aspects, .. } => changed(size, aspects),
        FileChange::Added { size, new } => alone(new, size.new),
        FileChange::Removed { size, old } => alone(old, size.old),
    };
    Line { change: sign(file.change.word()), path, words, below }
}

fn alone(entry: &Entry, bytes: Option<u64>) -> String {
    let mut words = Vec::new();
    match entry.kind.as_str() {
        "link" => words.push(format!("→ {}", entry.target.as_deref().unwrap_or_default())),
        "file" => words.push(size(bytes.unwrap_or(0))),
        "directory" => {}
        other => words.push(other.to_owned()),
    }
    let usual = match entry.kind.as_str() {
        "directory" | "link" => ["0755", "0777"].contains(&entry.mode.as_str()),
        _ => entry.mode == "0644",
    };
    if !usual {
        words.push(entry.mode.clone());
    }
    if (entry.uid, entry.gid) != (0, 0) {
        words.push(format!("{}:{}", entry.uid, entry.gid));
    }
    words.join(" ")
}

fn changed(bytes: &Both<Option<u64>>, aspects: &BTreeMap<String, Both<String>>) -> String {
    let mut words = Vec::new();
    for (aspect, Both { old, new }) in aspects {
        words.push(match aspect.as_str() {
            "content" => {
                let (old, new) = (bytes.old.unwrap_or(0), bytes.new.unwrap_or(0));
                match old == new {
                    true => format!("content, {}", size(new)),
                    false => format!("content, {} → {}", size(old), size(new)),
                }
            }
            "hardlink" => match (old, new.as_str()) {
                (old, "") => format!("no more a name of {old}"),
                (_, new) => format!("a name of {new}"),
            },
            aspect => format!("{aspect} {} → {}", or_none(old), or_none(new)),
        });
    }
    words.join("; ")
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

/// Folders that came or went with all that is in them are one line.
fn whole_folders(files: &[&File]) -> Vec<Line> {
    let bytes = |file: &&File| match &file.change {
        FileChange::Added { size, .. } => size.new,
        FileChange::Removed { size, .. } => size.old,
        FileChange::Changed { .. } => None,
    };
    let mut lines = Vec::new();
    let mut at = 0;
    while at < files.len() {
        let file = files[at];
        let mut line = line(file);
        at += 1;
        if line.change != '~' && file.kind == "directory" && line.path != "/" {
            let inside = files[at..]
                .iter()
                .take_while(|other| other.path.starts_with(&line.path))
                .take_while(|other| sign(other.change.word()) == line.change)
                .count();
            if inside >= WORTH_FOLDING {
                let bytes: u64 = files[at..at + inside].iter().filter_map(bytes).sum();
                line.words = format!("with {}, {}", count(inside, "path"), size(bytes));
                at += inside;
            }
        }
        lines.push(line);
    }
    lines
}

/// Lines of one folder become one line, where that is worth it.
fn fold(lines: Vec<Line>) -> Vec<Line> {
    let folder = |line: &Line| match line.path.trim_end_matches('/').rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/"),
        None => String::new(),
    };
    let mut groups: BTreeMap<String, Vec<Line>> = BTreeMap::new();
    for line in lines {
        groups.entry(folder(&line)).or_default().push(line);
    }
    let mut folded = Vec::new();
    for (path, lines) in groups {
        if lines.len() < WORTH_FOLDING || path.is_empty() {
            folded.extend(lines);
            continue;
        }
        let mut counts: BTreeMap<char, usize> = BTreeMap::new();
        lines.iter().for_each(|line| *counts.entry(line.change).or_default() += 1);
        let mut words = String::new();
        for (sign, name) in [('+', "added"), ('-', "removed"), ('~', "changed")] {
            if let Some(count) = counts.get(&sign) {
                let comma = if words.is_empty() { "" } else { ", " };
                let _ = write!(words, "{comma}{count} {name}");
            }
        }
        let change = if counts.len() == 1 { lines[0].change } else { '~' };
        folded.push(Line { change, path: format!("{path}*"), words, below: Vec::new() });
    }
    folded
}

fn values(
    title: &str,
    changes: &[KeyChange],
    indent: &str,
    style: Style,
    say: &mut dyn FnMut(&str),
) {
    if !changes.is_empty() {
        say(&format!("{indent}{title}"));
    }
    let shown = |value: &Value| {
        let whole = match value {
            Value::String(text) if text.starts_with("sha256:") => short(value).to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match whole.char_indices().nth(LONGEST) {
            Some((at, _)) if !style.all => format!("{}…", &whole[..at]),
            _ => whole,
        }
    };
    for KeyChange { key, old, new, text, .. } in changes {
        let line = match (old, new) {
            (Some(old), Some(new)) => format!("~ {key}: {} → {}", shown(old), shown(new)),
            (Some(old), None) => format!("- {key}: {}", shown(old)),
            (None, Some(new)) => format!("+ {key}: {}", shown(new)),
            (None, None) => format!("~ {key}: another one (a secret is never shown)"),
        };
        say(&format!("{indent}  {line}"));
        for line in text.iter().flatten().take(MOST_TEXT) {
            say(&format!("{indent}      {line}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::answers::differing::NewSize;

    fn added(path: &str, kind: &str) -> File {
        let new = Entry {
            kind: kind.to_owned(),
            mode: if kind == "file" { "0644" } else { "0755" }.to_owned(),
            uid: 0,
            gid: 0,
            content: None,
            target: None,
        };
        let change = FileChange::Added { size: NewSize { new: Some(1000) }, new };
        let (path, kind) = (path.to_owned(), kind.to_owned());
        File { path, path_hex: None, package: None, kind, change }
    }

    fn image_diff(files: &[File]) -> ImageDiff {
        ImageDiff {
            tree: Both { old: None, new: None },
            packages: Vec::new(),
            files: files.to_vec(),
            config: Some(Vec::new()),
            times: None,
        }
    }

    fn shown(found: ImageDiff, style: Style) -> String {
        let side = |name: &str| {
            let what = What::Release { release: None, source: Default::default() };
            Side { name: name.to_owned(), what }
        };
        let (old, new, found) = (side("a"), side("b"), Found::Image(found));
        diff(&Diff { format: 1, old, new, same: false, found }, style)
    }

    #[test]
    fn a_line_tells_what_differs() {
        let both = |old: &str, new: &str| Both { old: old.to_owned(), new: new.to_owned() };
        let change = FileChange::Changed {
            size: Both { old: Some(3), new: Some(1500) },
            aspects: BTreeMap::from([
                ("content".to_owned(), both("sha256:1", "sha256:2")),
                ("mode".to_owned(), both("0644", "4755")),
            ]),
            text: None,
        };
        let file = File { change, ..added("bin/x", "file") };
        let out = shown(image_diff(&[file, added("etc/new", "file")]), Style::default());
        assert_eq!(
            out,
            "--- a\n+++ b\nfiles\n  ~ bin/x  content, 3 B → 1.5 kB; mode 0644 → 4755\n  + \
             etc/new  1.0 kB\n"
        );
    }

    #[test]
    fn whole_folders_and_many_files_are_folded() {
        let mut files = vec![added("d", "directory")];
        files.extend((0..5).map(|n| added(&format!("d/{n}"), "file")));
        let out = shown(image_diff(&files), Style::default());
        assert!(out.ends_with("files\n  + d/  with 5 paths, 5.0 kB\n"), "{out}");
        let files: Vec<File> = (0..100).map(|n| added(&format!("e/{n:03}"), "file")).collect();
        let out = shown(image_diff(&files), Style::default());
        assert!(out.ends_with("files\n  + e/*  100 added\n"), "{out}");
        let out = shown(image_diff(&files), Style { all: true, ..Style::default() });
        assert_eq!(out.lines().count(), 103);
        // What cannot be folded is cut.
        let files: Vec<File> = (0..100).map(|n| added(&format!("{n}/x"), "file")).collect();
        let out = shown(image_diff(&files), Style::default());
        assert!(out.ends_with("  and 40 lines more (--all)\n"), "{out}");
    }

    #[test]
    fn files_of_packages_are_folded_under_them() {
        let file = File { package: Some("curl".into()), ..added("usr/bin/curl", "file") };
        let package = Package {
            name: "curl".into(),
            architecture: "amd64".into(),
            change: "upgraded".into(),
            old: Some("1".into()),
            new: Some("2".into()),
            files: 1,
        };
        let found = ImageDiff { packages: vec![package], ..image_diff(&[file]) };
        let out = shown(found.clone(), Style::default());
        assert!(out.contains("  ~ curl 1 → 2 (upgraded), 1 path\n"), "{out}");
        assert!(!out.contains("usr/bin/curl"), "{out}");
        let out = shown(found, Style { files: true, ..Style::default() });
        assert!(out.contains("  + usr/bin/curl"), "{out}");
    }

    #[test]
    fn colours_are_those_of_signs_and_secrets_stay_secret() {
        let style = Style { colour: true, ..Style::default() };
        assert_eq!(style.paint("  + a"), "\u{1b}[32m  + a\u{1b}[0m");
        assert_eq!(Style::default().paint("  + a"), "  + a");
        let key = KeyChange {
            key: "x".into(),
            old: Some(json!("a\u{1b}[31m")),
            new: Some(json!("b")),
            ..KeyChange::default()
        };
        let secret =
            KeyChange { key: "files./k.content".into(), secret: true, ..KeyChange::default() };
        let found = ImageDiff { config: Some(vec![key, secret]), ..image_diff(&[]) };
        let out = shown(found, Style::default());
        assert!(out.contains("~ x: a\u{fffd}[31m → b\n"), "{out}");
        assert!(out.contains("~ files./k.content: another one"), "{out}");
    }
}
