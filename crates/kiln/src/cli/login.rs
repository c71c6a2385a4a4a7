//! `kiln login` and `kiln logout`. They are the user's own business: no agent is asked.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kiln_core::exit::Exit;
use kiln_remote::registry::login::{Forgotten, Kept, forget, keep};
use kiln_remote::registry::{Client, Credential, Error, Keychain, Registries};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use serde_json::json;

use super::keys::environment;
use super::{print_json, print_line};
use crate::report::{Because as _, Report};
use crate::terminal;

/// Longest name or password, in bytes: a token of a cloud has some thousands.
const LONGEST: u64 = 64 << 10;

/// Ctrl-C ends the process: nothing is written before the registry has said yes.
static NEVER: AtomicBool = AtomicBool::new(false);

/// What the user has just typed.
struct Typed(Credential);

impl Keychain for Typed {
    fn credential(&self, _: &str, _: &str) -> Result<Option<Credential>, Error> {
        Ok(Some(self.0.clone()))
    }
}

pub(super) fn login(
    registry: Option<&str>,
    username: Option<String>,
    from_stdin: bool,
    as_json: bool,
) -> Result<Exit, Report> {
    let env = environment();
    let registries = Registries::of_host(&env).map_err(|error| Report::of_registry(&error))?;
    let named = registries.registry(registry.unwrap_or("docker.io"));
    let registry = named.map_err(|error| Report::of_registry(&error))?;
    let username = match username {
        Some(name) => name,
        None => ask(&format!("Name at {registry}: "), Echo::Shown)?,
    };
    if username.is_empty() || username.contains(':') {
        return Err(Report::usage("a user's name is not empty and has no colon")
            .hint("nothing was kept; give it by `-u NAME`"));
    }
    let password = match from_stdin {
        true => piped()?,
        false => ask("Password: ", Echo::Hidden)?,
    };
    if password.is_empty() {
        return Err(Report::usage("the password is empty")
            .hint("nothing was kept; some registries want an access token for a password"));
    }
    let credential = Credential::Password { username: username.clone(), password };
    let typed = Typed(credential.clone());
    let told = |text: &str| {
        let _ = writeln!(io::stderr(), "{}", terminal::clean(text));
    };
    let client = Client::new(Arc::new(registries), &typed, &told, &NEVER);
    client.check(&registry).map_err(|error| refused(&registry, &error))?;
    let kept =
        keep(&env, &registry, &credential, &NEVER).map_err(|error| Report::of_registry(&error))?;
    if as_json {
        let (file, helper) = match &kept {
            Kept::File(path) => (Some(path.display().to_string()), None),
            Kept::Helper(name) => (None, Some(name)),
        };
        print_json(&json!({
            "registry": registry, "username": username, "file": file, "helper": helper,
        }));
        return Ok(Exit::Done);
    }
    let kept = match kept {
        Kept::File(path) => format!("kept in {}, which only you can read", path.display()),
        Kept::Helper(name) => format!("kept by docker-credential-{name}"),
    };
    print_line(&terminal::clean(&format!("logged in to {registry} as {username}: {kept}")));
    Ok(Exit::Done)
}

pub(super) fn logout(registry: Option<&str>, as_json: bool) -> Result<Exit, Report> {
    let env = environment();
    let registries = Registries::default();
    let named = registries.registry(registry.unwrap_or("docker.io"));
    let registry = named.map_err(|error| Report::of_registry(&error))?;
    let forgotten = forget(&env, &registry, &NEVER).map_err(|error| Report::of_registry(&error))?;
    let Forgotten { from, remains } = forgotten;
    let remains: Vec<String> = remains.iter().map(|path| path.display().to_string()).collect();
    if as_json {
        print_json(&json!({ "registry": registry, "from": from, "remains": remains }));
        return Ok(Exit::Done);
    }
    let line = match from.is_empty() {
        true => format!("nobody was logged in to {registry}"),
        false => format!("logged out of {registry}: taken from {}", from.join(", ")),
    };
    print_line(&terminal::clean(&line));
    for path in remains {
        let line =
            format!("{path} still has something for {registry}: `podman logout` is for that");
        print_line(&terminal::clean(&line));
    }
    Ok(Exit::Done)
}

/// What was typed is wrong: nothing is kept.
fn refused(registry: &str, error: &Error) -> Report {
    match error {
        Error::Denied { said, .. } => {
            Report::failed(format!("{registry} does not take this name and password{said}"))
                .hint("nothing was kept; some registries want an access token for a password")
        }
        // Its address is in what is said of it.
        error => Report { message: error.without_name(), ..Report::of_registry(error) },
    }
}

/// The password on standard input, without the end of its line.
fn piped() -> Result<String, Report> {
    let mut bytes = Vec::new();
    let doing = || "reading the password".to_owned();
    io::stdin().lock().take(LONGEST + 1).read_to_end(&mut bytes).because(doing)?;
    if bytes.len() as u64 > LONGEST {
        return Err(Report::usage(format!("the password is longer than {LONGEST} bytes"))
            .hint("nothing was kept; is it the right file that is piped in?"));
    }
    let text = String::from_utf8(bytes).map_err(|_| not_text())?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

fn not_text() -> Report {
    Report::usage("the password is not UTF-8").hint("nothing was kept; give it as plain text")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Echo {
    Shown,
    Hidden,
}

/// A line from the terminal.
fn ask(question: &str, echo: Echo) -> Result<String, Report> {
    if !io::stdin().is_terminal() {
        return Err(Report::usage(
            "name and password are asked for on a terminal, and there is none",
        )
        .hint("say the name by `-u` and give the password by `--password-stdin`"));
    }
    let _ = write!(io::stderr(), "{}", terminal::clean(question));
    if echo == Echo::Shown {
        let mut line = String::new();
        io::stdin().read_line(&mut line).because(|| "reading the name".into())?;
        return Ok(line.trim().to_owned());
    }
    let hidden = Hidden::begin()?;
    let line = hidden.line();
    drop(hidden);
    let _ = writeln!(io::stderr());
    line
}

/// The terminal while it shows nothing of what is typed. Keys that would end the process are read
/// too, so that it never stays like this.
struct Hidden(Termios);

impl Hidden {
    fn begin() -> Result<Self, Report> {
        let doing = || "hiding what is typed".to_owned();
        let before = tcgetattr(rustix::stdio::stdin()).because(doing)?;
        let mut hidden = before.clone();
        hidden.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        hidden.special_codes[SpecialCodeIndex::VMIN] = 1;
        hidden.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, &hidden).because(doing)?;
        Ok(Self(before))
    }

    /// What is typed up to the end of the line, with the keys that take something back.
    fn line(&self) -> Result<String, Report> {
        let mut typed = Vec::new();
        let mut byte = [0];
        loop {
            let read = rustix::io::read(rustix::stdio::stdin(), &mut byte);
            match read {
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error).because(|| "reading the password".into()),
                Ok(0) => break,
                Ok(_) => {}
            }
            match byte[0] {
                b'\n' | b'\r' | 4 => break,
                3 | 28 => return Err(Report::failed("interrupted: nothing was kept")),
                8 | 127 => {
                    // Back to the beginning of a letter.
                    while typed.pop().is_some_and(|last: u8| last & 0xC0 == 0x80) {}
                }
                21 => typed.clear(),
                other if (typed.len() as u64) < LONGEST => typed.push(other),
                _ => {}
            }
        }
        String::from_utf8(typed).map_err(|_| not_text())
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, &self.0);
    }
}
