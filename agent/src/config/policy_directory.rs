//! The directory in which `sidestep policy apply` keeps policies for the agent: a file for each.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{ConfigError, policy_files};
use crate::{
    policy::{Policies, precedence::Key},
    state_file,
};

/// The longest name of a file (`limits.h`), less `.new`.
const MAX_FILE_NAME: usize = 255 - 4;
/// Whose files they are alone.
const MODE: u32 = 0o600;

/// A policy that can't be put there, or taken away.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// What the agent reads has no directory.
    #[error(
        "the agent reads policies from no directory: name one that is there in `policies.files` of its configuration, as \
         `files: [/etc/sidestep/policies]`, and restart it"
    )]
    None,
    /// What is there already, or would be there, is wrong.
    #[error(transparent)]
    Invalid(#[from] ConfigError),
    /// Somebody else's file has it.
    #[error("{key} stands in {}, which is not of `sidestep policy apply`: change it there, and send the agent SIGHUP", .file.display())]
    Elsewhere {
        /// The policy.
        key: Key,
        /// The file.
        file: PathBuf,
    },
    /// It is not there.
    #[error("{0} stands in none of the files that the agent reads")]
    Absent(Key),
    /// Its name has characters that names in Kubernetes have not.
    #[error("{0}: its name and namespace may have letters, digits, `-` and `.`, and both together at most 220 of them")]
    Name(Key),
    /// The system refuses.
    #[error("{}: {source}", .file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// What becomes of a policy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// There was none of its name.
    Created,
    /// It is another one.
    Configured,
    /// It stands there as it is.
    Unchanged,
    /// It is gone.
    Deleted,
}

/// What the agent reads.
#[derive(Debug)]
pub struct PolicyDirectory {
    path: PathBuf,
    /// The files in the agent's order, with their texts.
    files: Vec<(PathBuf, String)>,
    /// Where each policy stands, and how many others with it.
    places: BTreeMap<Key, (PathBuf, usize)>,
}

impl PolicyDirectory {
    /// Of the files and directories of `policies.files`: the first directory is the one to write to.
    ///
    /// # Errors
    /// There is none, or what is there is wrong.
    pub fn open(paths: &[PathBuf]) -> Result<Self, DirectoryError> {
        let path = paths.iter().find(|path| path.is_dir()).ok_or(DirectoryError::None)?.clone();
        let files = policy_files::files_of(paths)?;
        let mut places = BTreeMap::new();
        for (file, text) in &files {
            let mut policies = Policies::default();
            policy_files::parse(&file.display().to_string(), text, &mut policies)?;
            let others = policies.all().count().saturating_sub(1);
            places.extend(policies.all().map(|policy| (policy.key.clone(), (file.clone(), others))));
        }
        Ok(Self { path, files, places })
    }

    /// Puts the text of a policy in the place of the one of its name; it is not written. `origin` is the file that it comes from: one
    /// that the agent reads itself may be it.
    ///
    /// # Errors
    /// Another file has it, or its name is none for a file.
    pub fn put(&mut self, key: &Key, text: &str, origin: &Path) -> Result<(Change, PathBuf), DirectoryError> {
        let file = self.file(key)?;
        match self.places.get(key) {
            Some((place, _)) if is_same(place, origin) => return Ok((Change::Unchanged, place.clone())),
            Some((place, 0)) if *place == file => {
                let known = self.files.iter_mut().find(|(known, _)| *known == file);
                let Some((_, known)) = known.filter(|(_, known)| known != text) else {
                    return Ok((Change::Unchanged, file));
                };
                text.clone_into(known);
                return Ok((Change::Configured, file));
            }
            Some((place, _)) => return Err(DirectoryError::Elsewhere { key: key.clone(), file: place.clone() }),
            None if file.exists() => return Err(DirectoryError::Elsewhere { key: key.clone(), file }),
            None => {}
        }
        self.files.push((file.clone(), text.to_owned()));
        self.places.insert(key.clone(), (file.clone(), 0));
        Ok((Change::Created, file))
    }

    /// The file of a policy that is to be deleted.
    ///
    /// # Errors
    /// There is none, or another file has it.
    pub fn own_file(&self, key: &Key) -> Result<PathBuf, DirectoryError> {
        let (place, others) = self.places.get(key).ok_or_else(|| DirectoryError::Absent(key.clone()))?;
        if *others == 0 && *place == self.file(key)? {
            Ok(place.clone())
        } else {
            Err(DirectoryError::Elsewhere { key: key.clone(), file: place.clone() })
        }
    }

