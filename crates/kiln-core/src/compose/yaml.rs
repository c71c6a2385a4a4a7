//! YAML text → a tree of [`Node`]s that know their places, with anchors, aliases and merge keys
//! resolved.
//!
//! `libyaml-safer` reads what libyaml reads, and so does Compose, whose reader is a port of it too.
//! It gives events with positions and keeps its own state on the heap, so depth and size are
//! bounded here: [`MAX_DEPTH`] before anything recurses over the tree, [`MAX_NODES`]
//! counting every copy that an alias makes.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use libyaml_safer::{Event, EventData, Mark as Position, Parser, ScalarStyle};

use super::error::{ComposeError, Place};

/// How deep collections may nest.
const MAX_DEPTH: usize = 64;
/// How many values a file may have, all copies by aliases counted.
const MAX_NODES: usize = 100_000;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) mark: Mark,
    pub(super) value: Value,
}

/// What a value is.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Map),
}

/// A scalar as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scalar {
    pub(super) text: String,
    /// Written without quotes, so it may stand for null, a truth value or a number.
    pub(super) plain: bool,
}

/// A mapping, by key.
pub(super) type Map = BTreeMap<String, Entry>;

/// One entry of a [`Map`].
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key_place: Place,
    pub(super) node: Node,
}

/// Compose's own tags, which steer the merge of several files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Mark {
    #[default]
    None,
    /// `!reset`: takes the key away.
    Reset,
    /// `!override`: replaces instead of merging.
    Override,
}

impl Node {
    pub(super) fn scalar(text: impl Into<String>, place: Place) -> Self {
        let value = Value::Scalar(Scalar { text: text.into(), plain: false });
        Self { place, mark: Mark::None, value }
    }

    pub(super) fn map(map: Map, place: Place) -> Self {
        Self { place, mark: Mark::None, value: Value::Map(map) }
    }

    /// `null`, `~` or nothing at all.
    pub(super) fn is_null(&self) -> bool {
        match &self.value {
            Value::Scalar(scalar) => {
                scalar.plain && matches!(scalar.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
            }
            Value::List(_) | Value::Map(_) => false,
        }
    }

    /// Whether both give the same values, wherever they stand.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        match (&self.value, &other.value) {
            (Value::Scalar(left), Value::Scalar(right)) => left == right,
            (Value::List(left), Value::List(right)) => {
                left.len() == right.len()
                    && left.iter().zip(right).all(|(left, right)| left.says_the_same(right))
            }
            (Value::Map(left), Value::Map(right)) => {
                left.len() == right.len()
                    && left.iter().zip(right).all(|((left, one), (right, other))| {
                        left == right && one.node.says_the_same(&other.node)
                    })
            }
            _ => false,
        }
    }

    /// How many values it has, itself counted.
    pub(super) fn weight(&self) -> usize {
        1 + match &self.value {
            Value::Scalar(_) => 0,
            Value::List(list) => list.iter().map(Self::weight).sum(),
            Value::Map(map) => map.values().map(|entry| 1 + entry.node.weight()).sum(),
        }
    }
}

/// Reads the documents of `text`, those left out that have nothing in them.
///
/// # Errors
/// Text that is no YAML, duplicate or composite keys, aliases to nothing, and what passes the
/// bounds. The error's `file` is left to the caller.
pub(super) fn parse(text: &str, file: u16) -> Result<Vec<Node>, ComposeError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // The library takes a block of text for granted to end with its line: it gets the break, and the
    // text is given back without it.
    let unended = text.rsplit('\n').next().is_some_and(|line| !line.trim().is_empty());
    let ended = match text.ends_with('\n') {
        true => Cow::Borrowed(text),
        false => Cow::Owned(format!("{text}\n")),
    };
    let end = unended.then_some(ended.len() as u64);
    // Whatever else it may stumble over must not take the agent along.
    let read = std::panic::catch_unwind(|| {
        let mut parser = Parser::new();
        let mut input = ended.as_bytes();
        parser.set_input_string(&mut input);
        let anchors = HashMap::new();
        let mut builder = Builder { parser, file, end, anchors, nodes: 0, depth: 0 };
        builder.documents()
    });
    read.unwrap_or_else(|_| {
        Err(ComposeError { what: "is no YAML that can be read".into(), ..ComposeError::default() })
    })
}

/// Where documents of YAML's own tags begin.
const CORE: &str = "tag:yaml.org,2002:";

