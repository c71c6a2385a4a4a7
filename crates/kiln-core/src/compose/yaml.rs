//! YAML text → a tree of [`Node`]s that know their places, with anchors, aliases and merge keys
//! resolved.
//!
//! `saphyr-parser` gives events with positions and keeps its own state on the heap, so depth and
//! size are bounded here: [`MAX_DEPTH`] before anything recurses over the tree, [`MAX_NODES`]
//! counting every copy that an alias makes.

use std::collections::{BTreeMap, HashMap};

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};

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
#[derive(Debug, Clone)]
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

    fn weight(&self) -> usize {
        1 + match &self.value {
            Value::Scalar(_) => 0,
            Value::List(list) => list.iter().map(Self::weight).sum(),
            Value::Map(map) => map.values().map(|entry| 1 + entry.node.weight()).sum(),
        }
    }
}

/// Reads the one document of `text`. `Ok(None)`: there is nothing in it.
///
/// # Errors
/// Text that is no YAML, several documents, duplicate or composite keys, unknown tags, aliases to
/// nothing, and what passes the bounds. The error's `file` is left to the caller.
pub(super) fn parse(text: &str, file: u16) -> Result<Option<Node>, ComposeError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder {
        parser: Parser::new_from_str(text),
        file,
        anchors: HashMap::new(),
        nodes: 0,
        depth: 0,
    };
    builder.document()
}

struct Builder<'t> {
    parser: Parser<'t, StrInput<'t>>,
    file: u16,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
    depth: usize,
}

impl<'t> Builder<'t> {
    fn document(&mut self) -> Result<Option<Node>, ComposeError> {
        let mut root = None;
        let mut begun = false;
        loop {
            let (event, place) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(root),
                Event::DocumentStart(_) if begun => {
                    return Err(self.error(place, "a second YAML document begins here").with_hint(
                        "a Compose file is one document: remove the line `---`, or give the \
                         second file with another -f",
                    ));
                }
                Event::DocumentStart(_) => begun = true,
                Event::StreamStart | Event::DocumentEnd | Event::Nothing => {}
                event => root = Some(self.node(event, place)?),
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, Place), ComposeError> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                let place = self.place(span);
                Ok((event, place))
            }
            Some(Err(error)) => {
                let marker = error.marker();
                let place = Place {
                    file: self.file,
                    line: number(marker.line()),
                    column: number(marker.col() + 1),
                };
                Err(self.error(place, format!("is no valid YAML: {}", error.info())).with_hint(
                    "check the indentation, and quote text that has `: `, ` #`, `{`, `[`, `*`, `&` or `@`",
                ))
            }
            None => Ok((Event::StreamEnd, Place { file: self.file, line: 0, column: 0 })),
        }
    }

    fn place(&self, span: Span) -> Place {
        let start = span.start;
        Place { file: self.file, line: number(start.line()), column: number(start.col() + 1) }
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

    fn node(&mut self, event: Event<'t>, place: Place) -> Result<Node, ComposeError> {
        self.count(1, place)?;
        let (value, anchor, tag) = match event {
            Event::Alias(id) => {
                let Some((node, weight)) = self.anchors.get(&id).cloned() else {
                    // The parser refuses names that it never saw: this is an alias inside its
                    // own anchor.
                    return Err(self.error(place, "an alias stands inside the value it names"));
                };
                self.count(weight, place)?;
                return Ok(node);
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                (Value::Scalar(Scalar { text: text.into_owned(), plain }), anchor, tag)
            }
            Event::SequenceStart(anchor, tag) => (Value::List(self.list(place)?), anchor, tag),
            Event::MappingStart(anchor, tag) => (Value::Map(self.mapping(place)?), anchor, tag),
            _ => return Err(self.error(place, "is no valid YAML")),
        };
        let mut node = Node { place, mark: Mark::None, value };
        if let Some(tag) = tag {
            self.tag(&mut node, &tag)?;
        }
        if anchor > 0 {
            let weight = node.weight();
            self.anchors.insert(anchor, (node.clone(), weight));
        }
        Ok(node)
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
            if matches!(event, Event::SequenceEnd) {
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
            if matches!(event, Event::MappingEnd) {
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

    fn tag(&self, node: &mut Node, tag: &Tag) -> Result<(), ComposeError> {
        if tag.is_yaml_core_schema() {
            if let Value::Scalar(scalar) = &mut node.value {
                scalar.plain = tag.suffix != "str";
            }
            return Ok(());
        }
        node.mark = match (tag.handle.as_str(), tag.suffix.as_str()) {
            ("!", "reset") => Mark::Reset,
            ("!", "override") => Mark::Override,
            ("" | "!", "" | "!") => Mark::None,
            _ => {
                let what = format!("the tag `{tag}` is unknown");
                return Err(self
                    .error(node.place, what)
                    .with_hint("Compose knows `!reset` and `!override`"));
            }
        };
        Ok(())
    }
}

fn number(value: usize) -> u32 {
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
            ("a: &x v\nb: &x w\nc: *x\n", "{a:v,b:w,c:w}"),
        ] {
            let node = parse(text, 0).unwrap().unwrap();
            assert_eq!(render(&node), expected, "{text}");
        }
        assert!(parse("", 0).unwrap().is_none());
        assert!(parse("# nothing\n", 0).unwrap().is_none());
    }

    #[test]
    fn places_count_from_one() {
        let node = parse("a:\n  b: [x,\n      y]\n", 7).unwrap().unwrap();
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
            ("a: 1\n---\nb: 2\n", 2, "second YAML document"),
            ("a: 1\n  b: 2\n", 2, "no valid YAML"),
            ("a: [1, 2\nb: 3\n", 2, "no valid YAML"),
            ("a: *nowhere\n", 1, "no valid YAML"),
            ("a: &x [1, *x]\n", 1, "inside the value"),
            ("a: 1\nb:\n  <<: 5\n", 3, "merges maps"),
            ("? [a]\n: 1\n", 1, "a key is a list"),
            ("a: 1\nb: !nope 3\n", 2, "tag `!nope` is unknown"),
            ("a: {x: 1, x: 2}\n", 1, "`x` is there already"),
            ("a: \"open\n", 1, "no valid YAML"),
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
}
