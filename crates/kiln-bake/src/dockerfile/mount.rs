//! `RUN --mount`: comma-separated options as BuildKit's `commands_runmount.go` reads them. Names
//! and values stay as written until the step is reached, for they may have variables in them;
//! only `from` may not.

use super::{Mistake, instruction};

/// One `--mount` as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountFlag {
    /// The options.
    fields: Vec<String>,
    /// `from`: a stage, a named context or a base.
    pub from: Option<String>,
}

/// One `--mount`, expanded and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `type`.
    pub kind: Kind,
    /// `source`; what it means depends on the type.
    pub source: Option<String>,
    /// `target`.
    pub target: Option<String>,
    /// `readonly` or the type's default.
    pub read_only: bool,
    /// `id`.
    pub id: Option<String>,
    /// `sharing` of a cache.
    pub sharing: Sharing,
    /// `size` of a tmpfs, in bytes; `None`: no limit of its own.
    pub size: Option<u64>,
    /// `required`, of a secret or an agent.
    pub required: bool,
    /// `env` of a secret; empty is its id.
    pub env: Option<String>,
    /// `mode`.
    pub mode: Option<u32>,
    /// `uid`.
    pub uid: Option<u32>,
    /// `gid`.
    pub gid: Option<u32>,
}

/// What is mounted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// Files of the context, of a stage, a named context or a base.
    #[default]
    Bind,
    /// A directory that persists between builds and is no part of the image.
    Cache,
    /// An empty directory in memory.
    Tmpfs,
    /// A secret, as a file or a variable.
    Secret,
    /// The socket of an SSH agent.
    Ssh,
}

/// Who may use a cache beside a step that does; the strictest is the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sharing {
    /// Anybody.
    #[default]
    Shared,
    /// Nobody: others get another cache.
    Private,
    /// Nobody: others wait.
    Locked,
}

const KINDS: [(&str, Kind); 5] = [
    ("bind", Kind::Bind),
    ("cache", Kind::Cache),
    ("tmpfs", Kind::Tmpfs),
    ("secret", Kind::Secret),
    ("ssh", Kind::Ssh),
];

const SHARINGS: [(&str, Sharing); 3] =
    [("shared", Sharing::Shared), ("private", Sharing::Private), ("locked", Sharing::Locked)];

const OPTIONS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

impl MountFlag {
    /// Reads the flag's value, as far as that can be done without variables.
    pub(super) fn read(text: String) -> Result<Self, Mistake> {
        let fields = fields(&text)?;
        let mut flag = Self { fields, from: None };
        for field in &flag.fields {
            let (name, value) = field.split_once('=').unwrap_or((field, ""));
            if !name.eq_ignore_ascii_case("from") {
                continue;
            }
            if value.trim_end_matches('$').contains('$') {
                let what = format!(
                    "`from={value}` of --mount: 'from' doesn't support variable expansion, define \
                     alias stage instead"
                );
                return Err(
                    Mistake::new(what).hint("name a stage that says FROM with the variable")
                );
            }
            flag.from = (!value.is_empty()).then(|| value.to_owned());
        }
        if !flag.fields.iter().any(|field| field.contains('$')) {
            // Without variables every mistake shows at once.
            flag.expand(&|value| Ok(value.to_owned()))?;
        }
        Ok(flag)
    }

    /// Whether it reads the build context, or may do so once its variables are known.
    pub(crate) fn may_read_context(&self) -> bool {
        let kind = self.fields.iter().rev().find_map(|field| match field.split_once('=') {
            Some((name, value)) if name.eq_ignore_ascii_case("type") => Some(value),
            _ => None,
        });
        let bind = kind.is_none_or(|kind| kind.contains('$') || kind.eq_ignore_ascii_case("bind"));
        self.from.is_none() && bind
    }

    /// Expands the values and reads them.
    ///
    /// # Errors
    /// Says which option is wrong, and what to do.
    pub(crate) fn expand(
        &self,
        expand: &dyn Fn(&str) -> Result<String, String>,
    ) -> Result<Mount, Mistake> {
        let mut reading = Reading::default();
        for field in &self.fields {
            let name = field.split('=').next().unwrap_or_default().to_ascii_lowercase();
            match field.split_once('=') {
                None => reading.bare(&name, field)?,
                Some((_, value)) if name == "from" => reading.from = !value.is_empty(),
                Some((_, value)) => {
                    let value = expand(value)
                        .map_err(|what| Mistake::new(format!("`{field}` of --mount: {what}")))?;
                    reading.option(&name, field, value)?;
                }
            }
        }
        reading.finish()
    }
}

