//! `WWW-Authenticate`: how a registry wants to know who asks (RFC 9110, section 11.6.1).

/// One way to say who one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// Name and password with each request.
    Basic,
    /// A token from elsewhere.
    Bearer(Bearer),
}

/// Where a token is to be had, and for what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bearer {
    /// Address of the token server.
    pub realm: String,
    /// Whom the token is for.
    pub service: String,
    /// What it has to allow: `repository:team/app:pull`.
    pub scope: String,
    /// What was wrong with the one that was given.
    pub error: String,
}

impl Challenge {
    /// Reads one header field, in which several challenges may stand. What makes no sense is left
    /// out; schemes other than the two are too.
    pub fn read(value: &str) -> Vec<Self> {
        let mut found: Vec<(String, Bearer)> = Vec::new();
        let mut rest = value;
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            let Some((word, after)) = token(rest) else { break };
            let spaced = after.trim_start_matches([' ', '\t']);
            if let Some(text) = spaced.strip_prefix('=') {
                let (value, after) = parameter(text.trim_start_matches([' ', '\t']));
                if let Some((_, bearer)) = found.last_mut() {
                    bearer.set(&word.to_ascii_lowercase(), value);
                }
                rest = after;
            } else {
                found.push((word.to_ascii_lowercase(), Bearer::default()));
                rest = spaced;
            }
        }
        let known = |(scheme, bearer): (String, Bearer)| match scheme.as_str() {
            "basic" => Some(Self::Basic),
            "bearer" if !bearer.realm.is_empty() => Some(Self::Bearer(bearer)),
            _ => None,
        };
        found.into_iter().filter_map(known).collect()
    }
}

impl Bearer {
    fn set(&mut self, name: &str, value: String) {
        let field = match name {
            "realm" => &mut self.realm,
            "service" => &mut self.service,
            "scope" => &mut self.scope,
            "error" => &mut self.error,
            _ => return,
        };
        // The first one counts: what follows might come from somebody who can only add.
        if field.is_empty() {
            *field = value;
        }
    }
}

fn token(text: &str) -> Option<(&str, &str)> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let end = text.bytes().position(|byte| !word(byte)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// A value, quoted or not, and what follows it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            letter => value.push(letter),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: &str, scope: &str) -> Challenge {
        let [realm, service, scope] = [realm, service, scope].map(str::to_owned);
        Challenge::Bearer(Bearer { realm, service, scope, error: String::new() })
    }

    #[test]
    fn real_ones_are_read() {
        for (text, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/a:pull,push""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    "registry.docker.io",
                    "repository:library/a:pull,push",
                )],
            ),
            (r#"Basic realm="test""#, vec![Challenge::Basic]),
            (r#"basic"#, vec![Challenge::Basic]),
            (
                r#"Negotiate, BASIC realm=x , bearer realm = "u\"v" , service=s"#,
                vec![Challenge::Basic, bearer("u\"v", "s", "")],
            ),
        ] {
            assert_eq!(Challenge::read(text), expected, "{text}");
        }
    }

    #[test]
    fn rubbish_is_nothing() {
        for text in
            ["", ",,,", "=", "Bearer", "Bearer realm=", "realm=\"x\"", "\u{1}\u{2}", "Bearer \"x"]
        {
            assert_eq!(Challenge::read(text), vec![], "{text}");
        }
        let open = Challenge::read("Bearer realm=\"https://never.ends");
        assert_eq!(open, vec![bearer("https://never.ends", "", "")]);
    }
}
