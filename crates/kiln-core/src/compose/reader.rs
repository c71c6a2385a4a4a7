//! A cursor over the merged tree: typed access to values, and errors that know file, line and key.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::error::{ComposeError, ComposeErrors, Place};
use super::load::LoadRequest;
use super::yaml::{Entry, Node, Scalar, Value};
use super::{paths, units};

/// What all readers share.
pub(super) struct Context<'r> {
    /// Names of the files, as shown; indexed by [`Place::file`].
    files: RefCell<Vec<String>>,
    /// The project's directory.
    pub(super) dir: PathBuf,
    /// What names of files are shown relative to.
    pub(super) shown_from: PathBuf,
    /// The process environment over `.env`.
    pub(super) env: BTreeMap<String, String>,
    pub(super) read: &'r dyn Fn(&Path) -> io::Result<Vec<u8>>,
    listed: RefCell<Vec<(Place, String)>>,
    warnings: RefCell<Vec<String>>,
    refusals: RefCell<Vec<ComposeError>>,
    /// The project is shown and not run, so what only running forbids is a warning.
    shown_only: bool,
    /// How many values were read and copied.
    values: Cell<usize>,
}

/// How many values a project may have, all copies by `extends` counted.
const MAX_VALUES: usize = 1_000_000;

impl<'r> Context<'r> {
    pub(super) fn new(
        dir: PathBuf,
        request: &LoadRequest<'r>,
        env: BTreeMap<String, String>,
        shown_only: bool,
    ) -> Self {
        let (shown_from, read) = (request.dir.clone(), request.read);
        let (files, listed, warnings, refusals) = Default::default();
        let values = Cell::new(0);
        Self { files, dir, shown_from, env, read, listed, warnings, refusals, shown_only, values }
    }

    /// Gives the file that messages call `shown` its number.
    pub(super) fn add_file(&self, shown: &str) -> u16 {
        let mut files = self.files.borrow_mut();
        files.push(shown.to_owned());
        u16::try_from(files.len() - 1).unwrap_or(u16::MAX)
    }

    fn file(&self, place: Place) -> String {
        self.files.borrow().get(usize::from(place.file)).cloned().unwrap_or_default()
    }

    /// `file:line`.
    pub(super) fn line_of(&self, place: Place) -> String {
        format!("{}:{}", self.file(place), place.line)
    }

    /// Counts values that were read or copied.
    pub(super) fn count(&self, values: usize) -> Result<(), ComposeError> {
        let all = self.values.get().saturating_add(values);
        self.values.set(all);
        if all > MAX_VALUES {
            let what = format!("the project has more than {MAX_VALUES} values, copies counted");
            return Err(ComposeError::of_file("", what));
        }
        Ok(())
    }

    /// The name by which messages call a file.
    pub(super) fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.shown_from).unwrap_or(path).display().to_string()
    }

    pub(super) fn error(&self, place: Place, key: String, what: impl Into<String>) -> ComposeError {
        ComposeError {
            file: self.file(place),
            line: place.line,
            column: place.column,
            key,
            what: what.into(),
            hint: None,
        }
    }

    pub(super) fn warn(&self, text: String) {
        let mut warnings = self.warnings.borrow_mut();
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// Keeps what is wrong; reading goes on.
    pub(super) fn refuse(&self, error: ComposeError) {
        self.refusals.borrow_mut().push(error);
    }

    /// Keeps what can be read and shown, but not run.
    pub(super) fn refuse_to_run(&self, error: ComposeError) {
        match self.shown_only {
            true => self.warn(format!("{error}; it cannot be run like this")),
            false => self.refuse(error),
        }
    }

    /// The value, or `None` after the error was kept.
    pub(super) fn keep<T>(&self, result: Result<T, ComposeError>) -> Option<T> {
        result.map_err(|error| self.refuse(error)).ok()
    }

    /// `None` when anything is wrong so far: what follows would only say it again in other words.
    pub(super) fn nothing_refused(&self) -> Option<()> {
        self.refusals.borrow().is_empty().then_some(())
    }

    /// All that was kept.
    pub(super) fn refusals(&self) -> Option<ComposeErrors> {
        ComposeErrors::of(self.refusals.take(), &self.files.borrow())
    }

    /// What is listed, by its place, and the warnings.
    pub(super) fn notes(&self) -> (Vec<String>, Vec<String>) {
        let mut listed = self.listed.take();
        listed.sort();
        listed.dedup();
        let line = |(place, text)| format!("{}: {text}", self.line_of(place));
        (listed.into_iter().map(line).collect(), self.warnings.take())
    }

    /// `text` as an absolute path, from the project's directory, `~` expanded.
    pub(super) fn absolute(&self, text: &str) -> PathBuf {
        paths::absolute(self, &self.dir, text)
    }
}