#[derive(Debug, Default)]
struct Reading {
    kind: Kind,
    from: bool,
    source: Option<String>,
    target: Option<String>,
    read_only: Option<bool>,
    id: Option<String>,
    sharing: Option<Sharing>,
    size: Option<u64>,
    required: bool,
    env: Option<String>,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Reading {
    /// An option without a value.
    fn bare(&mut self, name: &str, field: &str) -> Result<(), Mistake> {
        match name {
            "readonly" | "ro" => self.read_only = Some(true),
            "readwrite" | "rw" => self.read_only = Some(false),
            "required" => {
                self.only_for(name, &[Kind::Secret, Kind::Ssh])?;
                self.required = true;
            }
            _ => {
                let what = format!("invalid field '{field}' must be a key=value pair");
                return Err(Mistake::new(what).hint(format!("write `{field}=…`")));
            }
        }
        Ok(())
    }

    fn option(&mut self, name: &str, field: &str, value: String) -> Result<(), Mistake> {
        let wrong = |what: &str| {
            Mistake::new(format!("invalid value for {name}: {value}"))
                .hint(format!("`{field}` of --mount takes a {what}"))
        };
        let truth = || go_bool(&value).ok_or_else(|| wrong("truth value"));
        let number = |radix| u32::from_str_radix(&value, radix);
        match name {
            "type" => self.kind = one_of(&value, &KINDS, "mount type")?,
            "sharing" => self.sharing = Some(one_of(&value, &SHARINGS, "sharing value")?),
            "source" | "src" => self.source = (!value.is_empty()).then_some(value),
            "target" | "dst" | "destination" => self.target = (!value.is_empty()).then_some(value),
            "readonly" | "ro" => self.read_only = Some(truth()?),
            "readwrite" | "rw" => self.read_only = Some(!truth()?),
            "required" => {
                self.only_for(name, &[Kind::Secret, Kind::Ssh])?;
                self.required = truth()?;
            }
            "size" => {
                self.only_for(name, &[Kind::Tmpfs])?;
                let size = bytes(&value).ok_or_else(|| wrong("size like `64m`"))?;
                self.size = (size != 0).then_some(size);
            }
            "id" => self.id = (!value.is_empty()).then_some(value),
            "mode" => self.mode = Some(number(8).map_err(|_| wrong("octal mode"))?),
            "uid" => self.uid = Some(number(10).map_err(|_| wrong("number of a user"))?),
            "gid" => self.gid = Some(number(10).map_err(|_| wrong("number of a group"))?),
            "env" => self.env = Some(value),
            _ => {
                let what = format!("unexpected key '{name}' in '{field}'");
                return Err(near(Mistake::new(what), name, &OPTIONS));
            }
        }
        Ok(())
    }

    fn only_for(&self, name: &str, kinds: &[Kind]) -> Result<(), Mistake> {
        if kinds.contains(&self.kind) {
            return Ok(());
        }
        let what = format!("unexpected key '{name}' for mount type '{}'", self.kind.name());
        Err(Mistake::new(what).hint("`type` has to stand before it"))
    }

    fn finish(self) -> Result<Mount, Mistake> {
        let kind = self.kind;
        let not_for = |given: bool, name: &str| match given {
            true => {
                Err(Mistake::new(format!("{name} not allowed for \"{}\" type mounts", kind.name())))
            }
            false => Ok(()),
        };
        if matches!(kind, Kind::Bind | Kind::Tmpfs) {
            not_for(self.mode.is_some(), "mode")?;
            not_for(self.uid.is_some(), "uid")?;
            not_for(self.gid.is_some(), "gid")?;
        }
        not_for(self.sharing.is_some() && kind != Kind::Cache, "sharing")?;
        match kind {
            Kind::Secret => {
                not_for(self.from, "from")?;
                if self.source.is_some() && self.id.is_some() {
                    return Err(Mistake::new("both source and id can't be set")
                        .hint("of a secret they mean the same: keep one"));
                }
                if self.source.is_none() && self.id.is_none() && self.target.is_none() {
                    let what = "invalid secret mount. one of source, target required";
                    return Err(Mistake::new(what).hint("write `--mount=type=secret,id=NAME`"));
                }
            }
            Kind::Ssh => not_for(self.source.is_some(), "source")?,
            Kind::Bind | Kind::Cache | Kind::Tmpfs if self.target.is_none() => {
                let what = format!("a mount of type {} has no `target`", kind.name());
                return Err(Mistake::new(what).hint("say where it goes: `target=/path`"));
            }
            Kind::Bind | Kind::Cache | Kind::Tmpfs => {}
        }
        let writable = matches!(kind, Kind::Cache | Kind::Tmpfs);
        Ok(Mount {
            kind,
            source: self.source,
            target: self.target,
            read_only: self.read_only.unwrap_or(!writable),
            id: self.id,
            sharing: self.sharing.unwrap_or_default(),
            size: self.size,
            required: self.required,
            env: self.env,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
        })
    }
}

impl Kind {
    fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

fn one_of<T: Copy>(value: &str, known: &[(&str, T)], what: &str) -> Result<T, Mistake> {
    let lower = value.to_lowercase();
    let found = known.iter().find(|(name, _)| *name == lower);
    found.map(|(_, it)| *it).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        near(Mistake::new(format!("unsupported {what} \"{value}\"")), &lower, &names)
    })
}