struct Builder<'t> {
    parser: Parser<'t>,
    file: u16,
    /// Where the input ends, if its last line has no end.
    end: Option<u64>,
    /// `None` while the value is being read.
    anchors: HashMap<String, Option<(Node, usize)>>,
    nodes: usize,
    depth: usize,
}

impl Builder<'_> {
    fn documents(&mut self) -> Result<Vec<Node>, ComposeError> {
        let mut all = Vec::new();
        loop {
            let (event, place) = self.next()?;
            match event {
                EventData::StreamEnd => return Ok(all),
                EventData::DocumentStart { .. } => self.anchors.clear(),
                EventData::StreamStart { .. } | EventData::DocumentEnd { .. } => {}
                event => {
                    let node = self.node(event, place)?;
                    all.extend((!node.is_null()).then_some(node));
                }
            }
        }
    }

    fn next(&mut self) -> Result<(EventData, Place), ComposeError> {
        match self.parser.parse() {
            Ok(Event { mut data, start_mark, end_mark, .. }) => {
                let place = self.place(start_mark);
                if let EventData::Scalar { value, style, .. } = &mut data
                    && matches!(style, ScalarStyle::Literal | ScalarStyle::Folded)
                    && self.end.is_some_and(|end| end_mark.index >= end)
                    && value.ends_with('\n')
                {
                    value.pop();
                }
                Ok((data, place))
            }
            Err(error) => {
                let place = self.place(error.problem_mark().unwrap_or_default());
                let context = error.context().map(|text| format!(" {text}")).unwrap_or_default();
                let what = format!("is no valid YAML: {}{context}", error.problem());
                Err(self.error(place, what).with_hint(
                    "check the indentation, and quote text that has `: `, ` #`, `{`, `[`, `*`, `&` or `@`",
                ))
            }
        }
    }

    fn place(&self, at: Position) -> Place {
        Place { file: self.file, line: number(at.line + 1), column: number(at.column + 1) }
    }

    fn error(&self, place: Place, what: impl Into<String>) -> ComposeError {
        let Place { line, column, .. } = place;
        ComposeError { line, column, what: what.into(), ..ComposeError::default() }
    }

    fn count(&mut self, weight: usize, place: Place) -> Result<(), ComposeError> {
        self.nodes += weight;
        if self.nodes > MAX_NODES {
            let what =
                format!("the file has more than {MAX_NODES} values, copies by aliases counted");
            return Err(self.error(place, what));
        }
        Ok(())
    }

    fn node(&mut self, event: EventData, place: Place) -> Result<Node, ComposeError> {
        self.count(1, place)?;
        let (anchor, tag) = match &event {
            EventData::Alias { anchor } => return self.alias(anchor, place),
            EventData::Scalar { anchor, tag, .. }
            | EventData::SequenceStart { anchor, tag, .. }
            | EventData::MappingStart { anchor, tag, .. } => (anchor.clone(), tag.clone()),
            _ => return Err(self.error(place, "is no valid YAML")),
        };
        if let Some(anchor) = &anchor {
            self.anchors.insert(anchor.clone(), None);
        }
        let value = match event {
            EventData::Scalar { value, style, .. } => {
                Value::Scalar(Scalar { text: value, plain: style == ScalarStyle::Plain })
            }
            EventData::SequenceStart { .. } => Value::List(self.list(place)?),
            _ => Value::Map(self.mapping(place)?),
        };
        let mut node = Node { place, mark: Mark::None, value };
        if let Some(tag) = tag.filter(|tag| !tag.is_empty()) {
            mark(&mut node, &tag);
        }
        if let Some(anchor) = anchor {
            let weight = node.weight();
            self.anchors.insert(anchor, Some((node.clone(), weight)));
        }
        Ok(node)
    }

    fn alias(&mut self, anchor: &str, place: Place) -> Result<Node, ComposeError> {
        match self.anchors.get(anchor).cloned() {
            Some(Some((node, weight))) => {
                self.count(weight, place)?;
                Ok(node)
            }
            Some(None) => Err(self.error(place, "an alias stands inside the value it names")),
            None => Err(self
                .error(place, format!("is no valid YAML: there is no anchor `&{anchor}` above"))
                .with_hint(format!("write `&{anchor}` where the value is first given"))),
        }
    }

    fn descend(&mut self, place: Place) -> Result<(), ComposeError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error(place, format!("nests deeper than {MAX_DEPTH} levels")));
        }
        Ok(())
    }

    fn list(&mut self, place: Place) -> Result<Vec<Node>, ComposeError> {
        self.descend(place)?;
        let mut list = Vec::new();
        loop {
            let (event, place) = self.next()?;
            if matches!(event, EventData::SequenceEnd) {
                self.depth -= 1;
                return Ok(list);
            }
            list.push(self.node(event, place)?);
        }
    }

    fn mapping(&mut self, place: Place) -> Result<Map, ComposeError> {
        self.descend(place)?;
        let mut map = Map::new();
        let mut merges = Vec::new();
        loop {
            let (event, key_place) = self.next()?;
            if matches!(event, EventData::MappingEnd) {
                break;
            }
            let key = self.node(event, key_place)?;
            let Value::Scalar(Scalar { text: key, plain }) = key.value else {
                return Err(self.error(key_place, "a key is a list or a map; it has to be text"));
            };
            let (event, place) = self.next()?;
            let mut node = self.node(event, place)?;
            if node.is_null() || node.place.line == 0 {
                node.place = key_place;
            }
            if plain && key == "<<" {
                merges.push((key_place, node));
                continue;
            }
            if let Some(first) = map.get(&key) {
                let Entry { key_place: first, .. } = first;
                let what = format!("`{key}` is there already, on line {}", first.line);
                return Err(self.error(key_place, what).with_hint("keep one of the two"));
            }
            map.insert(key, Entry { key_place, node });
        }
        self.depth -= 1;
        for (place, node) in merges {
            self.merge_key(&mut map, place, node)?;
        }
        Ok(map)
    }

    /// `<<: *one` or `<<: [*one, *two]`: what is there already wins, then the earlier map.
    fn merge_key(&self, map: &mut Map, place: Place, node: Node) -> Result<(), ComposeError> {
        let sources = match node.value {
            Value::List(list) => list,
            value => vec![Node { value, ..node }],
        };
        for source in sources {
            let Value::Map(source) = source.value else {
                return Err(self
                    .error(place, "`<<` merges maps, and this is none")
                    .with_hint("write `<<: *anchor` or `<<: [*one, *two]`"));
            };
            for (key, entry) in source {
                map.entry(key).or_insert(entry);
            }
        }
        Ok(())
    }
}