/// `.` and `..` taken out without looking at the disk.
pub(super) fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

/// A value, and the way to it.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) cx: &'a Context<'a>,
    pub(super) node: &'a Node,
    up: Option<&'a At<'a>>,
    step: Step<'a>,
    key_place: Place,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

impl<'a> At<'a> {
    pub(super) fn root(cx: &'a Context<'a>, node: &'a Node) -> Self {
        Self { cx, node, up: None, step: Step::Root, key_place: node.place }
    }

    fn child(&'a self, step: Step<'a>, key_place: Place, node: &'a Node) -> Self {
        At { cx: self.cx, node, up: Some(self), step, key_place }
    }

    /// The key that leads here; empty in a list.
    pub(super) fn key(&self) -> &'a str {
        match self.step {
            Step::Key(key) => key,
            Step::Root | Step::Index(_) => "",
        }
    }

    /// `services.web.ports[0]`.
    pub(super) fn path(&self) -> String {
        let mut path = self.up.map_or_else(String::new, At::path);
        match self.step {
            Step::Root => {}
            Step::Key(key) if path.is_empty() => path.push_str(key),
            Step::Key(key) => path.extend([".", key]),
            Step::Index(at) => path.push_str(&format!("[{at}]")),
        }
        path
    }

    /// `file:line` of the key.
    pub(super) fn shown_place(&self) -> String {
        self.cx.line_of(self.key_place)
    }

    /// An error at the value.
    pub(super) fn error(&self, what: impl Into<String>) -> ComposeError {
        self.cx.error(self.node.place, self.path(), what)
    }

    /// An error at the key.
    pub(super) fn refuse(&self, what: impl Into<String>) -> ComposeError {
        self.cx.error(self.key_place, self.path(), what)
    }

    /// `expected …, found …`.
    pub(super) fn expected(&self, what: &str) -> ComposeError {
        self.error(format!("expected {what}, found {}", self.found()))
    }

    fn found(&self) -> String {
        match &self.node.value {
            _ if self.node.is_null() => "nothing".into(),
            Value::Scalar(scalar) if scalar.text.chars().count() > 60 => {
                format!("`{}…`", scalar.text.chars().take(60).collect::<String>())
            }
            Value::Scalar(scalar) => format!("`{}`", scalar.text),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a map".into(),
        }
    }

    /// Lists the key as accepted without meaning.
    pub(super) fn list(&self) {
        self.list_as("");
    }

    /// Lists the key with a remark.
    pub(super) fn list_as(&self, remark: &str) {
        let colon = if remark.is_empty() { "" } else { ": " };
        let text = format!("{}{colon}{remark}", self.path());
        self.cx.listed.borrow_mut().push((self.key_place, text));
    }

    pub(super) fn is_null(&self) -> bool {
        self.node.is_null()
    }

    /// Nothing, or text that a variable left empty: as good as not there.
    pub(super) fn is_unset(&self) -> bool {
        self.is_null()
            || matches!(&self.node.value, Value::Scalar(scalar) if scalar.text.is_empty())
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    /// The entry of `key`, if this is a map that has it.
    pub(super) fn get(&'a self, key: &'a str) -> Option<At<'a>> {
        let Value::Map(map) = &self.node.value else { return None };
        let Entry { key_place, node } = map.get(key)?;
        Some(self.child(Step::Key(key), *key_place, node))
    }

    /// The entries of a map; nothing counts as an empty one.
    pub(super) fn entries(&'a self) -> Result<impl Iterator<Item = At<'a>>, ComposeError> {
        let map = match &self.node.value {
            Value::Map(map) => Some(map),
            _ if self.is_null() => None,
            _ => return Err(self.expected("a map")),
        };
        Ok(map.into_iter().flatten().map(move |(key, Entry { key_place, node })| {
            self.child(Step::Key(key), *key_place, node)
        }))
    }

    /// The items of a list; nothing counts as an empty one.
    pub(super) fn items(&'a self) -> Result<impl Iterator<Item = At<'a>>, ComposeError> {
        let list = match &self.node.value {
            Value::List(list) => list.as_slice(),
            _ if self.is_null() => &[],
            _ => return Err(self.expected("a list")),
        };
        Ok(list
            .iter()
            .enumerate()
            .map(move |(at, node)| self.child(Step::Index(at), node.place, node)))
    }

    /// All items of a list of texts. Those that are none have been kept among the refusals.
    pub(super) fn texts(&'a self) -> Result<Vec<String>, ComposeError> {
        Ok(self.items()?.filter_map(|item| self.cx.keep(item.text())).collect())
    }

    fn scalar(&self, what: &str) -> Result<&'a Scalar, ComposeError> {
        match &self.node.value {
            Value::Scalar(scalar) if !self.is_null() => Ok(scalar),
            _ => Err(self.expected(what)),
        }
    }

    /// The scalar as written.
    pub(super) fn raw(&self, what: &str) -> Result<&'a str, ComposeError> {
        self.scalar(what).map(|scalar| scalar.text.as_str())
    }

    /// The scalar as text; numbers in the form in which Compose hands them on.
    pub(super) fn text(&self) -> Result<String, ComposeError> {
        let scalar = self.scalar("text")?;
        Ok(match scalar.text.as_str() {
            "True" | "TRUE" if scalar.plain => "true".into(),
            "False" | "FALSE" if scalar.plain => "false".into(),
            text if scalar.plain => units::number_as_text(text).unwrap_or_else(|| text.into()),
            text => text.into(),
        })
    }

    /// Text, or `None` for nothing.
    pub(super) fn optional_text(&self) -> Result<Option<String>, ComposeError> {
        if self.is_null() { Ok(None) } else { self.text().map(Some) }
    }

    pub(super) fn truth(&self) -> Result<bool, ComposeError> {
        const WHAT: &str = "`true` or `false`";
        units::truth(self.raw(WHAT)?).ok_or_else(|| self.expected(WHAT))
    }

    /// A whole number that fits `T`.
    pub(super) fn number<T: std::str::FromStr>(&self, what: &str) -> Result<T, ComposeError> {
        self.scalar(what)?;
        self.text()?.parse().map_err(|_| self.expected(what))
    }

    pub(super) fn bytes(&self) -> Result<u64, ComposeError> {
        const WHAT: &str = "a size in bytes";
        units::bytes(self.raw(WHAT)?)
            .ok_or_else(|| self.expected(WHAT).with_hint("for example `64m` or `1gb`"))
    }

    /// Nanoseconds.
    pub(super) fn duration(&self) -> Result<u64, ComposeError> {
        const WHAT: &str = "a duration";
        units::duration(self.raw(WHAT)?)
            .ok_or_else(|| self.expected(WHAT).with_hint("for example `500ms`, `10s` or `1m30s`"))
    }

    /// Permission bits. A plain number that does not show that it is octal is decimal, as in Compose,
    /// and most probably not what was meant.
    pub(super) fn mode(&self) -> Result<u32, ComposeError> {
        const WHAT: &str = "permission bits in octal";
        let scalar = self.scalar(WHAT)?;
        if scalar.plain && !scalar.text.starts_with('0') {
            let text = self.text()?;
            let bits = text.parse::<u32>().ok().filter(|bits| *bits <= 0o7777);
            let bits = bits.ok_or_else(|| self.expected(WHAT).with_hint("for example `0440`"))?;
            self.cx.warn(format!(
                "{}: {}: `{text}` is decimal, which is 0{bits:o} in octal; write `0{text}` if that is meant",
                self.shown_place(),
                self.path()
            ));
            return Ok(bits);
        }
        units::octal(&scalar.text)
            .ok_or_else(|| self.expected(WHAT).with_hint("for example `0440`"))
    }

    /// An absolute path inside the instance, cleaned.
    pub(super) fn target(&self, text: &str) -> Result<String, ComposeError> {
        let cleaned = |text: &str| clean(Path::new(text)).display().to_string();
        if !text.starts_with('/') {
            let absolute = format!("/{}", text.trim_start_matches("./"));
            let error = self.error(format!("`{text}` is no absolute path of the instance"));
            self.cx.refuse_to_run(error.with_hint(format!("write `{absolute}`")));
            return Ok(cleaned(&absolute));
        }
        Ok(cleaned(text))
    }
}