fn near(mistake: Mistake, name: &str, known: &[&str]) -> Mistake {
    match known.iter().map(|known| (instruction::distance(name, known), known)).min() {
        Some((0..=2, near)) => mistake.hint(format!("did you mean {near}?")),
        _ => mistake.hint(format!("one of {}", known.join(", "))),
    }
}

/// Go's `strconv.ParseBool`.
fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Bytes as `go-units` reads them: `512`, `64m`, `1.5GiB`; every unit is binary.
fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].trim().parse().ok()?;
    let unit = text[end..].trim_start().to_ascii_lowercase();
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    let value = number * (1_u64 << shift) as f64;
    (value >= 0.0 && value < u64::MAX as f64).then_some(value as u64)
}

/// One record of CSV.
fn fields(text: &str) -> Result<Vec<String>, Mistake> {
    let bad = || {
        Mistake::new(format!("`{text}` of --mount has a stray quote"))
            .hint("quote a whole option, `\"source=a,b\"`, and double quotes within it")
    };
    let mut fields = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        let mut field = String::new();
        if chars.next_if_eq(&'"').is_some() {
            loop {
                match chars.next() {
                    Some('"') if chars.next_if_eq(&'"').is_some() => field.push('"'),
                    Some('"') => break,
                    Some(c) => field.push(c),
                    None => return Err(bad()),
                }
            }
        } else {
            while let Some(c) = chars.next_if(|c| *c != ',') {
                if c == '"' {
                    return Err(bad());
                }
                field.push(c);
            }
        }
        fields.push(field);
        match chars.next() {
            Some(',') => {}
            Some(_) => return Err(bad()),
            None => return Ok(fields),
        }
    }
}

