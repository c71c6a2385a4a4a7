//! `kiln diff` for a person: a line for each package, path and key that differs, folded where there
//! are many of one place.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;

use serde_json::Value;

use super::{list, number, release, short, size, text};

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
    /// Colours only on a terminal whose user has not said no: <https://no-color.org>.
    pub(super) fn new(files: bool, all: bool) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = std::io::stdout().is_terminal() && !set("NO_COLOR") && !dumb;
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
pub(super) fn diff(data: &Value, style: Style) -> String {
    let mut out = String::new();
    let mut say = |line: &str| put(&mut out, style, line);
    say(&format!("--- {}", side(&data["old"])));
    say(&format!("+++ {}", side(&data["new"])));
    if data["same"].as_bool() == Some(true) {
        say("nothing differs");
        return out;
    }
    if data["kind"] == "image" {
        image(data, "", style, &mut say);
    }
    for service in list(&data["services"]) {
        let sign = sign(text(&service["change"]));
        say(&format!("{sign} service {}", text(&service["name"])));
        if service["image"].is_object() {
            image(&service["image"], "  ", style, &mut say);
        }
        values("settings", &service["settings"], "  ", style, &mut say);
    }
    out
}

/// What differs between two images, where the whole document is about something else.
pub(super) fn of_image(data: &Value) -> String {
    let style = Style::new(false, false);
    let mut out = String::new();
    let mut say = |line: &str| put(&mut out, style, line);
    image(data, "  ", style, &mut say);
    match number(&data["times"]) {
        0 => {}
        1 => say("  1 path of which only the time differs"),
        count => say(&format!("  {count} paths of which only the time differs")),
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

fn side(side: &Value) -> String {
    let name = text(&side["name"]);
    let is_digest = name.starts_with("sha256:") && !name[7..].contains(':');
    let mut words: Vec<String> = (!is_digest).then(|| name.to_owned()).into_iter().collect();
    if side["tree"].is_string() {
        words.push(format!("tree {}", short(&side["tree"])));
        if side["config"].is_string() {
            words.push(format!("config {}", short(&side["config"])));
        }
    }
    if side["release"].is_string() {
        words.push(format!("release {}", short(&side["release"])));
    }
    words.extend(Some(release::source(&side["source"])).filter(|words| !words.is_empty()));
    words.join(", ")
}

fn sign(change: &str) -> char {
    match change {
        "added" => '+',
        "removed" => '-',
        _ => '~',
    }
}

fn image(image: &Value, indent: &str, style: Style, say: &mut dyn FnMut(&str)) {
    if list(&image["packages"]).next().is_some() {
        say(&format!("{indent}packages"));
    }
    for package in list(&image["packages"]) {
        let change = text(&package["change"]);
        let versions = match (package["old"].as_str(), package["new"].as_str()) {
            (Some(old), Some(new)) => format!("{old} → {new} ({change})"),
            (old, new) => old.or(new).unwrap_or_default().to_owned(),
        };
        let files = match number(&package["files"]) {
            1 => "1 path".to_owned(),
            count => format!("{count} paths"),
        };
        let name = text(&package["name"]);
        say(&format!("{indent}  {} {name} {versions}, {files}", sign(change)));
    }
    files(&image["files"], indent, style, say);
    values("configuration", &image["config"], indent, style, say);
}

/// One line of files, and what stands below it.
struct Line {
    change: char,
    path: String,
    words: String,
    below: Vec<String>,
}

fn files(files: &Value, indent: &str, style: Style, say: &mut dyn FnMut(&str)) {
    let unfold = style.files || style.all;
    let (shown, owned): (Vec<&Value>, Vec<&Value>) =
        list(files).partition(|file| unfold || !file["package"].is_string());
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
        say(&format!("{indent}  and {cut} lines more (--all)"));
    }
    match owned.len() {
        0 => {}
        1 => say(&format!("{indent}  and 1 path of these packages (--files)")),
        count => say(&format!("{indent}  and {count} paths of these packages (--files)")),
    }
}

fn plain(files: &[&Value]) -> Vec<Line> {
    files.iter().map(|file| line(file)).collect()
}

fn line(file: &Value) -> Line {
    let change = sign(text(&file["change"]));
    let mut path = text(&file["path"]).to_owned();
    if text(&file["type"]) == "directory" || path.is_empty() {
        path.push('/');
    }
    let below = list(&file["text"]).map(|line| text(line).to_owned());
    let mut below: Vec<String> = below.filter(|line| !line.starts_with("\\ No newline")).collect();
    if below.len() > MOST_TEXT {
        below.truncate(MOST_TEXT);
        below.push("…".into());
    }
    let words = match change {
        '~' => changed(file),
        '+' => alone(&file["new"], &file["size"]["new"]),
        _ => alone(&file["old"], &file["size"]["old"]),
    };
    Line { change, path, words, below }
}

fn alone(entry: &Value, bytes: &Value) -> String {
    let mut words = Vec::new();
    match text(&entry["type"]) {
        "link" => words.push(format!("→ {}", text(&entry["target"]))),
        "file" => words.push(size(number(bytes))),
        "directory" => {}
        other => words.push(other.to_owned()),
    }
    let usual = match text(&entry["type"]) {
        "directory" | "link" => ["0755", "0777"].contains(&text(&entry["mode"])),
        _ => text(&entry["mode"]) == "0644",
    };
    if !usual {
        words.push(text(&entry["mode"]).to_owned());
    }
    let (uid, gid) = (number(&entry["uid"]), number(&entry["gid"]));
    if (uid, gid) != (0, 0) {
        words.push(format!("{uid}:{gid}"));
    }
    words.join(" ")
}

fn changed(file: &Value) -> String {
    let mut words = Vec::new();
    for (aspect, values) in file["aspects"].as_object().into_iter().flatten() {
        let (old, new) = (text(&values["old"]), text(&values["new"]));
        words.push(match aspect.as_str() {
            "content" => {
                let (old, new) = (number(&file["size"]["old"]), number(&file["size"]["new"]));
                match old == new {
                    true => format!("content, {}", size(new)),
                    false => format!("content, {} → {}", size(old), size(new)),
                }
            }
            "hardlink" => match (old, new) {
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
fn whole_folders(files: &[&Value]) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut at = 0;
    while at < files.len() {
        let file = files[at];
        let mut line = line(file);
        at += 1;
        if line.change != '~' && text(&file["type"]) == "directory" && line.path != "/" {
            let inside = files[at..]
                .iter()
                .take_while(|other| text(&other["path"]).starts_with(&line.path))
                .take_while(|other| sign(text(&other["change"])) == line.change)
                .count();
            let side = if line.change == '+' { "new" } else { "old" };
            let below = &files[at..at + inside];
            let bytes: u64 = below.iter().map(|file| number(&file["size"][side])).sum();
            let plain = below.iter().all(|file| !file["text"].is_array());
            if inside >= WORTH_FOLDING && plain {
                line.words = format!("with {inside} paths, {}", size(bytes));
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

fn values(title: &str, changes: &Value, indent: &str, style: Style, say: &mut dyn FnMut(&str)) {
    if list(changes).next().is_some() {
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
    for change in list(changes) {
        let key = text(&change["key"]);
        let line = match (change.get("old"), change.get("new")) {
            (Some(old), Some(new)) => format!("~ {key}: {} → {}", shown(old), shown(new)),
            (Some(old), None) => format!("- {key}: {}", shown(old)),
            (None, Some(new)) => format!("+ {key}: {}", shown(new)),
            (None, None) => format!("~ {key}: another one (a secret is never shown)"),
        };
        say(&format!("{indent}  {line}"));
        for text_line in list(&change["text"]).take(MOST_TEXT) {
            say(&format!("{indent}      {}", text(text_line)));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn added(path: &str, kind: &str) -> Value {
        let entry = json!({ "type": kind, "mode": if kind == "file" { "0644" } else { "0755" },
            "uid": 0, "gid": 0 });
        json!({ "path": path, "change": "added", "type": kind, "size": { "new": 1000 },
            "new": entry })
    }

    fn image(files: &[Value]) -> Value {
        json!({ "kind": "image", "same": false, "old": { "name": "a" }, "new": { "name": "b" },
            "packages": [], "files": files, "config": [] })
    }

    #[test]
    fn a_line_tells_what_differs() {
        let file = json!({ "path": "bin/x", "change": "changed", "type": "file",
            "size": { "old": 3, "new": 1500 },
            "aspects": { "content": { "old": "sha256:1", "new": "sha256:2" },
                "mode": { "old": "0644", "new": "4755" } } });
        let out = diff(&image(&[file, added("etc/new", "file")]), Style::default());
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
        let out = diff(&image(&files), Style::default());
        assert!(out.ends_with("files\n  + d/  with 5 paths, 5.0 kB\n"), "{out}");
        let files: Vec<Value> = (0..100).map(|n| added(&format!("e/{n:03}"), "file")).collect();
        let out = diff(&image(&files), Style::default());
        assert!(out.ends_with("files\n  + e/*  100 added\n"), "{out}");
        let out = diff(&image(&files), Style { all: true, ..Style::default() });
        assert_eq!(out.lines().count(), 103);
        // What cannot be folded is cut.
        let files: Vec<Value> = (0..100).map(|n| added(&format!("{n}/x"), "file")).collect();
        let out = diff(&image(&files), Style::default());
        assert!(out.ends_with("  and 40 lines more (--all)\n"), "{out}");
    }

    #[test]
    fn files_of_packages_are_folded_under_them() {
        let mut file = added("usr/bin/curl", "file");
        file["package"] = json!("curl");
        let mut data = image(&[file]);
        data["packages"] = json!([{ "name": "curl", "change": "upgraded", "old": "1", "new": "2",
            "files": 1 }]);
        let out = diff(&data, Style::default());
        assert!(out.contains("  ~ curl 1 → 2 (upgraded), 1 path\n"), "{out}");
        assert!(!out.contains("usr/bin/curl"), "{out}");
        let out = diff(&data, Style { files: true, ..Style::default() });
        assert!(out.contains("  + usr/bin/curl"), "{out}");
    }

    #[test]
    fn colours_are_those_of_signs_and_secrets_stay_secret() {
        let style = Style { colour: true, ..Style::default() };
        assert_eq!(style.paint("  + a"), "\u{1b}[32m  + a\u{1b}[0m");
        assert_eq!(Style::default().paint("  + a"), "  + a");
        let mut data = image(&[]);
        data["config"] = json!([{ "key": "x", "old": "a\u{1b}[31m", "new": "b" },
            { "key": "files./k.content", "secret": true }]);
        let out = diff(&data, Style::default());
        assert!(out.contains("~ x: a\u{fffd}[31m → b\n"), "{out}");
        assert!(out.contains("~ files./k.content: another one"), "{out}");
    }
}
