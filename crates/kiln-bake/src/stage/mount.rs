//! `RUN --mount`: from the flags to what the step has mounted.

use std::sync::Arc;

use kiln_core::Tree;
use kiln_core::compose::Tmpfs;

use super::copy::why_missing;
use super::{Build, Stage};
use crate::dockerfile::MountFlag;
use crate::dockerfile::mount::{Kind, Mount as Asked};
use crate::edit::Origin;
use crate::error::BakeError;
use crate::mount::agent::AgentMount;
use crate::mount::caches::Cache;
use crate::mount::secret::SecretMount;
use crate::mount::{Content, Mount, nothing};
use crate::plan::{Source, lookup};
use crate::{copy, paths};

/// Where BuildKit puts agents, with a number behind it.
const AGENTS: &str = "/run/buildkit/ssh_agent.";

impl Build<'_> {
    /// Expands the mounts of a RUN and finds what they show. `sources` says where each `from`
    /// leads, in order.
    pub(super) fn mounts(
        &self,
        state: &Stage,
        flags: &[MountFlag],
        sources: &[Source],
    ) -> Result<Vec<Mount>, BakeError> {
        let mut sources = sources.iter();
        let mut agents = 0;
        let mut mounts = Vec::with_capacity(flags.len());
        for flag in flags {
            let from = flag.from.as_ref().and_then(|_| sources.next());
            let expand = |word: &str| self.lex().word(word, &|name| lookup(&state.env, name));
            let asked = flag.expand(&expand).map_err(|mistake| {
                self.wrong(state.line, mistake.what, mistake.hint.as_deref().unwrap_or_default())
            })?;
            mounts.push(match asked.kind {
                Kind::Bind => self.bind(state, asked, from)?,
                Kind::Cache => self.cache(state, asked, from)?,
                Kind::Tmpfs => Mount::Tmpfs(Tmpfs {
                    target: self.target(state, &asked)?,
                    size: asked.size,
                    mode: None,
                    ..Tmpfs::default()
                }),
                Kind::Secret => self.secret(state, asked)?,
                Kind::Ssh => {
                    agents += 1;
                    self.agent(state, asked, agents - 1)?
                }
            });
        }
        Ok(mounts)
    }

    /// Relative ones lie in the working directory.
    fn target(&self, state: &Stage, asked: &Asked) -> Result<String, BakeError> {
        let target = asked.target.as_deref().unwrap_or_default();
        let dir = state.config.working_dir.as_deref().unwrap_or("/");
        match paths::absolute(dir, target).as_str() {
            "/" => {
                let what = format!("invalid mount target \"{target}\": it is the root itself");
                Err(self.wrong(state.line, what, "name a directory below it, or set WORKDIR"))
            }
            path => Ok(path.to_owned()),
        }
    }

    fn bind(&self, state: &Stage, asked: Asked, from: Option<&Source>) -> Result<Mount, BakeError> {
        let content = self.content(state.line, from, asked.source.as_deref().unwrap_or("/"))?;
        let target = self.target(state, &asked)?;
        Ok(Mount::Bind { content, target, read_only: asked.read_only })
    }

    /// What is at `path` of a context, a stage or a base.
    fn content(
        &self,
        line: usize,
        from: Option<&Source>,
        path: &str,
    ) -> Result<Content, BakeError> {
        let whole = paths::clean(&format!("/{path}")) == "/";
        let tree = match from {
            Some(Source::Stage(index)) => self.finished(*index)?.tree,
            Some(Source::Base(name)) => self.base(name)?.tree,
            Some(Source::Scratch) if whole => return Ok(nothing()),
            Some(Source::Scratch) => {
                return select(&Tree::new(), path, &|_| Origin::Store)
                    .map_err(|what| self.wrong(line, what, "`scratch` is empty"));
            }
            None | Some(Source::Context(_)) => {
                let snapshot = match from {
                    Some(Source::Context(name)) => self.contexts.get(name),
                    _ => self.context.as_ref(),
                };
                let Some(snapshot) = snapshot else {
                    return Err(BakeError::Failed("the context was not read".into()));
                };
                let root = &snapshot.root;
                let origin = |path| Origin::Host(root.clone(), path);
                return select(&snapshot.tree, path, &origin)
                    .map_err(|what| self.wrong(line, what, &why_missing(snapshot, path)));
            }
        };
        if whole {
            return Ok(Content::Tree(tree));
        }
        let digest = tree;
        let tree = self.store.get_tree(&digest).map_err(BakeError::store)?;
        select(&tree, path, &|path| Origin::Tree(digest, path)).map_err(|what| {
            self.wrong(line, what, "`from` looks it up in that image, from its root")
        })
    }

    fn cache(
        &self,
        state: &Stage,
        asked: Asked,
        from: Option<&Source>,
    ) -> Result<Mount, BakeError> {
        let target = self.target(state, &asked)?;
        let source = asked.source.clone().unwrap_or_default();
        let seed = match from {
            None | Some(Source::Scratch) => None,
            Some(_) => Some(self.content(state.line, from, &source)?),
        };
        if let Some(Content::Entries(seed)) = &seed
            && seed.entries.first().is_some_and(|(_, node)| !node.is_dir())
        {
            let what = format!("`{source}` is no directory, which a cache begins with");
            return Err(self.wrong(state.line, what, ""));
        }
        let id =
            asked.id.unwrap_or_else(|| paths::clean(asked.target.as_deref().unwrap_or_default()));
        Ok(Mount::Cache(Cache {
            project: self.request.options.project.clone(),
            id,
            target,
            source: if seed.is_some() { String::new() } else { source },
            seed,
            sharing: asked.sharing,
            read_only: asked.read_only,
            uid: asked.uid.unwrap_or(0),
            gid: asked.gid.unwrap_or(0),
            mode: asked.mode.unwrap_or(0o755),
        }))
    }

    fn secret(&self, state: &Stage, asked: Asked) -> Result<Mount, BakeError> {
        let base = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
        let named = asked.id.clone().or_else(|| asked.source.clone());
        let id = named.unwrap_or_else(|| base(asked.target.as_deref().unwrap_or_default()));
        let secret = self.request.options.secrets.get(&id).cloned();
        if secret.is_none() && asked.required {
            let what = format!(
                "secret {id}: not found: the step needs the secret `{id}`, which the build does \
                 not have"
            );
            let hint = format!("name it in the Compose file: `build.secrets: [{id}]`");
            return Err(self.wrong(state.line, what, &hint));
        }
        let target = match (&asked.target, &asked.env) {
            (Some(_), _) => Some(self.target(state, &asked)?),
            (None, Some(_)) => None,
            (None, None) => Some(format!("/run/secrets/{}", base(&id))),
        };
        let env = asked.env.map(|name| if name.is_empty() { id.clone() } else { name });
        if let Some(name) = env.as_ref().filter(|name| name.contains('=')) {
            let what = format!("`{name}` cannot be the name of a variable");
            return Err(self.wrong(state.line, what, ""));
        }
        // What the step says counts; then what the Compose file says; then what BuildKit does.
        let given = |of: fn(&crate::options::Secret) -> Option<u32>| secret.as_ref().and_then(of);
        Ok(Mount::Secret(SecretMount {
            uid: asked.uid.or_else(|| given(|it| it.uid)).unwrap_or(0),
            gid: asked.gid.or_else(|| given(|it| it.gid)).unwrap_or(0),
            mode: asked.mode.or_else(|| given(|it| it.mode)).unwrap_or(0o400),
            id,
            secret,
            target,
            env,
        }))
    }

    fn agent(&self, state: &Stage, asked: Asked, number: usize) -> Result<Mount, BakeError> {
        let id = asked.id.clone().unwrap_or_else(|| "default".to_owned());
        let socket = self.request.options.ssh.get(&id).cloned();
        if socket.is_none() && asked.required {
            let what =
                format!("the step needs the SSH agent `{id}`, which the build does not have");
            let hint = format!("name it in the Compose file: `build.ssh: [{id}]`");
            return Err(self.wrong(state.line, what, &hint));
        }
        let target = match &asked.target {
            Some(_) => self.target(state, &asked)?,
            None => format!("{AGENTS}{number}"),
        };
        Ok(Mount::Ssh(AgentMount {
            id,
            socket,
            target,
            uid: asked.uid.unwrap_or(0),
            gid: asked.gid.unwrap_or(0),
            mode: asked.mode.unwrap_or(0o600),
        }))
    }
}

fn select(tree: &Tree, path: &str, origin: &dyn Fn(Vec<u8>) -> Origin) -> Result<Content, String> {
    Ok(Content::Entries(Arc::new(copy::one(tree, path, origin)?)))
}