/// Reads a `--device`. Steps have no devices of the host, so one that is not `required` is as good
/// as missing, and one that is gets refused.
pub(super) fn device(text: &str) -> Result<(), Mistake> {
    let mut name: Option<String> = None;
    let mut required = false;
    for field in fields(text)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_ascii_lowercase(), Some(value)),
            None => (field.to_ascii_lowercase(), None),
        };
        match (key.as_str(), value, &name) {
            ("required", None, _) => required = true,
            ("required", Some(value), _) => {
                let wrong = || Mistake::new(format!("invalid value for required: {value}"));
                required = go_bool(value).ok_or_else(wrong)?;
            }
            ("name", Some(_), Some(name)) => {
                return Err(Mistake::new(format!("device name already set to {name}")));
            }
            ("name", Some(value), None) => name = Some(value.to_owned()),
            (_, _, None) => name = Some(field),
            (_, None, Some(_)) => {
                let what = format!("invalid field '{field}' must be a key=value pair");
                return Err(Mistake::new(what));
            }
            (_, Some(_), Some(_)) => {
                let what = format!("unexpected key '{key}' in '{field}'");
                return Err(near(Mistake::new(what), &key, &["name", "required"]));
            }
        }
    }
    if required {
        let name = name.unwrap_or_default();
        let what = format!("RUN --device={name},required is refused: steps have no devices");
        return Err(Mistake::new(what).hint("without `required` the step runs without it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> Result<Mount, Mistake> {
        MountFlag::read(text.to_owned())?.expand(&|value| Ok(value.replace("$V", "val")))
    }

    #[test]
    fn options_and_defaults() {
        let bind = mount("target=/c").unwrap();
        assert_eq!((bind.kind, bind.read_only), (Kind::Bind, true));
        assert!(!mount("dst=/c,RW").unwrap().read_only);
        assert!(mount("dst=/c,readwrite=false").unwrap().read_only);
        let cache = mount("type=Cache,id=$V,target=/$V,sharing=LOCKED,mode=0751,uid=7").unwrap();
        assert_eq!((cache.kind, cache.sharing), (Kind::Cache, Sharing::Locked));
        assert_eq!((cache.id.as_deref(), cache.target.as_deref()), (Some("val"), Some("/val")));
        assert_eq!((cache.mode, cache.uid, cache.read_only), (Some(0o751), Some(7), false));
        let tmpfs = mount("type=tmpfs,target=/t,size=1.5k").unwrap();
        assert_eq!(tmpfs.size, Some(1536));
        let secret = mount("type=secret,id=a,required,env=").unwrap();
        assert_eq!((secret.required, secret.env.as_deref()), (true, Some("")));
        assert_eq!(mount("type=ssh").unwrap().kind, Kind::Ssh);
        let quoted = mount("\"source=a,\"\"b\",target=/c").unwrap();
        assert_eq!(quoted.source.as_deref(), Some("a,\"b"));
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, what, hint) in [
            ("typ=tmpfs", "unexpected key 'typ' in 'typ=tmpfs'", "did you mean type?"),
            ("type=tmp,target=/x", "unsupported mount type \"tmp\"", "did you mean tmpfs?"),
            ("target=/x,from=$V", "'from' doesn't support variable expansion", "name a stage"),
            ("target", "'target' must be a key=value pair", "target=…"),
            ("type=bind,target=/x,required", "'required' for mount type 'bind'", ""),
            ("type=bind,target=/x,mode=0700", "mode not allowed for \"bind\"", ""),
            ("target=/x,sharing=locked", "sharing not allowed", ""),
            ("type=cache,target=/x,sharing=lock", "sharing value \"lock\"", "mean locked?"),
            ("type=secret", "one of source, target required", "id=NAME"),
            ("type=secret,id=a,source=b", "both source and id can't be set", "keep one"),
            ("type=secret,id=a,from=b", "from not allowed", ""),
            ("type=ssh,source=b", "source not allowed", ""),
            ("type=tmpfs", "no `target`", "target=/path"),
            ("type=tmpfs,target=/x,size=1x", "invalid value for size: 1x", "size like"),
            ("type=cache,target=/x,mode=9", "invalid value for mode: 9", "octal"),
            ("type=secret,id=a,uid=-1", "invalid value for uid: -1", "number of a user"),
            ("target=/x,ro=maybe", "invalid value for ro: maybe", "truth value"),
            ("\"target=/x", "stray quote", ""),
        ] {
            let mistake = mount(text).unwrap_err();
            assert!(mistake.what.contains(what), "{text}: {mistake:?}");
            assert!(mistake.hint.unwrap_or_default().contains(hint), "{text}");
        }
    }

    #[test]
    fn devices_may_be_missing() {
        for text in ["a.com/b=c", "a.com/b", "name=a.com/b=c", "a.com/b=c,required=false"] {
            assert_eq!(device(text), Ok(()), "{text}");
        }
        for (text, what) in [
            ("a.com/b=c,required", "--device=a.com/b=c,required is refused"),
            ("required=1,name=a", "--device=a,required is refused"),
            ("a=b,name=c", "device name already set to a=b"),
            ("a=b,c", "'c' must be a key=value pair"),
            ("a=b,nam=c", "unexpected key 'nam' in 'nam=c'"),
            ("a,required=x", "invalid value for required: x"),
        ] {
            let mistake = device(text).unwrap_err();
            assert!(mistake.what.contains(what), "{text}: {mistake:?}");
        }
    }

    #[test]
    fn what_reads_the_context() {
        for (text, expected) in [
            ("target=/x", true),
            ("type=$V,target=/x", true),
            ("type=cache,target=/x", false),
            ("target=/x,from=build", false),
            ("type=secret,id=x", false),
        ] {
            let flag = MountFlag::read(text.to_owned()).unwrap();
            assert_eq!(flag.may_read_context(), expected, "{text}");
        }
    }
}