/// What a tag makes of a value: text, one of Compose's own marks, or nothing.
fn mark(node: &mut Node, tag: &str) {
    match (tag, tag.strip_prefix(CORE), &mut node.value) {
        ("!reset", ..) => node.mark = Mark::Reset,
        ("!override", ..) => node.mark = Mark::Override,
        // `!!merge <<` is how some writers put down a merge key.
        (_, Some("int" | "float" | "bool" | "null" | "merge"), Value::Scalar(scalar)) => {
            scalar.plain = true;
        }
        // `!!str`, and what nobody knows, which Compose takes for text too.
        (_, _, Value::Scalar(scalar)) => scalar.plain = false,
        _ => {}
    }
}

fn number(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(node: &Node) -> String {
        match &node.value {
            _ if node.is_null() => "~".into(),
            Value::Scalar(scalar) => scalar.text.clone(),
            Value::List(list) => {
                format!("[{}]", list.iter().map(render).collect::<Vec<_>>().join(","))
            }
            Value::Map(map) => {
                let pair =
                    |(key, entry): (&String, &Entry)| format!("{key}:{}", render(&entry.node));
                format!("{{{}}}", map.iter().map(pair).collect::<Vec<_>>().join(","))
            }
        }
    }

    #[test]
    fn documents() {
        for (text, expected) in [
            ("a: 1\nb: [x, 'y', \"z\"]\nc:\n", "{a:1,b:[x,y,z],c:~}"),
            ("a: &x {p: 1, q: 2}\nb: *x\n", "{a:{p:1,q:2},b:{p:1,q:2}}"),
            ("a: &x {p: 1, q: 2}\nb:\n  <<: *x\n  q: 3\n", "{a:{p:1,q:2},b:{p:1,q:3}}"),
            (
                "a: &x {p: 1}\nb: &y {p: 2, q: 2}\nc:\n  q: 0\n  <<: [*x, *y]\n",
                "{a:{p:1},b:{p:2,q:2},c:{p:1,q:0}}",
            ),
            ("a: |\n  one\n  two\nb: >-\n  three\n  four\n", "{a:one\ntwo\n,b:three four}"),
            ("\u{feff}a: !!str 5\n", "{a:5}"),
            ("a: &x {p: 1}\nb:\n  !!merge <<: *x\n  q: 2\n", "{a:{p:1},b:{p:1,q:2}}"),
            ("a: &x v\nb: &x w\nc: *x\n", "{a:v,b:w,c:w}"),
            ("a: 1\n---\n---\nb: 2\n", "{a:1}{b:2}"),
            ("a:\n  b: [\n    x,\n  ]\n  c: {\n  }\n", "{a:{b:[x],c:{}}}"),
            ("a: |\n  x", "{a:x}"),
            ("a: |\n  x\n  ", "{a:x\n}"),
            ("a: >+\n  x\n  y", "{a:x y}"),
            ("a: |-\n  x", "{a:x}"),
            ("a: |\n  x\n# c", "{a:x\n}"),
            ("a: x", "{a:x}"),
            ("a: !nope 3\nb: !nope {x: y}\n", "{a:3,b:{x:y}}"),
        ] {
            let nodes = parse(text, 0).unwrap();
            assert_eq!(nodes.iter().map(render).collect::<String>(), expected, "{text}");
        }
        for nothing in ["", "# nothing\n", "---\n", "~\n"] {
            assert!(parse(nothing, 0).unwrap().is_empty(), "{nothing:?}");
        }
    }

    #[test]
    fn places_count_from_one() {
        let node = parse("a:\n  b: [x,\n      y]\n", 7).unwrap().remove(0);
        let Value::Map(map) = node.value else { panic!() };
        let Value::Map(inner) = &map["a"].node.value else { panic!() };
        assert_eq!(inner["b"].key_place, Place { file: 7, line: 2, column: 3 });
        let Value::List(list) = &inner["b"].node.value else { panic!() };
        assert_eq!(list[1].place, Place { file: 7, line: 3, column: 7 });
    }

    #[test]
    fn refusals_name_the_line() {
        for (text, line, what) in [
            ("a: 1\nb: 2\na: 3\n", 3, "`a` is there already, on line 1"),
            ("a: 1\n  b: 2\n", 2, "no valid YAML"),
            ("a: [1, 2\nb: 3\n", 2, "no valid YAML"),
            ("a: *nowhere\n", 1, "no valid YAML"),
            ("a: &x [1, *x]\n", 1, "inside the value"),
            ("a: 1\nb:\n  <<: 5\n", 3, "merges maps"),
            ("? [a]\n: 1\n", 1, "a key is a list"),
            ("a: {x: 1, x: 2}\n", 1, "`x` is there already"),
            ("a: \"open\n", 2, "no valid YAML"),
        ] {
            let error = parse(text, 0).unwrap_err();
            assert!(error.what.contains(what), "{text}: {error}");
            assert_eq!(error.line, line, "{text}: {error}");
        }
    }

    #[test]
    fn depth_and_alias_bombs_are_bounded() {
        let deep = format!("a: {}1{}\n", "[".repeat(60_000), "]".repeat(60_000));
        assert!(parse(&deep, 0).is_err());
        let deep = format!("a: {}1{}\n", "[".repeat(70), "]".repeat(70));
        assert!(parse(&deep, 0).unwrap_err().what.contains("deeper than 64"));
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..20 {
            let below = format!("*a{}", level - 1);
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![below; 10].join(", ")));
        }
        assert!(parse(&bomb, 0).unwrap_err().what.contains("more than 100000 values"));
    }

    /// Whatever is cut off or changed: an answer, and no panic.
    #[test]
    fn damaged_text_is_an_error_at_most() {
        let whole = "%YAML 1.1\n---\na: &x [1, 'it''s', \"q\\u00e9\\\n  z\", !!str 5, {k: v, ? w}]\n\
                     b: *x\n? c\n: |+2\n    text\n\n  more\nd: >-\n  fold\n\n   in\n...\n--- !t\ne:\n- - f\n  - g: h\n";
        for end in (0..=whole.len()).filter(|end| whole.is_char_boundary(*end)) {
            let _ = parse(&whole[..end], 0);
            let _ = parse(&whole[end..], 0);
        }
        let letters: Vec<char> = whole.chars().collect();
        for at in 0..letters.len() {
            for odd in [
                ' ', '\n', '\t', '\r', '"', '\'', '[', '}', ':', '-', '|', '&', '*', '!', '#', '%',
                '\\', '\u{85}', '\0',
            ] {
                let mut letters = letters.clone();
                letters[at] = odd;
                let _ = parse(&letters.iter().collect::<String>(), 0);
                letters.truncate(at + 1);
                let _ = parse(&letters.iter().collect::<String>(), 0);
            }
        }
    }
}