    /// Whether the agent takes all of it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), DirectoryError> {
        let texts: Vec<_> = self.files.iter().map(|(file, text)| (file.display().to_string(), text.clone())).collect();
        policy_files::parse_all(&texts)?;
        Ok(())
    }

    /// No name of another kind or namespace makes the same; what has a slash would be somewhere else.
    fn file(&self, key: &Key) -> Result<PathBuf, DirectoryError> {
        let is_plain = |name: &str| {
            let is_plain = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '.');
            (1..=253).contains(&name.len()) && name.chars().all(is_plain)
        };
        let Key { namespace, name } = key;
        // A namespace has no dot, so what is before the second one is it.
        if !is_plain(name) || namespace.as_deref().is_some_and(|name| !is_plain(name) || name.contains('.')) {
            return Err(DirectoryError::Name(key.clone()));
        }
        let file = match namespace {
            Some(namespace) => format!("SidestepPolicy.{namespace}.{name}.yaml"),
            None => format!("ClusterSidestepPolicy.{name}.yaml"),
        };
        // With `.new` behind it, it is `NAME_MAX` at most.
        if file.len() > MAX_FILE_NAME {
            return Err(DirectoryError::Name(key.clone()));
        }
        Ok(self.path.join(file))
    }
}

fn is_same(one: &Path, two: &Path) -> bool {
    fs::canonicalize(one).ok().zip(fs::canonicalize(two).ok()).is_some_and(|(one, two)| one == two)
}

/// Writes a policy's file: who reads it meanwhile, and an agent that starts after a crash, finds the old one or the new one.
///
/// # Errors
/// The system refuses.
pub fn write(file: &Path, text: &str) -> Result<(), DirectoryError> {
    // The agent reads no file of this name.
    let temporary = file.with_extension("yaml.new");
    state_file::replace_text(file, &temporary, text.as_bytes(), MODE)
        .map_err(|source| DirectoryError::Io { file: file.to_owned(), source })
}

/// Takes a policy's file away.
///
/// # Errors
/// The system refuses.
pub fn remove(file: &Path) -> Result<(), DirectoryError> {
    let directory = file.parent().unwrap_or(Path::new("."));
    let removed = fs::remove_file(file).and_then(|()| fs::File::open(directory)?.sync_all());
    removed.map_err(|source| DirectoryError::Io { file: file.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn policy(namespace: &str, name: &str, rate: u32) -> String {
        format!(
            "apiVersion: sidestep.dev/v1alpha1\nkind: SidestepPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{selector: {{}}, traffic: {{limits: {{connectionsOut: {{perSecond: {rate}}}}}}}}}\n"
        )
    }

    fn key(namespace: &str, name: &str) -> Key {
        Key { namespace: Some(namespace.into()), name: name.into() }
    }

    #[test]
    fn each_policy_has_a_file_and_those_of_others_are_left_alone() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = |name: &str| folder.path().join(name);
        let nowhere = Path::new("-");
        let paths = [folder.path().to_owned()];
        assert!(matches!(PolicyDirectory::open(&[path("none")]), Err(DirectoryError::None)));
        fs::write(path("by-hand.yaml"), format!("{}---\n{}", policy("shop", "a", 1), policy("shop", "b", 1)))
            .expect("it");
        let open = || PolicyDirectory::open(&paths).expect("they are right");

        let (change, file) = open().put(&key("shop", "web"), &policy("shop", "web", 1), nowhere).expect("new");
        assert_eq!((change, &file), (Change::Created, &path("SidestepPolicy.shop.web.yaml")));
        write(&file, &policy("shop", "web", 1)).expect("written");
        assert_eq!(fs::metadata(&file).expect("it").permissions().mode() & 0o777, MODE);
        let again = |rate| open().put(&key("shop", "web"), &policy("shop", "web", rate), nowhere).expect("there").0;
        assert_eq!((again(1), again(2)), (Change::Unchanged, Change::Configured));
        let mut wrong = open();
        wrong.put(&key("shop", "web"), &policy("shop", "web", 0), nowhere).expect("not looked at yet");
        assert!(wrong.check().is_err_and(|error| error.to_string().contains("SidestepPolicy.shop.web.yaml:4:")));
        open().check().expect("it is right");

        let theirs = open().put(&key("shop", "a"), &policy("shop", "a", 2), nowhere);
        assert!(theirs.is_err_and(|error| error.to_string().contains("by-hand.yaml")));
        let itself = open().put(&key("shop", "a"), "", &path("by-hand.yaml")).expect("it is that file");
        assert_eq!(itself.0, Change::Unchanged);
        assert!(matches!(open().own_file(&key("shop", "a")), Err(DirectoryError::Elsewhere { .. })));
        assert!(matches!(open().own_file(&key("shop", "c")), Err(DirectoryError::Absent(_))));
        for name in ["../web", "a/b", "", "web\n", &"a".repeat(240)] {
            assert!(matches!(open().put(&key("shop", name), "", nowhere), Err(DirectoryError::Name(_))), "{name}");
        }

        remove(&open().own_file(&key("shop", "web")).expect("its own")).expect("removed");
        assert!(matches!(open().own_file(&key("shop", "web")), Err(DirectoryError::Absent(_))));
    }
}
