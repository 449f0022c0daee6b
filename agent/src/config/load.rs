//! From a file to a [`Config`].

use std::{
    env, fs,
    io::{self, Read},
    path::Path,
};

use super::{
    Config, ConfigError, Raw, Report,
    interpret::interpret,
    report::{MAX_PROBLEMS, Problem},
    tree::Node,
    validate::validate,
};

/// Larger files are refused before they are parsed.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// The path that stands for standard input.
const STDIN: &str = "-";

/// What the configuration takes from around it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Environment {
    /// The variable `NODE_NAME`, which a DaemonSet sets from `spec.nodeName`.
    pub node_name: Option<String>,
    /// The kernel's host name.
    pub host_name: Option<String>,
}

impl Environment {
    /// Of this process.
    #[must_use]
    pub fn current() -> Self {
        let host_name = fs::read_to_string("/proc/sys/kernel/hostname").ok();
        Self {
            node_name: env::var("NODE_NAME").ok().filter(|name| !name.is_empty()),
            host_name: host_name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()),
        }
    }
}

impl Raw {
    /// Reads a file, or standard input when it is `-`. A `node_name` that is not given is filled in.
    ///
    /// # Errors
    /// The file could not be read, is no text, or is wrong.
    pub fn load(path: &Path, environment: &Environment) -> Result<(Self, Config), ConfigError> {
        let (name, text) = read_text(path)?;
        Self::parse(&name, &text, environment)
    }

    /// Reads a text; `name` is what errors call it.
    ///
    /// # Errors
    /// All that is wrong with it, in the order of the file.
    pub fn parse(name: &str, text: &str, environment: &Environment) -> Result<(Self, Config), ConfigError> {
        let invalid = |mut problems: Vec<Problem>| {
            problems.sort_by_key(|problem| problem.span.as_ref().map_or(0, |span| span.start));
            ConfigError::Invalid(Box::new(Report { file: name.to_owned(), text: text.to_owned(), problems }))
        };
        let tree = Node::parse(text).map_err(|problem| invalid(vec![problem]))?;
        let mut reading = interpret::<Self>(&tree);
        let is_whole = reading.value.is_some() && reading.problems.is_empty();
        let raw = reading.value.take().unwrap_or_default().with_environment(environment);
        // What stands in the file is checked even when another part of it is wrong; what was left out has its
        // default, which holds.
        let wrong = match validate(&raw) {
            Ok(config) if is_whole => return Ok((raw, config)),
            Ok(_) => Vec::new(),
            Err(wrong) => wrong,
        };
        for mut problem in wrong {
            if reading.problems.len() >= MAX_PROBLEMS {
                break;
            }
            problem.path = reading.path_in_file(&problem.path);
            problem.span = Some(tree.locate(&problem.path));
            if !reading.is_reported(&problem.path) {
                reading.problems.push(problem);
            }
        }
        Err(invalid(reading.problems))
    }

    fn with_environment(mut self, environment: &Environment) -> Self {
        let Environment { node_name, host_name } = environment;
        self.node_name = self.node_name.or_else(|| node_name.clone()).or_else(|| host_name.clone());
        self
    }

    /// As YAML, every option in it.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        // Nothing in it can fail to serialize: there are no maps with keys other than strings.
        serde_saphyr::to_string(self).unwrap_or_else(|error| format!("# cannot be shown: {error}\n"))
    }
}

impl Config {
    /// Reads the file at `path`, or standard input when it is `-`.
    ///
    /// # Errors
    /// The file could not be read, is no text, or is wrong.
    pub fn load(path: &Path, environment: &Environment) -> Result<Self, ConfigError> {
        Raw::load(path, environment).map(|(_, config)| config)
    }

    /// Checks a text; `name` is what errors call it.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(name: &str, text: &str, environment: &Environment) -> Result<Self, ConfigError> {
        Raw::parse(name, text, environment).map(|(_, config)| config)
    }

    /// All defaults.
    ///
    /// # Errors
    /// The node has no name, neither here nor in the kernel.
    pub fn defaults(environment: &Environment) -> Result<Self, ConfigError> {
        Raw::parse("<defaults>", "", environment).map(|(_, config)| config)
    }
}

/// What a file is called in messages.
#[must_use]
pub fn display_name(path: &Path) -> String {
    if path == Path::new(STDIN) { "<stdin>".to_owned() } else { path.display().to_string() }
}

/// A file's name for messages, and its text.
///
/// # Errors
/// It can't be read, is too large, or no UTF-8.
pub fn read_text(path: &Path) -> Result<(String, String), ConfigError> {
    read_text_of(path, MAX_FILE_BYTES)
}

/// The same, of a file of at most `limit` bytes.
pub(super) fn read_text_of(path: &Path, limit: u64) -> Result<(String, String), ConfigError> {
    let failed = |source: io::Error| ConfigError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let read = if path == Path::new(STDIN) {
        io::stdin().lock().take(limit + 1).read_to_end(&mut bytes)
    } else {
        fs::File::open(path).map_err(failed)?.take(limit + 1).read_to_end(&mut bytes)
    };
    read.map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(ConfigError::TooLarge { path: path.to_owned(), limit });
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let before = &error.as_bytes()[..valid];
        let line_start = memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1);
        ConfigError::NotText {
            path: path.to_owned(),
            line: memchr::memchr_iter(b'\n', before).count() + 1,
            column: valid - line_start + 1,
            byte: error.as_bytes().get(valid).copied().unwrap_or_default(),
        }
    })?;
    // Editors on Windows begin a file with a mark that is no YAML.
    Ok((display_name(path), text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)))
}
